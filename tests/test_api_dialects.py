import json
from typing import Any

import pytest

from actors.api_anthropic import anthropic_usage
from actors.api_dialects import dialect_of
from actors.api_openai import openai_usage
from actors.api_reading import Unusable
from pipelines.api_tier import API
from pipelines.cost import Usage
from pipelines.requests import Request

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}


def api(**fields: Any) -> API:
    return API.model_validate({"kind": "api", "base_url": "http://h/v1", "model": "m", **fields})


CHAT = dialect_of(api())
COMPLETIONS = dialect_of(api(endpoint="completions"))
ANTHROPIC = dialect_of(api(dialect="anthropic"))


def request(*turns: tuple[str, str]) -> Request:
    return Request([{"role": role, "content": text} for role, text in turns], {})


HELLO = request(("user", "hello"))


def test_a_chat_request_has_its_fields_under_the_endpoints_names() -> None:
    fields = {"max_tokens": 5, "stop": "x", "seed": 1, "logprobs": 3, "top_k": 4, "n": None}
    own = dialect_of(api(max_tokens_field="max_completion_tokens", extra_body={"priority": 7}))
    assert own.body(HELLO, fields) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "max_completion_tokens": 5,
        "stop": "x",
        "seed": 1,
        "logprobs": True,
        "top_logprobs": 3,
        "top_k": 4,
        "priority": 7,
    }


def test_a_completion_request_is_its_prompt() -> None:
    body = COMPLETIONS.body(HELLO, {"max_tokens": 5, "logprobs": True, "top_logprobs": 2})
    assert body == {"model": "m", "prompt": "hello", "max_tokens": 5, "logprobs": 2}


def test_an_anthropic_request_is_said_in_its_words() -> None:
    asked = Request(
        [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "weather?"},
            {
                "role": "assistant",
                "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": '{"a": 1}'}}],
            },
            {"role": "tool", "tool_call_id": "c", "content": "rain"},
            {"role": "user", "content": "so?"},
        ],
        {},
    )
    fields = {
        "stop": "x", "top_k": -1, "temperature": 0.0, "tools": [TOOL], "tool_choice": "required",
        "parallel_tool_calls": False, "response_format": SCHEMA,
    }  # fmt: skip
    assert ANTHROPIC.body(asked, fields) == {
        "model": "m",
        "max_tokens": 4096,
        "system": "be brief",
        "temperature": 0.0,
        "messages": [
            {"role": "user", "content": "weather?"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}}],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c", "content": "rain"},
                    {"type": "text", "text": "so?"},
                ],
            },
        ],
        "stop_sequences": ["x"],
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    }


@pytest.mark.parametrize(
    ("dialect", "fields", "refused"),
    [
        (CHAT, {"lora": "a"}, "lora"),
        (CHAT, {"dimensions": 3}, "dimensions"),
        (CHAT, {"tools": [TOOL], "n": 3, "logprobs": True, "seed": 1}, None),
        (COMPLETIONS, {"tools": [TOOL]}, "tools"),
        (COMPLETIONS, {"tool_choice": "none"}, None),
        (ANTHROPIC, {"logprobs": True}, "logprobs"),
        (ANTHROPIC, {"logprobs": False, "n": 1}, None),
        (ANTHROPIC, {"n": 2}, "n:"),
        (ANTHROPIC, {"seed": 0}, "seed"),
        (ANTHROPIC, {"temperature": 1.5}, "temperature"),
        (ANTHROPIC, {"response_format": {"type": "json_object"}}, "response_format"),
        (ANTHROPIC, {"response_format": {"type": "text"}}, None),
        (ANTHROPIC, {"response_format": SCHEMA}, None),
    ],
)
def test_what_an_api_cannot_do_is_refused_by_name(
    dialect: Any, fields: dict[str, Any], refused: str | None
) -> None:
    problem = dialect.refuse(HELLO, fields)
    assert (problem is None) == (refused is None)
    if refused:
        assert problem.message.startswith(refused)


def test_completions_take_no_turns() -> None:
    problem = COMPLETIONS.refuse(request(("system", "s"), ("user", "u")), {})
    assert problem is not None
    assert problem.kind == "unsupported"


USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 4,
    "prompt_tokens_details": {"cached_tokens": 6},
}


def chat(message: dict[str, Any], reason: str = "stop", **choice: Any) -> dict[str, Any]:
    return {"index": 0, "message": message, "finish_reason": reason, **choice}


def test_a_chat_answer_is_read_whole() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    message = {"content": "hi", "reasoning_content": "hm", "tool_calls": calls}
    told = {
        "choices": [
            chat(message, "tool_calls", logprobs={"content": []}),
            chat({"content": "ho"}, index=1),
        ],
        "usage": USAGE,
    }
    answer = CHAT.read(told)
    assert (answer.response, answer.reasoning, answer.finish_reason) == ("hi", "hm", "tool_calls")
    assert json.loads(answer.tool_calls or "") == calls
    assert json.loads(answer.token_logprobs or "") == {"content": []}
    assert [c["message"]["content"] for c in json.loads(answer.choices or "")] == ["hi", "ho"]
    assert answer.usage == Usage(10, 6, 4)


def test_a_call_has_no_text_a_refusal_has_and_silence_is_empty() -> None:
    calls = [{"id": "c", "function": {"name": "f"}}]
    for message, text in (
        ({"content": None, "tool_calls": calls}, None),
        ({"content": None, "refusal": "no"}, "no"),
        ({"content": None}, ""),
        ({"content": ""}, ""),
    ):
        assert CHAT.read({"choices": [chat(message)], "usage": USAGE}).response == text


def test_a_completion_is_read() -> None:
    told = {"choices": [{"text": "hi", "finish_reason": "length"}], "usage": USAGE}
    answer = COMPLETIONS.read(told)
    assert (answer.response, answer.finish_reason, answer.choices) == ("hi", "length", None)


@pytest.mark.parametrize(
    ("reason", "ours"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("model_context_window_exceeded", "length"),
        ("something_new", "something_new"),
    ],
)
def test_anthropics_answer_is_said_in_openais_words(reason: str, ours: str) -> None:
    told = {
        "content": [
            {"type": "thinking", "thinking": "hm"},
            {"type": "text", "text": "hi"},
            {"type": "tool_use", "id": "c", "name": "f", "input": {"a": "ü"}},
        ],
        "stop_reason": reason,
        "usage": {"input_tokens": 3, "output_tokens": 2},
    }
    answer = ANTHROPIC.read(told)
    assert (answer.response, answer.reasoning, answer.finish_reason) == ("hi", "hm", ours)
    assert json.loads(answer.tool_calls or "") == [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "ü"}'}}
    ]


def test_anthropic_counts_its_cache_beside_the_input() -> None:
    given = {
        "input_tokens": 3,
        "cache_read_input_tokens": 50,
        "cache_creation_input_tokens": 7,
        "output_tokens": 2,
    }
    assert anthropic_usage({"usage": given}) == Usage(60, 50, 2)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": 5},
        {"prompt_tokens": -1, "completion_tokens": 1},
        {"prompt_tokens": 0, "completion_tokens": 1},
        {"prompt_tokens": "5", "completion_tokens": 1},
        {"prompt_tokens": True, "completion_tokens": 1},
        {**USAGE, "prompt_tokens_details": {"cached_tokens": 11}},
        {**USAGE, "prompt_tokens_details": {"cached_tokens": -1}},
    ],
)
def test_usage_that_cannot_be_is_never_taken_for_free(usage: Any) -> None:
    with pytest.raises(Unusable, match="usage"):
        openai_usage({"usage": usage})


@pytest.mark.parametrize(
    "told", [{}, {"choices": None}, {"choices": []}, {"choices": [1]}, {"choices": [{}]}]
)
def test_an_answer_without_an_answer_still_tells_what_it_cost(told: dict[str, Any]) -> None:
    with pytest.raises(Unusable) as error:
        CHAT.read({**told, "usage": USAGE})
    assert error.value.usage == Usage(10, 6, 4)


@pytest.mark.parametrize("told", [None, 3, [], "text"])
@pytest.mark.parametrize("dialect", [CHAT, COMPLETIONS, ANTHROPIC])
def test_what_is_no_object_is_no_answer(dialect: Any, told: Any) -> None:
    with pytest.raises(Unusable):
        dialect.read(told)
