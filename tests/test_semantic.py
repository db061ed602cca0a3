"""What a request asks, and which answers a similar question may find."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from blocks import block

from pipelines.cache_admission import admissible
from pipelines.requests import Request
from pipelines.semantic import Question, question_of

GREEDY = {"temperature": 0.0}
POLICY = b"p" * 16


def asked(
    text: str = "Where is it?",
    system: str | None = None,
    policy: bytes = POLICY,
    columns: dict[str, Any] | None = None,
    **sampling: Any,
) -> Question | None:
    turns = [{"role": "system", "content": system}] if system else []
    request = Request([*turns, {"role": "user", "content": text}], sampling)
    return question_of(request, policy, columns or {}, GREEDY)


def test_only_the_last_question_is_outside_of_its_scope() -> None:
    plain, other = asked(), asked("How old is it?")
    assert plain
    assert other
    assert plain.scope == other.scope
    assert (plain.text, other.text) == ("Where is it?", "How old is it?")


@pytest.mark.parametrize(
    "changed",
    [
        {"system": "Be brief."},
        {"policy": b"q" * 16},
        {"columns": {"tenant": "a"}},
        {"columns": {"tenant": None}},
        {"max_tokens": 5},
        {"stop": ["."]},
        {"temperature": 0},
    ],
)
def test_whatever_else_differs_is_another_scope(changed: dict[str, Any]) -> None:
    plain, other = asked(), asked(**changed)
    assert plain
    assert other
    assert plain.scope != other.scope


def test_tenants_are_scopes_of_their_own() -> None:
    scopes = {asked(columns={"tenant": tenant}).scope for tenant in ("a", "b", 1, None)}  # type: ignore[union-attr]
    assert len(scopes) == 4


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.7},
        {"temperature": 0.7, "seed": 3},
        {"n": 2},
        {"logprobs": True},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
    ],
)
def test_what_is_sampled_or_no_plain_text_is_no_question(sampling: dict[str, Any]) -> None:
    assert asked(**sampling) is None


def test_a_conversation_that_ends_with_an_answer_is_no_question() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert question_of(Request(turns, {}), POLICY, {}, GREEDY) is None


def finished(key: str, **more: Any) -> dict[str, Any]:
    return {
        "request_key": key * 16,
        "row_id": key,
        "status": "ok",
        "source": "generated",
        "response": "There.",
        "finish_reason": "stop",
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "tier": "only",
        "model": "m",
        "run_id": "run",
        "_shareable": True,
        "_scope": b"s" * 16,
        "_vector": np.ones(4, np.float16).tobytes(),
        "_request": Request([{"role": "user", "content": f"Where is {key}?"}], {}).to_json(),
        **more,
    }


def test_only_complete_own_answers_can_be_found_by_a_similar_question() -> None:
    table = block(
        "0",
        [
            finished("aa"),
            finished("bb", finish_reason="length"),
            finished("cc", _vector=None, _scope=None),
            finished("dd", source="cache_semantic"),
            finished("ee", _shareable=False),
            finished("ff", tool_calls="[]"),
        ],
    )
    entries, questions = admissible(table, datetime.now(UTC))
    assert entries["row_id"].to_pylist() == ["aa", "bb", "cc"]
    assert questions is not None
    assert questions["question"].to_pylist() == ["Where is aa?"]
