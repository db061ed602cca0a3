"""How answers are read, with vLLM's own parsers over texts that models write."""

import json
from typing import Any

import pytest
from conftest import ROOT

from actors.vllm_answers import Message, Reader, read_pooled
from actors.vllm_requests import Ask
from pipelines.errors import RunFailure
from pipelines.tier import VLLM

MODEL = ROOT / "demo/models/small"
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'
THOUGHT = "Here is my thought process:It asks for Bern.Here is my response:"


@pytest.fixture(scope="module")
def reader() -> Reader:
    from transformers import AutoConfig, AutoTokenizer
    from vllm.parser import ParserManager

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    parser = ParserManager.get_parser("hermes", "granite", enable_auto_tools=True)

    class Model:
        hf_config = AutoConfig.from_pretrained(MODEL)
        hf_text_config = hf_config

    return Reader("generate", tokenizer, Model(), parser)


def ask(**fields: Any) -> Ask:
    from vllm import SamplingParams
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    chat = ChatCompletionRequest(messages=[{"role": "user", "content": "x"}], **fields)
    return Ask([1, 2], SamplingParams(), chat=chat)


def completion(text: str, finish_reason: str = "stop") -> Any:
    from vllm import CompletionOutput

    return CompletionOutput(0, text, [1], None, None, finish_reason=finish_reason)


def test_thoughts_and_calls_are_split_off(reader: Reader) -> None:
    answer = reader.read(ask(tools=TOOLS), [completion(THOUGHT + CALL)])
    assert answer.problem is None
    assert answer.reasoning == "It asks for Bern."
    assert answer.response is None
    (call,) = json.loads(answer.tool_calls or "")
    assert json.loads(call["function"]["arguments"]) == {"city": "Bern"}
    assert answer.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("fields", "text", "content"),
    [
        ({}, "Bern", "Bern"),
        ({}, THOUGHT + "Bern", "Bern"),
        ({}, CALL, CALL),
        ({"tools": TOOLS, "tool_choice": "none"}, CALL, CALL),
        ({"tools": TOOLS}, "Bern", "Bern"),
        ({"tools": TOOLS}, CALL[:40], CALL[:40]),
    ],
)
def test_text_that_calls_nothing_is_text(
    reader: Reader, fields: dict[str, Any], text: str, content: str
) -> None:
    message = reader.message(ask(**fields), text, [])
    assert (message.content, list(message.tool_calls)) == (content, [])


def test_a_text_that_breaks_the_parser_is_kept_in_an_error_row(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "message", lambda *_: json.loads("{"))
    answer = reader.read(ask(), [completion("half a {")])
    assert answer.problem is not None
    assert (answer.problem.kind, answer.response) == ("parser", "half a {")


def test_several_choices_are_all_kept_and_the_first_is_the_response(reader: Reader) -> None:
    answer = reader.read(ask(), [completion("a"), completion("b", "length")])
    choices = json.loads(answer.choices or "")
    assert answer.response == "a"
    assert [c["message"]["content"] for c in choices] == ["a", "b"]
    assert [c["finish_reason"] for c in choices] == ["stop", "length"]


def test_without_a_parser_nothing_is_split() -> None:
    bare = Reader("generate", None, None, None)
    assert bare.message(ask(), THOUGHT, []) == Message(THOUGHT)


def test_what_a_vector_means_depends_on_the_task() -> None:
    import torch

    vector = torch.tensor([0.25, 0.75])
    assert read_pooled("embed", vector, {}).embedding == [0.25, 0.75]
    labelled = read_pooled("classify", vector, {0: "spam", 1: "ham"})
    assert labelled.response == "ham"
    assert json.loads(labelled.scores or "") == {"spam": 0.25, "ham": 0.75}
    assert json.loads(read_pooled("score", vector[:1], {}).scores or "") == {"score": 0.25}


@pytest.mark.parametrize("key", ["tool_parser", "reasoning_parser"])
def test_an_unknown_parser_is_named_with_the_known_ones(key: str) -> None:
    from actors.vllm_arguments import check_parsers

    with pytest.raises(RunFailure, match=f"{key}: vLLM has no 'gpt-12'; it has .*deepseek_v3"):
        check_parsers(VLLM(kind="vllm", model=str(MODEL), **{key: "gpt-12"}))
