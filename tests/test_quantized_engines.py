"""Quantized copies of the demo's small model in the real engine, on this CPU."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import quantized
from conftest import ROOT

from actors.vllm_engine import VLLMEngine
from pipelines.errors import RunFailure
from pipelines.formats import model_refusal, this_cpu, weight_formats
from pipelines.requests import Request
from pipelines.tier import VLLM

MODEL = ROOT / "demo/models/small"
QUESTIONS = 40


def easy_questions() -> list[tuple[Request, str]]:
    rows = map(json.loads, (ROOT / "demo/prompts.jsonl").read_text().splitlines())
    asked = []
    for row in rows:
        if row.get("difficulty") == "easy" and row.get("label"):
            messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
            asked.append((Request(messages, {"max_tokens": 48}), row["label"]))
    return asked[:QUESTIONS]


def engine_of(model: Path) -> VLLMEngine:
    arguments = {"dtype": "bfloat16", "enforce_eager": True, "max_model_len": 1024}
    config = VLLM(kind="vllm", model=str(model), engine_args=arguments, cpu_threads=1)
    return VLLMEngine(config, {"temperature": 0.0}, 1, stall_s=60)


async def share_right(model: Path) -> float:
    engine = engine_of(model)
    await engine.start()
    asked = easy_questions()
    answers = await asyncio.gather(*(engine.answer(request) for request, _ in asked))
    await engine.stop()
    right = [a.response == label for a, (_, label) in zip(answers, asked, strict=True)]
    return sum(right) / len(right)


@pytest.mark.parametrize(
    ("scheme", "name"),
    [
        pytest.param(quantized.W4A16, "W4A16", marks=quantized.needs_four_bits),
        (quantized.W8A8, "W8A8-INT8"),
    ],
)
def test_a_quantized_model_loads_on_the_cpu_and_is_mostly_right(
    tmp_path: Path, scheme: dict[str, Any], name: str
) -> None:
    """The unquantized model answers .97 of easy questions right."""
    model = quantized.quantize_model(MODEL, tmp_path / "model", scheme)
    assert [found.name for found in weight_formats(model, {})] == [name]
    assert model_refusal(model, {}, this_cpu()) is None
    assert asyncio.run(share_right(model)) >= 0.8


def test_an_engine_refuses_what_its_own_device_cannot_run(tmp_path: Path) -> None:
    scheme = {**quantized.W4A16, "weights": {**quantized.W4A16["weights"], "num_bits": 8}}
    model = quantized.quantize_model(MODEL, tmp_path / "model", scheme)
    with pytest.raises(RunFailure, match=r"W8A16 weights do not run on a CPU.* W8A8-INT8"):
        asyncio.run(engine_of(model).start())
