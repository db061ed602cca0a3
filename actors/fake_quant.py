"""Linear layers that train with the very numbers that a low-bit engine will compute with.

The master weights are float32 and are what is trained. Each forward pass rounds them to codes
times scales, the scales rounded to what is stored. Backwards, rounding counts as the identity
(straight-through), and a weight that was clipped gets no gradient: moving it further out would
change nothing.

With trainable scales the same two rules give LSQ's gradient (Esser et al. 2020, arXiv
1902.08153). It is taken by the scale's logarithm, as in TQT (Jain et al. 2020, arXiv 1903.08066):
a step is then relative, so one learning rate serves all layers, and a scale stays positive.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from pipelines.quant_formats import Kind, QuantFormat, format_problem

ScaleSearch = Literal["max", "mse"]
L = TypeVar("L", bound=torch.nn.Linear)

_LOWEST: Mapping[Kind, float] = {"int4": -8.0, "int8": -128.0, "nvfp4": -6.0}
_HIGHEST: Mapping[Kind, float] = {"int4": 7.0, "int8": 127.0, "nvfp4": 6.0}
# What a group's largest weight is scaled to, as compressed-tensors does it: half of the integer
# range, which lies between the codes on either side.
_EDGE: Mapping[Kind, float] = {"int4": 7.5, "int8": 127.5, "nvfp4": 6.0}
_E4M3_LEAST, _E4M3_MOST = 2.0**-9, 448.0
# The largest block scale at the start: scales that are trained may double before they saturate.
_E4M3_START = _E4M3_MOST / 2
# Scales tried by the search, as shares of the largest weight's: below 1 clips outliers, and up to
# 7.5 / 7 keeps the largest positive weight of 4 bits whole.
_RATIOS = [i / 64 for i in range(32, 72)]


def round_to_code(ratio: Tensor, kind: Kind) -> Tensor:
    """The nearest codes, ties to even, of weights divided by their scale; not yet clipped."""
    if kind != "nvfp4":
        return ratio.round()
    size = ratio.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return (ratio / step).round() * step


def round_scale(scale: Tensor, kind: Kind) -> Tensor:
    """Scales as they are stored, in float32: bf16, or E4M3 in units of the layer's `unit`."""
    if kind != "nvfp4":
        return scale.to(torch.bfloat16).float()
    return scale.clamp(_E4M3_LEAST, _E4M3_MOST).to(torch.float8_e4m3fn).float()


class _Code(torch.autograd.Function):
    """Weights by their scale to codes; the gradient passes where nothing was clipped."""

    @staticmethod
    def forward(ctx: Any, ratio: Tensor, kind: Kind) -> Tensor:
        rounded = round_to_code(ratio, kind)
        code = rounded.clamp(_LOWEST[kind], _HIGHEST[kind])
        ctx.save_for_backward(code == rounded)
        return code

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return gradients[0] * kept, None


def to_code(ratio: Tensor, kind: Kind) -> Tensor:
    """Codes of weights divided by their scale, with the gradient of training."""
    code: Tensor = _Code.apply(ratio, kind)  # type: ignore[no-untyped-call]
    return code


def search_scales(weight: Tensor, fmt: QuantFormat, unit: Tensor, search: ScaleSearch) -> Tensor:
    """Stored scales (outputs, groups) of a weight (outputs, inputs), in units of `unit`.

    `max` maps each group's largest weight to the edge of the range; `mse` takes, of that and of
    other ratios, the scale with the least squared error.
    """
    groups = _grouped(weight.detach().float(), fmt)
    widest = groups.abs().amax(-1) / (_EDGE[fmt.kind] * unit)
    # Any scale is right for zeros, but only one that is not tiny lets them grow.
    widest = torch.where(widest > 0, widest, 1.0)
    best = round_scale(widest, fmt.kind)
    if search == "max":
        return best
    least = _squared_error(groups, best * unit, fmt.kind)
    for ratio in _RATIOS:
        scale = round_scale(widest * ratio, fmt.kind)
        error = _squared_error(groups, scale * unit, fmt.kind)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best


def _squared_error(groups: Tensor, scale: Tensor, kind: Kind) -> Tensor:
    """Summed over each group: (outputs, groups, size) and (outputs, groups) to the latter."""
    scale = scale.unsqueeze(-1)
    return (to_code(groups / scale, kind) * scale - groups).square().sum(-1)


def _grouped(weight: Tensor, fmt: QuantFormat) -> Tensor:
    """(outputs, inputs) to (outputs, groups, size)."""
    return weight.reshape(weight.shape[0], -1, fmt.group_size or weight.shape[1])


class FakeQuantLinear(torch.nn.Linear):
    """A linear layer whose forward pass computes as the quantized layer would.

    Inputs may be float32 or bfloat16, with autocast or without; float16 would overflow.

    Attributes:
        weight: the float32 master weights (outputs, inputs).
        log_scale: natural logarithm of the scales (outputs, groups) in units of `unit`, before
            they are rounded; a parameter if trainable, else a buffer.
        unit: what stored scales are multiplied by; other than 1 only for nvfp4.
    """

    log_scale: Tensor
    unit: Tensor

    def __init__(
        self,
        source: torch.nn.Linear,
        fmt: QuantFormat,
        search: ScaleSearch,
        trainable_scales: bool,
        unit: float,
    ) -> None:
        super().__init__(source.in_features, source.out_features, bias=False, device="meta")
        self.fmt, self.search, self.trainable_scales = fmt, search, trainable_scales
        self.weight = torch.nn.Parameter(source.weight.detach().float())
        self.bias = source.bias
        self.register_buffer("unit", torch.tensor(unit, device=self.weight.device))
        scales = search_scales(self.weight, fmt, self.unit, search).log()
        if trainable_scales:
            self.log_scale = torch.nn.Parameter(scales)
        else:
            self.register_buffer("log_scale", scales)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        if self.fmt.kind == "int8":
            return self._forward_int8(x)
        return linear(x, self.dequantized().to(x.dtype), self.bias)

    def stored_scales(self) -> Tensor:
        """Scales (outputs, groups) in units of `unit`, exactly as they are exported."""
        fixed = self.log_scale.detach()
        return round_scale(fixed.exp(), self.fmt.kind) * (self.log_scale - fixed).exp()

    def codes(self) -> Tensor:
        """The codes' values in float32 (outputs, inputs): integers, or E2M1 numbers."""
        return self._codes(self._scales()).flatten(1)

    def dequantized(self) -> Tensor:
        """The weights (outputs, inputs) that the engine computes with, in float32."""
        scale = self._scales()
        return (self._codes(scale) * scale).flatten(1)

    def _scales(self) -> Tensor:
        return (self.stored_scales() * self.unit).unsqueeze(-1)

    def _codes(self, scale: Tensor) -> Tensor:
        return to_code(_grouped(self.weight, self.fmt) / scale, self.fmt.kind)

    def _forward_int8(self, x: Tensor) -> Tensor:
        """Multiplies the codes and scales the sums, as the engine does.

        Codes are exact in bf16. Scaled first, they would be rounded once more, by up to half of
        an 8-bit step.
        """
        scale = self._scales()
        token_scale = (x.detach().float().abs().amax(-1, keepdim=True) / 127).clamp_min(1e-20)
        token = to_code(x.float() / token_scale, self.fmt.kind)
        sums = linear(token.to(x.dtype), self._codes(scale).flatten(1).to(x.dtype))
        out = sums.float() * token_scale * scale.flatten()
        return (out if self.bias is None else out + self.bias).to(sums.dtype)


def quantizable(model: Any) -> dict[str, torch.nn.Linear]:
    """All linear layers of a transformers model, by name, but its output embedding."""
    embeddings = [model.get_output_embeddings(), model.get_input_embeddings()]
    kept = [module.weight for module in embeddings if module is not None]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and not any(module.weight is weight for weight in kept)
    }


def fake_quant_layers(model: torch.nn.Module) -> dict[str, FakeQuantLinear]:
    """The layers that `fake_quantize` has put in, by name."""
    named = model.named_modules()
    return {name: layer for name, layer in named if isinstance(layer, FakeQuantLinear)}


def fake_quantize(
    model: Any, fmt: QuantFormat, scales: ScaleSearch, trainable_scales: bool = False
) -> None:
    """Replace, in place, the quantizable layers by `FakeQuantLinear`.

    Without any training this is post-training quantization: round-to-nearest with scales `max`.

    Raises:
        ValueError: a layer cannot have the format.
    """
    layers = quantizable(model)
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
    if problem := format_problem(fmt, shapes):
        raise ValueError(problem)
    for siblings in _siblings(layers):
        unit = _unit(siblings.values(), fmt.kind)
        for name, layer in siblings.items():
            quantized = FakeQuantLinear(layer, fmt, scales, trainable_scales, unit)
            model.set_submodule(name, quantized)


@torch.no_grad()
def refresh_scales(model: torch.nn.Module) -> None:
    """Search the scales again, from the present master weights; trained ones are left alone."""
    for siblings in _siblings(fake_quant_layers(model)):
        for layer in siblings.values():
            if layer.trainable_scales:
                continue
            layer.unit.fill_(_unit(siblings.values(), layer.fmt.kind))
            found = search_scales(layer.weight, layer.fmt, layer.unit, layer.search)
            layer.log_scale.copy_(found.log())


def fake_quantized(model: torch.nn.Module) -> bool:
    """Whether `fake_quantize` was applied to this model."""
    return bool(fake_quant_layers(model))


@torch.no_grad()
def dequantized_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Of each fake-quantized layer, the weights (outputs, inputs) in float32 of the engine."""
    return {name: layer.dequantized() for name, layer in fake_quant_layers(model).items()}


def _siblings(layers: Mapping[str, L]) -> Iterable[dict[str, L]]:
    """Layers by the module that holds them."""
    held: dict[str, dict[str, L]] = {}
    for name, layer in layers.items():
        held.setdefault(name.rpartition(".")[0], {})[name] = layer
    return held.values()


def _unit(layers: Iterable[torch.nn.Linear], kind: Kind) -> float:
    """What the stored scales of all these layers are multiplied by.

    One for siblings: vLLM fuses some, as q, k and v, and keeps one global scale of theirs. A power
    of two: products of block scale, unit and E2M1 number then fit bf16 without rounding.
    """
    widest = max(float(layer.weight.detach().abs().max()) for layer in layers)
    if kind != "nvfp4" or widest == 0:
        return 1.0
    return 2.0 ** math.ceil(math.log2(widest / _EDGE[kind] / _E4M3_START))
