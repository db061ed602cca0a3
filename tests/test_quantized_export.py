"""Exported files hold the numbers of the fake-quantized model, and the real engine computes so."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from conftest import ROOT
from quantized import needs_four_bits
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from actors.fake_quant import dequantized_weights, fake_quantize
from actors.quantized_export import export, scheme_of
from demo.evaluate import MAX_NEW_TOKENS, held_out_questions
from demo.system_prompts import chat
from pipelines.formats import weight_formats
from pipelines.quant_formats import QuantFormat

MODELS = ROOT / "demo/models"
SMALL = MODELS / "small"
INT4, INT8, NVFP4 = QuantFormat("int4", 32), QuantFormat("int8", None), QuantFormat("nvfp4", 16)
FILE = "model.safetensors"
QUESTIONS = 140


def quantized(source: Path, fmt: QuantFormat) -> Any:
    """With scales that are none of their group's largest weight, as after training."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    fake_quantize(model, fmt, "mse", trainable_scales=True)
    return model


@pytest.mark.parametrize(
    ("fmt", "name"),
    [(INT4, "W4A16"), (INT8, "W8A8-INT8"), (NVFP4, "NVFP4")],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_the_file_decompresses_to_the_weights_of_training(
    tmp_path: Path, fmt: QuantFormat, name: str
) -> None:
    """By compressed-tensors' own decompression; all else is the source's."""
    model = quantized(SMALL, fmt)
    export(model, fmt, SMALL, tmp_path / "out")
    stored, source = load_file(tmp_path / "out/model.safetensors"), load_file(SMALL / FILE)
    scheme = scheme_of(fmt)
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    for module, weight in dequantized_weights(model).items():
        parts = [part for part in stored if part.startswith(f"{module}.")]
        state = {part.removeprefix(f"{module}."): stored.pop(part) for part in parts}
        # The scales' dtype is that of the result, and bf16 would round it.
        state["weight_scale"] = state["weight_scale"].float()
        assert torch.equal(compressor.decompress(state, scheme)["weight"].float(), weight)
        del source[f"{module}.weight"]
    assert stored.keys() == source.keys()
    assert all(torch.equal(stored[key], source[key]) for key in source)
    assert [found.name for found in weight_formats(tmp_path / "out", {})] == [name]


def test_an_export_has_all_that_a_model_folder_has(tmp_path: Path) -> None:
    export(quantized(SMALL, INT4), INT4, SMALL, tmp_path / "new/out")
    assert {f.name for f in (tmp_path / "new/out").iterdir()} == {f.name for f in SMALL.iterdir()}
    for file in SMALL.iterdir():
        if file.name not in (FILE, "config.json"):
            assert (tmp_path / "new/out" / file.name).read_bytes() == file.read_bytes()
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["out"]


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    model = quantized(SMALL, INT4)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        export(model, INT4, source, tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["source"]


def test_an_export_refuses_another_format_and_a_folder_that_exists(tmp_path: Path) -> None:
    model = quantized(SMALL, INT4)
    with pytest.raises(ValueError, match=r"not quantized to .*int8"):
        export(model, INT8, SMALL, tmp_path / "out")
    with pytest.raises(FileExistsError, match="remove it"):
        export(model, INT4, SMALL, tmp_path)


@pytest.mark.parametrize("group_size", [32, 64])
def test_int4_files_of_the_large_model_are_a_third_of_bf16(tmp_path: Path, group_size: int) -> None:
    fmt = QuantFormat("int4", group_size)
    export(quantized(MODELS / "large", fmt), fmt, MODELS / "large", tmp_path / "out")
    sizes = [(folder / FILE).stat().st_size for folder in (tmp_path / "out", MODELS / "large")]
    print(f"int4 in groups of {group_size}: {sizes[0]} of {sizes[1]} bytes")
    assert sizes[0] <= 0.35 * sizes[1]


def engine_answers(folder: Path) -> list[tuple[list[int], list[int]]]:
    """Token ids of held-out prompts and of vLLM's greedy answers."""
    from vllm import LLM, SamplingParams

    llm = LLM(str(folder), dtype="bfloat16", enforce_eager=True, max_model_len=1024)
    chats = [chat(question.prompt) for question in held_out_questions(QUESTIONS, seed=0)]
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_NEW_TOKENS)
    requests = llm.chat(chats, sampling, use_tqdm=False)
    answers = [(r.prompt_token_ids, list(r.outputs[0].token_ids)) for r in requests]
    llm.llm_engine.engine_core.shutdown()
    return answers


@torch.inference_mode()
def agreement(model: Any, answers: list[tuple[list[int], list[int]]]) -> float:
    """Share of the answers' positions where the model would choose the same token."""
    same = total = 0
    for prompt, answer in answers:
        logits = model(input_ids=torch.tensor([prompt + answer[:-1]])).logits[0]
        chosen = logits[len(prompt) - 1 :].argmax(-1).tolist()
        same += sum(a == b for a, b in zip(chosen, answer, strict=True))
        total += len(answer)
    print(f"{same} of {total} positions equal")
    return same / total


@pytest.mark.parametrize(
    "fmt", [pytest.param(INT4, marks=needs_four_bits), INT8], ids=lambda fmt: fmt.kind
)
def test_the_engine_chooses_the_tokens_of_the_fake_quantized_model(
    tmp_path: Path, fmt: QuantFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    # On CPUs with AMX vLLM would compute int4 with 8-bit activations, which is another format.
    monkeypatch.setenv("VLLM_CPU_INT4_W4A8", "0")
    model = quantized(SMALL, fmt)
    export(model, fmt, SMALL, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert agreement(model, engine_answers(tmp_path / "out")) >= 0.99
