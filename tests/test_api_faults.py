import random
from datetime import UTC, datetime
from typing import Any

import pytest

from pipelines.api_faults import Breaker, backoff_s, fault_of, retry_after

NOW = datetime(2026, 11, 26, 12, 0, 0, tzinfo=UTC)


def told(code: str | None, message: str = "no") -> dict[str, Any]:
    return {"error": {"message": message, "code": code, "type": "t"}}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, told(None), "invalid_request"),
        (422, told(None), "invalid_request"),
        (400, told("context_length_exceeded"), "context_length"),
        (400, told(None, "prompt is too long: 5 tokens"), "context_length"),
        (401, told("invalid_api_key"), "setup"),
        (404, told("model_not_found"), "setup"),
        (429, told("rate_limit_exceeded"), "limited"),
        (429, told("insufficient_quota"), "final"),
        (402, told(None), "final"),
        (500, "oops", "again"),
        (529, told("overloaded_error"), "again"),
        (408, {}, "again"),
    ],
)
def test_what_a_status_means(status: int, body: Any, expected: str) -> None:
    fault = fault_of(status, body, {}, NOW)
    signs = {"setup": fault.is_setup, "limited": fault.is_limited, "final": fault.is_final}
    found = fault.problem.kind if fault.problem else next((k for k, v in signs.items() if v), None)
    assert (found or "again") == expected
    assert str(status) in fault.says


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "Thu, 26 Nov 2026 12:00:30 GMT"}, 30),
        ({"retry-after": "Thu, 26 Nov 2026 11:00:00 GMT"}, 0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "1e9"}, 600),
    ],
)
def test_what_a_server_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds


def test_waits_grow_up_to_a_minute_and_differ() -> None:
    chance = random.Random(0)
    early = [backoff_s(1, chance) for _ in range(200)]
    late = [backoff_s(30, chance) for _ in range(200)]
    assert max(early) <= 0.5 < max(late) <= 60
    assert len(set(early)) == 200


def test_a_breaker_opens_lets_one_try_and_closes() -> None:
    breaker = Breaker(failures=2, open_s=10)
    breaker.failed(0)
    assert breaker.wait_s(0) == 0
    breaker.failed(1)
    assert breaker.wait_s(2) == 9
    assert breaker.wait_s(11) == 0
    assert breaker.wait_s(12) > 0
    breaker.succeeded()
    assert breaker.wait_s(12) == 0
