import math
import random

import numpy as np
import pytest

from pipelines.wrong_hits import (
    LEVELS,
    Evidence,
    Group,
    chosen_for_audit,
    decide,
    excludes,
    level_of,
    threshold,
    upper_bound,
)

LIMIT, CONFIDENCE = 0.01, 0.95


def rounded(similarity: float) -> float:
    """A similarity after the float32 arithmetic of a search: one place too low."""
    return float(np.nextafter(np.float32(similarity), np.float32(0)))


def evidence(audited: int, wrong: int = 0, level: int = 0) -> Evidence:
    return Evidence.none().count(level, audited, wrong)


def mixture(audited: int, wrong: int, rate: float) -> float:
    """K by numerical integration, in u = sqrt(p / rate), where the prior is even."""
    u = (np.arange(200_000) + 0.5) / 200_000
    p = rate * u**2
    return float(np.mean((p / rate) ** wrong * ((1 - p) / (1 - rate)) ** (audited - wrong)))


@pytest.mark.parametrize(("audited", "wrong"), [(5, 1), (400, 0), (400, 3), (900, 60), (3000, 9)])
def test_the_sum_is_the_mixture_of_likelihood_ratios(audited: int, wrong: int) -> None:
    for rate in (0.002, 0.01, 0.03, 0.1):
        ratio = mixture(audited, wrong, rate)
        if 1.1 < ratio < 1e9:
            assert excludes(audited, wrong, rate, 1 - 1 / (ratio * 0.999))
        if ratio < 1e9:
            assert not excludes(audited, wrong, rate, 1 - 1 / (max(ratio, 1) * 1.001))


def chance_of_ever_excluding(rate: float, audits: int) -> float:
    """Exact: the probability of every (audits, wrong) on paths that never excluded the rate."""
    alive, lost = np.array([1.0]), 0.0
    least = 0
    for n in range(1, audits + 1):
        alive = np.append(alive * (1 - rate), 0.0) + np.append(0.0, alive * rate)
        while least <= n and excludes(n, least, rate, CONFIDENCE):
            least += 1
        lost += alive[:least].sum()
        alive[:least] = 0.0
    return lost


@pytest.mark.parametrize("rate", [0.005, 0.01, 0.05, 0.3])
def test_at_no_moment_of_a_stream_is_the_bound_too_low_more_often_than_allowed(rate: float) -> None:
    assert 0.005 < chance_of_ever_excluding(rate, 1200) <= 1 - CONFIDENCE


@pytest.mark.parametrize(
    ("audited", "wrong", "bound"),
    [(0, 0, 1.0), (1, 1, 1.0), (376, 0, 0.01001), (377, 0, 0.00999), (50_000, 500, 0.0116)],
)
def test_the_bound_is_where_the_table_says(audited: int, wrong: int, bound: float) -> None:
    assert upper_bound(audited, wrong, CONFIDENCE) == pytest.approx(bound, rel=0.02)
    assert (upper_bound(audited, wrong, CONFIDENCE) <= 0.01) == (bound <= 0.01)


@pytest.mark.parametrize(("audited", "wrong"), [(3, 4), (-1, 0), (3, -1)])
def test_counts_that_cannot_be_are_refused(audited: int, wrong: int) -> None:
    with pytest.raises(ValueError, match="audited"):
        upper_bound(audited, wrong, CONFIDENCE)


def test_more_wrong_ones_raise_the_bound_and_more_audits_lower_it() -> None:
    bounds = [[upper_bound(n, w, CONFIDENCE) for w in range(5)] for n in (50, 100, 400, 2000)]
    assert all(row == sorted(row) for row in bounds)
    assert all(list(column) == sorted(column, reverse=True) for column in zip(*bounds, strict=True))


@pytest.mark.parametrize(
    ("bins", "expected"),
    [
        ([], None),
        ([(0, 402, 0)], None),
        ([(0, 403, 0)], 0.98),
        ([(4, 403, 0)], 0.98),
        ([(0, 300, 40), (1, 705, 0)], None),
        ([(0, 300, 40), (1, 706, 0)], 0.985),
        ([(0, 300, 40), (4, 706, 0)], 0.985),
        ([(0, 300, 40), (2, 300, 20), (4, 706, 0)], 0.995),
    ],
)
def test_the_threshold_is_the_lowest_level_whose_hits_are_bounded(
    bins: list[tuple[int, int, int]], expected: float | None
) -> None:
    total = Evidence.none()
    for level, audited, wrong in bins:
        total += evidence(audited, wrong, level)
    assert threshold(total, LIMIT, CONFIDENCE) == expected


def test_one_level_needs_no_share_of_the_error() -> None:
    assert threshold(Evidence((0.9,), (377,), (0,)), LIMIT, CONFIDENCE) == 0.9
    assert threshold(Evidence((0.9,), (376,), (0,)), LIMIT, CONFIDENCE) is None


def test_evidence_adds_up_in_any_order_and_only_at_the_same_levels() -> None:
    parts = [evidence(7, 1, 0), evidence(5, 0, 3), evidence(2, 2, 0)]
    assert parts[0] + parts[1] + parts[2] == parts[2] + parts[0] + parts[1]
    assert (parts[0] + parts[1] + parts[2]).from_level(0) == (14, 3)
    with pytest.raises(ValueError, match="levels"):
        parts[0] + Evidence.none((0.95,))


@pytest.mark.parametrize(
    ("similarity", "level"),
    [
        (0.979, None),
        (rounded(0.98), 0),
        (0.9849, 0),
        (0.985, 1),
        (rounded(0.999), 4),
        (1.0000001, 4),
        (math.nan, None),
    ],
)
def test_a_similarity_counts_at_the_level_it_reaches(similarity: float, level: int | None) -> None:
    assert level_of(similarity, LEVELS) == level


def audits_to_close(group: Group, rate: float, dice: random.Random, most: int) -> int:
    for i in range(most):
        if threshold(group.evidence, LIMIT, CONFIDENCE) is None:
            return i
        group = group.after(0.98, dice.random() < rate, LIMIT, CONFIDENCE)
    return most + 1


@pytest.mark.parametrize("clean", [500, 2000, 20_000, 50_000])
def test_a_group_that_turns_bad_closes_soon_however_long_it_was_good(clean: int) -> None:
    dice = random.Random(clean)
    took = [audits_to_close(Group(evidence(clean)), 0.05, dice, 201) for _ in range(200)]
    assert sum(n <= 200 for n in took) >= 190


def test_an_alarm_drops_the_past_and_a_clean_group_earns_its_threshold_again() -> None:
    group = Group(evidence(50_000))
    while not group.alarms:
        group = group.after(0.99, True, LIMIT, CONFIDENCE)
    assert group == Group(Evidence.none(), alarms=1)
    for _ in range(403):
        group = group.after(0.99, False, LIMIT, CONFIDENCE)
    assert threshold(group.evidence, LIMIT, CONFIDENCE) == 0.98


def test_wrong_candidates_below_the_threshold_are_no_alarm() -> None:
    group = Group(evidence(2000, level=2) + evidence(100, wrong=50))
    for _ in range(50):
        group = group.after(0.98, True, LIMIT, CONFIDENCE)
    assert group.alarms == 0
    assert threshold(group.evidence, LIMIT, CONFIDENCE) == 0.985


def test_a_similarity_below_all_levels_is_no_evidence() -> None:
    group = Group(evidence(400))
    assert group.after(0.97, True, LIMIT, CONFIDENCE) == group


def test_the_audited_share_is_random_over_rows_and_the_same_on_repetition() -> None:
    rows = [f"r{i}" for i in range(20_000)]
    chosen = [chosen_for_audit(row, 0.1, "run") for row in rows]
    assert sum(chosen) == pytest.approx(2000, abs=150)
    assert chosen == [chosen_for_audit(row, 0.1, "run") for row in rows]
    assert chosen != [chosen_for_audit(row, 0.1, "another") for row in rows]
    assert not any(chosen_for_audit(row, 0.0, "run") for row in rows)
    assert all(chosen_for_audit(row, 1.0, "run") for row in rows)


@pytest.mark.parametrize(
    ("similarity", "at", "chosen", "action"),
    [
        (0.999, None, False, "trial"),
        (0.984, 0.985, True, "trial"),
        (rounded(0.985), 0.985, False, "serve"),
        (0.985, 0.985, True, "audit"),
        (math.nan, 0.98, False, "trial"),
    ],
)
def test_only_what_is_bounded_is_served(
    similarity: float, at: float | None, chosen: bool, action: str
) -> None:
    assert decide(similarity, at, chosen) == action
