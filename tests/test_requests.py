from typing import Any

import pytest

from pipelines.errors import RowProblem
from pipelines.requests import Request, check


def user(content: Any = "hello") -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def called(calls: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": None, "tool_calls": calls}, *user()]


@pytest.mark.parametrize(
    ("prompt", "messages", "fields", "kind", "says"),
    [
        (None, None, {}, "invalid_row", "neither prompt nor messages"),
        ("a", user(), {}, "invalid_row", "both prompt and messages"),
        ("", None, {}, "invalid_row", "prompt is empty"),
        (" \n", None, {}, "invalid_row", "prompt is empty"),
        (42, None, {}, "invalid_row", "must be text, not int"),
        ("\ud800", None, {}, "invalid_row", "surrogate"),
        (None, "hello", {}, "invalid_row", "must be a list, not str"),
        (None, [], {}, "invalid_row", "messages is empty"),
        (None, ["hello"], {}, "invalid_row", "messages[0] must be an object"),
        (None, [{"role": "robot", "content": "x"}], {}, "invalid_row", "'robot'"),
        (None, [{"role": "user"}], {}, "invalid_row", "messages[0] has no content"),
        (None, user(7), {}, "invalid_row", "content must be text"),
        (None, user("\udfff"), {}, "invalid_row", "surrogate"),
        (None, user([{"type": "image_url"}]), {}, "unsupported", "text parts only"),
        ("a", None, {"max_tokens": -5}, "invalid_request", "max_tokens"),
        ("a", None, {"max_tokens": 0}, "invalid_request", "max_tokens"),
        ("a", None, {"max_tokens": 1.5}, "invalid_request", "max_tokens"),
        ("a", None, {"temperature": "hot"}, "invalid_request", "temperature"),
        ("a", None, {"temperature": 3}, "invalid_request", "temperature"),
        ("a", None, {"top_p": 0}, "invalid_request", "top_p"),
        ("a", None, {"stop": 3}, "invalid_request", "stop"),
        ("a", None, {"stop": "\ud800"}, "invalid_row", "surrogate"),
        ("a", None, {"seed": -1}, "invalid_request", "seed"),
        ("a", None, {"seed": 2**64}, "invalid_request", "seed"),
        ("a", None, {"structured_outputs": {}}, "invalid_request", "exactly one of"),
        (
            "a",
            None,
            {"structured_outputs": {"regex": "a", "choice": ["b"]}},
            "invalid_request",
            "e",
        ),
        ("a", None, {"structured_outputs": {"choice": []}}, "invalid_request", "at least 1"),
        ("a", None, {"structured_outputs": {"regex": 5}}, "invalid_request", "valid string"),
        ("a", None, {"structured_outputs": {"xml": "a"}}, "invalid_request", "not permitted"),
        ("a", None, {"tools": []}, "invalid_request", "tools"),
        ("a", None, {"tools": [{"type": "function"}]}, "invalid_request", '"function"'),
        ("a", None, {"tool_choice": "maybe"}, "invalid_request", "tool_choice"),
        ("a", None, {"n": 0}, "invalid_request", "n:"),
        (None, user([{"type": "text", "text": 5}]), {}, "invalid_row", "part without text"),
        (None, called("f"), {}, "invalid_row", "messages[0].tool_calls must be a list of calls"),
        (None, called(["f"]), {}, "invalid_row", "tool_calls"),
        (None, called([{"name": "f"}]), {}, "invalid_row", "tool_calls"),
        (None, called([{"function": {"arguments": "{}"}}]), {}, "invalid_row", "tool_calls"),
        (None, called([{"function": {"name": "f", "arguments": 5}}]), {}, "invalid_row", "calls"),
        ("a", None, {"repetition_penalty": float("inf")}, "invalid_request", "finite"),
        ("a", None, {"logit_bias": {"1": float("nan")}}, "invalid_request", "finite"),
    ],
)
def test_a_bad_row_has_a_reason(
    prompt: Any, messages: Any, fields: dict[str, Any], kind: str, says: str
) -> None:
    problem = check(prompt, messages, fields)
    assert isinstance(problem, RowProblem)
    assert problem.kind == kind
    assert says in problem.message


def test_a_prompt_is_one_user_message() -> None:
    assert check("hello", None, {}) == check(None, user(), {})


def test_omitted_fields_stay_out_and_whole_floats_are_integers() -> None:
    request = check("a", None, {"max_tokens": 48.0, "temperature": None, "seed": 7})
    assert isinstance(request, Request)
    assert request.sampling == {"max_tokens": 48, "seed": 7}


def test_text_parts_are_text() -> None:
    request = check(
        None, user([{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]), {}
    )
    assert isinstance(request, Request)
    assert request == check("hello", None, {}), "the model gets the text, not its parts"


def test_a_request_survives_its_json() -> None:
    request = check(None, [{"role": "system", "content": "é\u2028"}, *user()], {"stop": ["x"]})
    assert isinstance(request, Request)
    assert Request.from_json(request.to_json()) == request


@pytest.mark.parametrize(
    ("own", "defaults", "deterministic"),
    [
        ({}, {"temperature": 0.0}, True),
        ({}, {}, False),
        ({"temperature": 0.7}, {"temperature": 0.0}, False),
        ({"temperature": 0.7, "seed": 1}, {}, True),
        ({"temperature": 0.0}, {"temperature": 0.7}, True),
    ],
)
def test_only_greedy_or_seeded_requests_are_deterministic(
    own: dict[str, Any], defaults: dict[str, Any], deterministic: bool
) -> None:
    assert Request(user(), own).is_deterministic(defaults) is deterministic
