from typing import Any

import pytest

from pipelines.prices import HourRate, TokenRate
from pipelines.requests import Request
from pipelines.worst_case import worst_nusd, worst_tokens


def asked(text: str = "a", **fields: Any) -> Request:
    return Request([{"role": "user", "content": text}], fields)


def test_choices_count_in_the_worst_case() -> None:
    """Ten tokens each for two choices: what must fit the budget."""
    rate = TokenRate(10**6, 10**6, 10**6)
    one, two = (worst_nusd(asked(max_tokens=10, n=n), {}, rate) for n in (1, 2))
    assert two - one == 10


@pytest.mark.parametrize(
    ("fields", "defaults", "most"),
    [({"max_tokens": 5}, {"max_tokens": 9}, 5), ({}, {"max_tokens": 9}, 9), ({}, {}, 77)],
)
def test_a_limit_is_the_row_s_or_the_run_s_or_the_host_s(
    fields: dict[str, Any], defaults: dict[str, Any], most: int
) -> None:
    assert worst_tokens(asked(**fields), defaults, unlimited=77)[1] == most


def test_a_token_is_a_byte_at_least() -> None:
    less, more = (worst_tokens(asked(text, max_tokens=1), {})[0] for text in ("a", "a\u00e4"))
    assert more - less == 2


def test_a_vector_has_no_completion() -> None:
    assert worst_tokens(asked(encoding_format="float"), {})[1] == 0


def test_calls_of_earlier_turns_are_part_of_the_prompt() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "x" * 1000}}
    turns = Request([{"role": "assistant", "tool_calls": [call]}], {"max_tokens": 1})
    assert worst_tokens(turns, {})[0] > 1000


def test_a_replica_s_time_is_not_paid_by_the_token() -> None:
    assert worst_nusd(asked(), {}, HourRate(10**9)) == 0
