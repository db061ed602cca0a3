"""Fake quantization against slow references: the numbers, their gradients, and the scales."""

import struct
from typing import Any

import pytest
import torch
from conftest import ROOT
from transformers import AutoModelForCausalLM

from actors.fake_quant import (
    FakeQuantLinear,
    dequantized_weights,
    fake_quant_layers,
    fake_quantize,
    fake_quantized,
    quantizable,
    refresh_scales,
)
from pipelines.quant_formats import QuantFormat, format_problem

INT4, INT8, NVFP4 = QuantFormat("int4", 32), QuantFormat("int8", None), QuantFormat("nvfp4", 16)
FORMATS = [INT4, INT8, NVFP4]
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
E4M3 = [m / 8 * 2**-6 for m in range(8)]
E4M3 += [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)][:-1]


def nearest(value: float, sizes: list[float]) -> float:
    """The nearest of the sizes, with the value's sign; of two, the one at an even place."""
    size = min(sizes, key=lambda s: (abs(abs(value) - s), sizes.index(s) % 2))
    return -size if value < 0 else size


def bf16(value: float) -> float:
    bits = int.from_bytes(struct.pack(">f", value))
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
    return struct.unpack(">f", bits.to_bytes(4))[0]


def reference(group: list[float], kind: str, unit: float) -> list[float]:
    """One group quantized with the scale of its largest weight, number by number."""
    widest = max(map(abs, group))
    if kind == "nvfp4":
        scale = nearest(widest / 6 / unit, E4M3) * unit
        return [nearest(w / scale, E2M1) * scale for w in group]
    most = {"int4": 7, "int8": 127}[kind]
    scale = bf16(widest / (most + 0.5))
    sizes = [float(i) for i in range(2 * most)]
    return [max(-most - 1, min(most, nearest(w / scale, sizes))) * scale for w in group]


def linear_of(weight: torch.Tensor) -> torch.nn.Linear:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = torch.nn.Parameter(weight)
    return layer


def layer_of(weight: torch.Tensor, fmt: QuantFormat, **options: Any) -> FakeQuantLinear:
    chosen = {"search": "max", "trainable_scales": False, "unit": 1.0, **options}
    return FakeQuantLinear(linear_of(weight), fmt, **chosen)


def set_scale(layer: FakeQuantLinear, scale: float) -> None:
    with torch.no_grad():
        layer.log_scale.fill_(scale).log_()


def random_weight(outputs: int, inputs: int) -> torch.Tensor:
    """Rows of very different sizes, one of them all zeros."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator)
    weight *= torch.logspace(-3, 0, outputs).unsqueeze(1)
    weight[0] = 0.0
    return weight


def small_model(dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(ROOT / "demo/models/small", dtype=dtype)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.kind)
def test_weights_are_the_nearest_codes_times_the_stored_scale(fmt: QuantFormat) -> None:
    weight = random_weight(6, 96)
    unit = 2.0**-9 if fmt.kind == "nvfp4" else 1.0
    found = layer_of(weight, fmt, unit=unit).dequantized().tolist()
    size = fmt.group_size or 96
    for row, expected in zip(found[1:], weight.tolist()[1:], strict=True):
        for start in range(0, 96, size):
            group = expected[start : start + size]
            assert row[start : start + size] == reference(group, fmt.kind, unit)
    assert found[0] == [0.0] * 96


def test_ties_of_fp4_round_to_the_even_code() -> None:
    ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -5.0, 6.0, 7.0, -9.0, 0.2, 1.8, 3.6, 5.1]
    layer = layer_of(torch.tensor([ties]), NVFP4)
    set_scale(layer, 1.0)
    even = [0, 1, 1, 2, 2, 4, 4, 0, -4, 6, 6, -6, 0, 2, 4, 6]
    assert layer.codes().tolist() == [even]


@pytest.mark.parametrize(
    ("fmt", "weights", "kept"),
    [
        (INT4, [0.6, 3.7, 3.8, 10.0, -4.2, -4.3], [1, 1, 0, 0, 1, 0]),
        (INT8, [0.6, 63.7, 63.8, 100.0, -64.2, -64.3], [1, 1, 0, 0, 1, 0]),
        (NVFP4, [0.6, 3.4, 3.6, 10.0, -3.4, -3.6], [1, 1, 0, 0, 1, 0]),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_clipped_weight_gets_no_gradient_and_any_other_passes_it(
    fmt: QuantFormat, weights: list[float], kept: list[int]
) -> None:
    """By hand, at scale 0.5: 3.7 is 7.4 steps and rounds to 7; 3.8 is 7.6 and is clipped to 7."""
    weight = torch.zeros(1, 32)
    weight[0, : len(weights)] = torch.tensor(weights)
    layer = layer_of(weight, fmt)
    set_scale(layer, 0.5)
    signal = torch.arange(1.0, 33.0)
    (layer.dequantized() * signal).sum().backward()
    expected = signal * torch.tensor([*kept, *[1] * (32 - len(kept))])
    assert layer.weight.grad.tolist() == [expected.tolist()]


def test_a_scale_learns_from_clipped_weights_as_finite_differences_say() -> None:
    """All weights clipped, the result is linear in the scale: no rounding to look through."""
    layer = layer_of(torch.full((1, 32), 9.0), INT4, trainable_scales=True)
    signal = torch.arange(1.0, 33.0)

    def result(scale: float) -> torch.Tensor:
        set_scale(layer, scale)
        return (layer.dequantized() * signal).sum()

    # 0.5 and its two neighbours here are bf16 numbers.
    slope = (result(0.5 + 2**-6) - result(0.5 - 2**-6)) / 2**-5
    result(0.5).backward()
    assert layer.log_scale.grad.item() == pytest.approx(slope.item() * 0.5)


def test_a_scale_learns_from_kept_weights_what_lsq_says() -> None:
    """By hand, at scale 0.5: 0.6 is 1.2 steps, rounded down by 0.2; 0.9 is rounded up by 0.2.

    That is the slope of `weight + rounding * scale` with the rounding held fixed.
    """
    weight = torch.zeros(1, 32)
    weight[0, :2] = torch.tensor([0.6, 0.9])
    layer = layer_of(weight, INT4, trainable_scales=True)
    set_scale(layer, 0.5)
    signal = torch.arange(1.0, 33.0)
    (layer.dequantized() * signal).sum().backward()
    assert layer.log_scale.grad.item() == pytest.approx(0.5 * (-0.2 * 1 + 0.2 * 2), abs=1e-6)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.kind)
def test_searched_scales_never_err_more_than_the_largest_weights(fmt: QuantFormat) -> None:
    weight = random_weight(32, 192)
    size = fmt.group_size or 192
    unit = 2.0**-9 if fmt.kind == "nvfp4" else 1.0
    errors = {}
    for search in ("max", "mse"):
        found = layer_of(weight, fmt, search=search, unit=unit).dequantized()
        errors[search] = (found - weight).square().unflatten(1, (-1, size)).sum(-1)
    assert (errors["mse"] <= errors["max"]).all()
    assert errors["mse"].sum() < errors["max"].sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_multiplies_the_codes_of_tokens_and_weights(dtype: torch.dtype) -> None:
    layer = layer_of(random_weight(8, 64), INT8)
    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[0, 0] = 0.0
    token_scale = x.double().abs().amax(-1, keepdim=True) / 127
    token = (x.double() / token_scale).nan_to_num().round()
    sums = token @ layer.codes().double().T
    expected = sums * token_scale * layer.stored_scales().double().flatten()
    found = layer(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype))


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.kind)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_weight_and_scale_of_a_model_gets_a_finite_gradient(
    fmt: QuantFormat, dtype: torch.dtype
) -> None:
    model = small_model(dtype)
    fake_quantize(model, fmt, "mse", trainable_scales=True)
    ids = torch.arange(40, 60).unsqueeze(0)
    model(input_ids=ids, labels=ids).loss.backward()
    layers = fake_quant_layers(model)
    assert len(layers) == 7 * model.config.num_hidden_layers
    for layer in layers.values():
        assert layer.weight.dtype == torch.float32
        for trained in (layer.weight, layer.log_scale):
            assert trained.grad.isfinite().all()
            assert trained.grad.count_nonzero() > 0


def test_the_output_embedding_stays_as_it_is() -> None:
    model = small_model()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sorted({name.rpartition(".")[2] for name in quantizable(model)}) == [
        *("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    ]
    assert not fake_quantized(model)
    fake_quantize(model, INT4, "max")
    assert fake_quantized(model)
    assert type(model.lm_head) is torch.nn.Linear


def test_scales_follow_the_master_weights_when_refreshed_unless_they_are_trained() -> None:
    for fmt in FORMATS:
        for trainable in (False, True):
            model = small_model()
            fake_quantize(model, fmt, "mse", trainable_scales=trainable)
            before = dequantized_weights(model)
            with torch.no_grad():
                for layer in fake_quant_layers(model).values():
                    layer.weight *= 4
            refresh_scales(model)
            for name, weight in dequantized_weights(model).items():
                assert torch.equal(weight, 4 * before[name]) is not trainable


def test_fp4_layers_that_the_engine_fuses_share_their_unit_and_fit_bf16() -> None:
    model = small_model()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight *= 50
    fake_quantize(model, NVFP4, "mse")
    units = {name: layer.unit.item() for name, layer in fake_quant_layers(model).items()}
    attention = {units[name] for name in units if "layers.0.self_attn" in name}
    assert len(attention) == 1
    assert attention != {units["model.layers.1.self_attn.q_proj"]}
    for weight in dequantized_weights(model).values():
        assert torch.equal(weight, weight.to(torch.bfloat16).float())


def test_scales_and_weights_survive_a_checkpoint() -> None:
    for fmt in FORMATS:
        trained, resumed = small_model(), small_model()
        fake_quantize(trained, fmt, "mse", trainable_scales=True)
        fake_quantize(resumed, fmt, "max", trainable_scales=True)
        resumed.load_state_dict(trained.state_dict())
        expected = dequantized_weights(trained)
        assert all(torch.equal(w, expected[n]) for n, w in dequantized_weights(resumed).items())


@pytest.mark.parametrize(
    ("fmt", "shapes", "problem"),
    [
        (QuantFormat("int4", 32), {"a": (7, 64)}, None),
        (QuantFormat("int4", 48), {"a": (64, 48)}, "int4 cannot have group_size 48.*32 or 64"),
        (QuantFormat("int4", None), {"a": (64, 64)}, "int4 cannot have group_size None"),
        (QuantFormat("int8", 32), {"a": (64, 64)}, "int8 cannot have group_size 32.*to none"),
        (QuantFormat("int8", None), {"a": (7, 13)}, None),
        (QuantFormat("nvfp4", 32), {"a": (64, 64)}, "nvfp4 cannot have group_size 32.*to 16"),
        (
            QuantFormat("int4", 128),
            {"a": (64, 256), "b": (64, 704), "c": (64, 192)},
            "does not fit b: its 704 inputs.*set group_size to 64",
        ),
        (QuantFormat("nvfp4", 16), {"a": (64, 24)}, "does not fit a: its 24.*use int8"),
        (QuantFormat("int8", None), {}, "no linear layers"),
    ],
)
def test_a_format_that_does_not_fit_is_explained_with_a_remedy(
    fmt: QuantFormat, shapes: dict[str, tuple[int, int]], problem: str | None
) -> None:
    found = format_problem(fmt, shapes)
    if problem is None:
        assert found is None
    else:
        with pytest.raises(ValueError, match=problem):
            raise ValueError(found)


def test_a_model_that_cannot_have_the_format_is_left_alone() -> None:
    model = AutoModelForCausalLM.from_pretrained(ROOT / "demo/models/large")
    with pytest.raises(ValueError, match=r"does not fit model\.layers\.0\.mlp\.down_proj"):
        fake_quantize(model, QuantFormat("int4", 128), "max")
    assert not fake_quantized(model)
