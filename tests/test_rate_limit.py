from datetime import UTC, datetime
from random import Random

import pytest

from pipelines.rate_limit import Limits, reset_s, told_limits

WALL = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)


def granted_times(limits: Limits, tokens: int, until: float, rng: Random) -> list[float]:
    """When requests go if somebody always waits and asks as soon as told, or a little later."""
    now, times = 0.0, []
    while now < until:
        lease = limits.lease([tokens] * rng.randint(1, 200), 0, now)
        times += [now] * lease.granted
        now += max(lease.again_s, 1e-3) + rng.choice([0, 0, rng.expovariate(1.0)])
    return times


def most_in_a_minute(times: list[float]) -> int:
    most, start = 0, 0
    for end, at in enumerate(times):
        while at - times[start] >= 60.0 - 1e-6:
            start += 1
        most = max(most, end - start + 1)
    return most


@pytest.mark.parametrize("limit", [1, 2, 3, 10, 60, 500, 5000])
@pytest.mark.parametrize("seed", range(3))
def test_no_minute_has_more_requests_than_its_limit(limit: int, seed: int) -> None:
    times = granted_times(Limits(limit, None), 1, 400.0, Random(seed))
    assert most_in_a_minute(times) <= limit


@pytest.mark.parametrize("limit", [1, 2, 10, 500, 5000])
def test_the_limit_is_used_to_the_full(limit: int) -> None:
    limits, now, granted = Limits(limit, None), 0.0, 0
    while now < 600.0:
        lease = limits.lease([1] * 100, 0, now)
        granted += lease.granted
        now += max(lease.again_s, 1e-3)
    assert granted >= 0.98 * 10 * limit


@pytest.mark.parametrize("size", [10, 100, 900])
def test_no_minute_has_more_tokens_than_its_limit(size: int) -> None:
    """By no more than one request: it may be larger than what is ever there at once."""
    times = granted_times(Limits(None, 60_000), size, 300.0, Random(1))
    assert most_in_a_minute(times) * size <= 60_000 + size


def test_without_limits_all_go_at_once() -> None:
    lease = Limits(None, None).lease([10] * 1000, 0, 0.0)
    assert (lease.granted, lease.again_s) == (1000, 0.0)


def test_tokens_that_were_not_used_are_given_back() -> None:
    limits = Limits(None, 6000)
    assert limits.lease([1000], 0, 0.0).granted == 1
    assert limits.lease([50], 0, 1.0).granted == 0
    assert limits.lease([50], 950, 1.0).granted == 1


def test_a_limit_is_learned_from_the_headers_and_a_configured_one_is_not_raised() -> None:
    told = {"x-ratelimit-limit-requests": "600", "x-ratelimit-remaining-requests": "599"}
    learned, configured = Limits(None, None), Limits(60, None)
    for limits in (learned, configured):
        limits.learn(told, 0.0, WALL)
    assert learned.lease([1] * 100, 0, 0.0).granted == 6
    assert configured.lease([1] * 100, 0, 0.0).granted == 1
    learned.learn({"x-ratelimit-limit-requests": "100"}, 60.0, WALL)
    assert learned.lease([1] * 100, 0, 60.0).granted == 1


def test_nothing_left_is_a_pause_until_the_reset() -> None:
    limits = Limits(6000, None)
    limits.learn(
        {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "2s"}, 10.0, WALL
    )
    assert limits.lease([1], 0, 10.0).granted == 0
    assert limits.lease([1], 0, 11.9).granted == 0
    assert limits.lease([1], 0, 12.0).granted == 1


def test_little_left_is_all_that_is_granted() -> None:
    limits = Limits(6000, None)
    limits.learn({"x-ratelimit-remaining-requests": "3"}, 10.0, WALL)
    assert limits.lease([1] * 50, 0, 10.0).granted == 3


def test_a_pause_holds_everybody_and_is_asked_after_often() -> None:
    limits = Limits(None, None)
    limits.pause(5.0, 0.0)
    limits.pause(2.0, 0.0)
    lease = limits.lease([1], 0, 4.0)
    assert lease.granted == 0
    assert 0 < lease.again_s <= 1.0
    assert limits.lease([1], 0, 5.0).granted == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360.0),
        ("1h2m3s", 3723.0),
        ("20ms", 0.02),
        ("1.5s", 1.5),
        ("7", 7.0),
        ("2026-11-24T12:00:42Z", 42.0),
        ("2026-11-24T11:59:42Z", 0.0),
        ("tomorrow", None),
        ("", None),
        (None, None),
    ],
)
def test_a_reset_is_read_in_all_its_forms(text: str | None, seconds: float | None) -> None:
    assert reset_s(text, WALL) == seconds


def test_both_providers_headers_are_understood() -> None:
    told = told_limits(
        {
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "49",
            "anthropic-ratelimit-requests-reset": "2026-11-24T12:00:01Z",
            "x-ratelimit-limit-tokens": "40000",
        },
        WALL,
    )
    assert (told["requests"].limit, told["requests"].remaining) == (50.0, 49.0)
    assert told["requests"].reset_s == 1.0
    assert told["tokens"].limit == 40000.0
    assert told_limits({"content-type": "x"}, WALL) == {}


def test_of_the_limits_that_several_state_the_least_holds() -> None:
    limits = Limits(None, None)
    assert limits.lease([1] * 500, 0, 0.0).granted == 500
    for stated in (600, 60, 6000, None):
        limits.state(stated, None, 0.0)
    times = granted_times(limits, 1, 200.0, Random(0))
    assert most_in_a_minute(times) <= 60
    assert len(times) > 130
