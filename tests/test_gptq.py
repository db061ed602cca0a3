"""GPTQ gives a smaller error in what layers and models put out than rounding to nearest."""

from typing import Any

import pytest
import torch
from conftest import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.fake_quant import dequantized_weights, fake_quant_layers, fake_quantize
from actors.gptq import gptq, round_columns
from demo.evaluate import held_out_questions
from demo.system_prompts import chat
from pipelines.quant_formats import QuantFormat

SMALL = ROOT / "demo/models/small"
INT4 = QuantFormat("int4", 32)


def test_the_output_error_of_a_layer_is_below_rounding_to_nearest() -> None:
    """Inputs that go together, as those of language models do, let columns make up for others."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(16, 128, generator=generator)
    x = torch.randn(2048, 16, generator=generator) @ mixing
    x += 0.3 * torch.randn(2048, 128, generator=generator)
    layer = torch.nn.Linear(128, 64, bias=False)
    weight = layer.weight.detach()
    found, scales = round_columns(weight, x.T @ x / len(x), INT4)
    assert scales.shape == (64, 4)
    codes = found.unflatten(1, (4, 32)) / scales.unsqueeze(-1)
    assert torch.equal(codes, codes.round().clamp(-8, 7))

    groups = weight.unflatten(1, (4, 32))
    scale = groups.abs().amax(-1, keepdim=True) / 7.5
    nearest = ((groups / scale).round().clamp(-8, 7) * scale).flatten(1)
    errors = [(x @ (w - weight).T).square().sum() for w in (found, nearest)]
    assert errors[0] < 0.5 * errors[1]


def test_inputs_that_are_never_active_are_rounded_on_their_own() -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    hessian = torch.zeros(32, 32)
    found, scales = round_columns(weight, hessian, INT4)
    assert torch.equal(found, (weight / scales).round().clamp(-8, 7) * scales)


def small_model() -> Any:
    return AutoModelForCausalLM.from_pretrained(SMALL, dtype=torch.float32)


def batches(seed: int) -> list[dict[str, torch.Tensor]]:
    """Questions with their answers, one a batch: no padding."""
    tokenizer = AutoTokenizer.from_pretrained(SMALL)
    made = []
    for question in held_out_questions(56, seed):
        text = tokenizer.apply_chat_template(
            chat(question.prompt), tokenize=False, add_generation_prompt=True
        )
        made.append(tokenizer(text + question.label, return_tensors="pt"))
    return [{"input_ids": batch["input_ids"]} for batch in made]


@torch.inference_mode()
def divergence(model: Any, teacher: Any, held_out: list[dict[str, torch.Tensor]]) -> float:
    """Mean forward KL to the teacher per position, in nats."""
    total, positions = 0.0, 0
    for batch in held_out:
        wanted, found = (m(**batch).logits[0].log_softmax(-1) for m in (teacher, model))
        total += float((wanted.exp() * (wanted - found)).sum())
        positions += len(wanted)
    return total / positions


def test_a_model_stays_nearer_to_its_teacher_than_by_rounding_to_nearest() -> None:
    teacher, models = small_model(), {name: small_model() for name in ("max", "mse", "gptq")}
    fake_quantize(models["max"], INT4, "max")
    fake_quantize(models["mse"], INT4, "mse")
    gptq(models["gptq"], INT4, batches(seed=1))
    held_out = batches(seed=2)
    found = {name: divergence(model, teacher, held_out) for name, model in models.items()}
    print(found)
    assert found["gptq"] < found["max"]
    assert found["gptq"] < found["mse"]
    layers, weights = fake_quant_layers(models["gptq"]), dequantized_weights(models["gptq"])
    assert all(torch.allclose(layers[name].weight, weights[name]) for name in weights)


def test_formats_without_a_column_order_are_refused() -> None:
    with pytest.raises(ValueError, match="GPTQ is for int4"):
        gptq(small_model(), QuantFormat("int8", None), [])
