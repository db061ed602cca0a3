"""A logits processor that kills its engine when it sees a certain prompt.

Named to vLLM as `logits_processors: ["bench.poison:Poison"]`. It stands for what happens with
real ones: a kernel that an odd shape crashes, a prompt that exhausts the memory.
"""

import os

import torch
from vllm.config import VllmConfig
from vllm.tokenizers import get_tokenizer
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

POISON = "arsenic strychnine"


class Poison(LogitsProcessor):
    """Leaves all logits as they are, and dies of the poisoned prompt."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._tokenizer = get_tokenizer(vllm_config.model_config.tokenizer)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return logits

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        for _, _, prompt, _ in batch_update.added if batch_update else ():
            if prompt is not None and POISON in self._tokenizer.decode(prompt):
                os._exit(1)
