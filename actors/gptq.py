"""GPTQ, the post-training quantization that a distilled student has to be worth more than.

Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", arXiv 2210.17323: columns are rounded one after the other, and what rounding one
does to the layer's output is made up for in those that are still to come.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from actors.fake_quant import (
    FakeQuantLinear,
    fake_quant_layers,
    fake_quantize,
    search_scales,
    to_code,
)
from pipelines.quant_formats import QuantFormat

Batch = Mapping[str, Tensor]
# The paper's: on the Hessian's diagonal, as a share of its mean.
_DAMPENING = 0.01


class _Reached(Exception):
    """Ends a forward pass at the layer whose inputs are wanted."""


@torch.no_grad()
def gptq(model: Any, fmt: QuantFormat, batches: Sequence[Batch]) -> None:
    """Fake-quantize the model in place, its master weights being GPTQ's choice.

    Layers go in the model's order, each calibrated on what the ones before it, already quantized,
    give it. Each layer takes one pass over the batches, up to that layer.

    Args:
        batches: keyword arguments of the model's forward pass. All positions count: no padding.

    Raises:
        ValueError: the format is not int4, or a layer cannot have it.
    """
    if fmt.kind != "int4":
        raise ValueError(f"GPTQ is for int4 here, not {fmt.kind}; to fix: use scales mse for it")
    fake_quantize(model, fmt, "mse")
    for layer in fake_quant_layers(model).values():
        weight, scales = round_columns(layer.weight, _hessian(model, layer, batches), fmt)
        layer.weight.copy_(weight)
        layer.log_scale.copy_(scales.log())


@torch.no_grad()
def round_columns(weight: Tensor, hessian: Tensor, fmt: QuantFormat) -> tuple[Tensor, Tensor]:
    """Rounded weights (outputs, inputs) and their scales (outputs, groups).

    Args:
        hessian: of the layer's squared output error, up to a factor: (inputs, inputs).
    """
    weight, inputs = weight.clone(), weight.shape[1]
    size = fmt.group_size or inputs
    unit = torch.ones((), device=weight.device)
    feedback = _feedback(hessian)
    scales = []
    for start in range(0, inputs, size):
        group, here = weight[:, start : start + size], feedback[start : start + size]
        scale = search_scales(group, fmt, unit, "mse")
        errors = torch.zeros_like(group)
        for column in range(size):
            row = here[column, start : start + size]
            rounded = to_code(group[:, column] / scale[:, 0], fmt.kind) * scale[:, 0]
            errors[:, column] = (group[:, column] - rounded) / row[column]
            group[:, column:] -= errors[:, column].outer(row[column:])
            group[:, column] = rounded
        weight[:, start + size :] -= errors @ here[:, start + size :]
        scales.append(scale)
    return weight, torch.cat(scales, dim=1)


def _feedback(hessian: Tensor) -> Tensor:
    """The upper Cholesky factor of the dampened inverse: row i serves the columns from i on."""
    diagonal = hessian.diagonal()
    dampening = _DAMPENING * diagonal.mean().clamp_min(1e-8)
    # Inputs that were never active round on their own.
    dampening = torch.where(diagonal == 0, 1.0, dampening)
    lower = torch.linalg.cholesky(hessian + dampening.diag())
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)


def _hessian(model: Any, layer: FakeQuantLinear, batches: Sequence[Batch]) -> Tensor:
    """Mean over all positions of the outer product of the layer's input with itself."""
    total = torch.zeros(layer.in_features, layer.in_features, device=layer.weight.device)
    positions = 0

    def collect(_: torch.nn.Module, inputs: tuple[Tensor]) -> None:
        nonlocal positions
        x = inputs[0].float().flatten(0, -2)
        total.addmm_(x.T, x)
        positions += len(x)
        raise _Reached

    hook = layer.register_forward_pre_hook(collect)
    try:
        for batch in batches:
            try:
                model(**batch)
            except _Reached:
                continue
    finally:
        hook.remove()
    return total / positions
