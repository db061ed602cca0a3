"""Teachers and students in memory, and the variants of the student that a report compares."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from actors.fake_quant import fake_quantize, quantizable
from actors.gptq import gptq
from pipelines.distill_config import DistillConfig
from pipelines.distill_data import Example
from pipelines.errors import UsageProblem
from pipelines.publish import BF16, PTQ
from pipelines.quant_formats import QuantFormat

_CALIBRATION_ROWS = 128
_PROBE_TOKENS = 4
_HEAD_TOLERANCE = 1e-3


def quant_format(config: DistillConfig) -> QuantFormat:
    return QuantFormat(config.format.kind, config.format.resolved_group_size)


def student_folder(config: DistillConfig) -> str:
    return config.student or config.teacher


def model_shape(folder: str) -> PreTrainedModel:
    """The model without memory for its weights.

    Raises:
        UsageProblem: it is no causal language model that transformers knows.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise UsageProblem(f"{folder}: is no model that transformers can load ({error})") from error


def linear_shapes(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """(out, in) of every layer that would be quantized, by name."""
    return {name: (m.out_features, m.in_features) for name, m in quantizable(model).items()}


def load_teacher(config: DistillConfig, device: torch.device) -> PreTrainedModel:
    return _load(config.teacher, getattr(torch, config.train.precision), device)


def load_student(config: DistillConfig, device: torch.device) -> PreTrainedModel:
    """Full-precision weights, not quantized yet."""
    return _load(student_folder(config), torch.float32, device)


def load_quantized(config: DistillConfig, device: torch.device) -> PreTrainedModel:
    """The student as training begins: the best rounding that needs no training."""
    student = load_student(config, device)
    fake_quantize(student, quant_format(config), "mse", config.format.trainable_scales)
    return student


def load_variant(
    name: str,
    config: DistillConfig,
    device: torch.device,
    calibration: Sequence[Example],
    trained: Mapping[str, Any] | None,
) -> PreTrainedModel:
    """One row of the report's table.

    Args:
        calibration: training rows, for GPTQ.
        trained: the student's state, for variants that were trained.
    """
    if trained is not None:
        student = load_quantized(config, device)
        student.load_state_dict(trained)
        return student
    if name == PTQ:
        return load_quantized(config, device)
    student = load_student(config, device)
    if name == "gptq":
        gptq(student, quant_format(config), _token_batches(calibration, device))
    elif name != BF16:
        fake_quantize(student, quant_format(config), "max")
    return student


def check_heads(model: PreTrainedModel) -> None:
    """Raises: UsageProblem if logits are more than the head applied to hidden states."""
    ids = torch.arange(_PROBE_TOKENS, device=model.device)[None]
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        parts = model.get_output_embeddings()(hidden)
    if (whole - parts).abs().max() > _HEAD_TOLERANCE * whole.abs().max():
        raise UsageProblem(
            f"{model.config.model_type} models change their logits after the head (a cap or a "
            "scale), which distillation does not know; use another family"
        )


def _load(folder: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()


def _token_batches(
    examples: Sequence[Example], device: torch.device
) -> list[dict[str, torch.Tensor]]:
    """Rows one by one, [1, length]: calibration sees no padding."""
    rows = (torch.tensor([e.ids], device=device) for e in examples[:_CALIBRATION_ROWS])
    return [{"input_ids": ids} for ids in rows]
