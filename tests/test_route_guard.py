from collections.abc import Iterable

import numpy as np
import pytest

from pipelines.certify import Floor
from pipelines.route_guard import RouteGuard
from pipelines.shadow import SHADOW, committed_outcomes, gains_by_audit, outcomes


def by_row(gains: Iterable[float]) -> dict[str, float]:
    return {f"r{i}": float(gain) for i, gain in enumerate(gains)}


def guarded(rate_worse: float, checks: int, seed: int, share_cheap: float = 0.5) -> RouteGuard:
    guard = RouteGuard(Floor(2.0, 0.95))
    guard.routed(1000, int(1000 * share_cheap))
    guard.checked(by_row(np.random.default_rng(seed).random(checks) < rate_worse))
    return guard


def test_a_kept_floor_raises_the_alarm_in_one_run_of_twenty_at_most() -> None:
    """At its very edge: half of the rows are cheap and lose 4 points each."""
    alarms = [guarded(0.04, 2000, seed).standing().in_danger for seed in range(400)]
    assert np.mean(alarms) <= 0.05


@pytest.mark.parametrize(("rate", "within"), [(0.2, 150), (0.1, 600)])
def test_a_broken_floor_is_noticed(rate: float, within: int) -> None:
    alarms = [guarded(rate, within, seed).standing().in_danger for seed in range(100)]
    assert np.mean(alarms) >= 0.9


def test_the_share_that_stays_cheap_counts() -> None:
    assert guarded(0.1, 600, 1, share_cheap=0.5).standing().in_danger
    assert not guarded(0.1, 600, 1, share_cheap=0.1).standing().in_danger


def test_wins_make_up_for_losses() -> None:
    guard = RouteGuard(Floor(2.0, 0.95))
    guard.routed(100, 50)
    guard.checked(by_row([1.0, -1.0] * 300))
    standing = guard.standing()
    assert (standing.in_danger, standing.worse, standing.loss) == (False, 300, 0)


@pytest.mark.parametrize(("share", "alarmed"), [(0.1, False), (0.6, True)])
def test_answers_that_differ_count_as_in_the_sample(share: float, alarmed: bool) -> None:
    """Rows of another night have no labels: of ten differences one was a loss."""
    guard = RouteGuard(Floor(2.0, 0.95))
    guard.routed(1000, 500)
    audits = ["differs" if i % 10 < 10 * share else "as_good" for i in range(2000)]
    rows = [
        {"row_id": str(i), "status": "ok", "tier": "large", "route_audit": audit, "_turn": "answer"}
        for i, audit in enumerate(audits)
    ]
    guard.checked(outcomes(rows, "small", gains_by_audit(0.1)).gains)
    assert guard.standing().in_danger == alarmed


def test_an_alarm_stays() -> None:
    guard = guarded(0.5, 100, 0)
    guard.checked({f"later{i}": -1.0 for i in range(1000)})
    assert guard.standing().in_danger


def test_a_row_that_comes_again_counts_once() -> None:
    guard = RouteGuard(Floor(2.0, 0.95))
    guard.routed(100, 50)
    for _ in range(50):
        guard.checked({"a": 1.0, "b": 0.0})
    assert (guard.standing().checked, guard.standing().worse) == (2, 1)


def test_what_is_committed_counts_as_it_did_when_it_happened() -> None:
    ended = [
        {"row_id": "a", "status": "ok", "tier": "small", "route_audit": None},
        {"row_id": "b", "status": "ok", "tier": "large", "route_audit": "worse"},
        {"row_id": "c", "status": "ok", "tier": "large", "route_audit": None},
        {"row_id": "d", "status": "error", "tier": "small", "route_audit": None},
    ]
    begun = [{"row_id": "b", "status": None, "tier": "large", "route_audit": None}]
    seen = [
        outcomes([{**row, "_turn": "answer"} for row in ended], "small", gains_by_audit(1.0)),
        outcomes([{**row, "_turn": SHADOW} for row in begun], "small", gains_by_audit(1.0)),
    ]
    told = committed_outcomes(
        [
            *({**row, "source": "generated"} for row in ended),
            {"row_id": "e", "status": "ok", "tier": "small", "route_audit": None, "source": "x"},
        ],
        "small",
        gains_by_audit(1.0),
    )
    assert told.rows == sum(each.rows for each in seen) == 3
    assert told.cheap == sum(each.cheap for each in seen) == 2
    assert told.gains == seen[0].gains == {"b": 1.0}
