"""Teachers and students as models in memory, and the variants that a report compares."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

