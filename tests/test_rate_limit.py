import pytest

from actors.rate_limits import RateLimits
from pipelines.rate_limit import Limits, Timetable, limits_in


def test_no_minute_has_two_per_cent_more_than_the_limit() -> None:
    table = Timetable(per_minute=600)
    starts = [table.start(1, now=0.0) for _ in range(3000)]
    for begin in (0.0, 0.05, 30.0, 97.3):
        inside = sum(begin <= start < begin + 60 for start in starts)
        assert inside <= 600 * 1.02


def test_a_quiet_time_is_not_saved_up() -> None:
    table = Timetable(per_minute=60)
    table.start(1, now=0.0)
    starts = [table.start(1, now=1000.0) for _ in range(10)]
    assert starts[0] == 1000
    assert starts[-1] >= 1008


def test_what_was_not_used_is_given_back() -> None:
    spent, corrected = Timetable(60), Timetable(60)
    for table in (spent, corrected):
        table.start(30, now=0.0)
    corrected.correct(20)
    assert spent.start(1, now=0.0) - corrected.start(1, now=0.0) == pytest.approx(20)


@pytest.mark.parametrize(
    ("headers", "limits"),
    [
        ({}, Limits()),
        ({"x-ratelimit-limit-requests": "50"}, Limits(50, None)),
        ({"anthropic-ratelimit-tokens-limit": "4000"}, Limits(None, 4000)),
        ({"x-ratelimit-limit-requests": "many"}, Limits()),
        ({"x-ratelimit-limit-requests": "0"}, Limits()),
    ],
)
def test_limits_are_read_from_headers(headers: dict[str, str], limits: Limits) -> None:
    assert limits_in(headers) == limits
    assert bool(limits) == (limits != Limits())


def test_an_account_waits_for_the_slower_of_its_limits_and_for_pauses() -> None:
    account = RateLimits(Limits(requests_per_minute=6000, tokens_per_minute=600))
    waits = account.reserve([100] * 3)
    assert waits[0] == 0
    assert waits[2] > 15
    account.pause(100)
    assert account.reserve([0])[0] > 99


def test_stated_limits_outrank_a_servers() -> None:
    stated, silent = RateLimits(Limits(6000)), RateLimits(Limits())
    for account in (stated, silent):
        account.learn(Limits(1))
        account.reserve([1] * 2)
    assert stated.reserve([1])[0] < 1
    assert silent.reserve([1])[0] > 60
