import math

import numpy as np
import pytest

from pipelines.wrong_hits import (
    LEVELS,
    Evidence,
    Recent,
    audits_needed,
    chosen_for_audit,
    evidence_of,
    levels_from,
    threshold,
    upper_bound,
)

LIMIT, CONFIDENCE = 0.01, 0.95


def evidence(audited: list[int], wrong: list[int]) -> Evidence:
    return Evidence(LEVELS, tuple(audited), tuple(wrong))


def test_the_bound_covers_the_true_rate_at_all_times_at_once() -> None:
    """Looking after every audit must not make it fail more often than 1 in 20."""
    random = np.random.default_rng(1)
    streams, length = 150, 600
    for rate in (0.005, 0.02, 0.1):
        failed = 0
        for stream in random.random((streams, length)) < rate:
            wrong = np.cumsum(stream)
            # The bound is lowest just before the next wrong one.
            looks = [*np.flatnonzero(stream), length]
            failed += any(upper_bound(n, int(wrong[n - 1]), CONFIDENCE) < rate for n in looks if n)
        assert failed / streams <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / streams)


def test_the_bound_falls_with_audits_and_rises_with_wrong_ones() -> None:
    assert upper_bound(0, 0, CONFIDENCE) > 0.99
    clean = [upper_bound(n, 0, CONFIDENCE) for n in (10, 100, 1000, 100_000)]
    assert clean == sorted(clean, reverse=True)
    bounds = [upper_bound(1000, wrong, CONFIDENCE) for wrong in (0, 1, 10, 500, 1000)]
    assert bounds == sorted(bounds)
    assert bounds[-1] == 1.0
    assert upper_bound(100_000, 500, CONFIDENCE) == pytest.approx(0.005, rel=0.2)


def test_audits_needed_is_where_a_clean_group_opens() -> None:
    needed = audits_needed(LIMIT, CONFIDENCE)
    assert needed < 400
    assert threshold(evidence([0, 0, 0, 0, needed], [0] * 5), LIMIT, CONFIDENCE) == 0.98
    assert threshold(evidence([0, 0, 0, 0, needed - 1], [0] * 5), LIMIT, CONFIDENCE) is None


def test_levels_open_from_the_highest_down_to_the_first_that_is_not_bounded() -> None:
    assert threshold(evidence([400, 400, 400, 400, 400], [40, 40, 0, 0, 0]), LIMIT, 0.95) == 0.99
    assert threshold(evidence([9000, 0, 0, 0, 400], [0, 0, 0, 0, 20]), LIMIT, 0.95) is None


def test_evidence_is_counted_by_level_and_adds_up() -> None:
    found = evidence_of([(0.98, False), (0.9871, True), (1.0, False), (0.97, False)], LEVELS)
    assert found == evidence([2, 1, 0, 0, 1], [0, 1, 0, 0, 0])
    assert (found + found).from_level(0.985) == (4, 2)
    with pytest.raises(ValueError, match="levels"):
        found + evidence_of([], levels_from(0.99))


def test_levels_begin_where_candidates_do() -> None:
    assert levels_from(0.98) == LEVELS
    assert levels_from(0.992) == (0.992, 0.995, 0.999)
    assert levels_from(0.95) == (0.95, *LEVELS)


@pytest.mark.parametrize(("rate", "share"), [(0.05, (0.95, 1.0)), (0.001, (0.0, 0.05))])
def test_a_change_is_seen_within_200_audits_whatever_was_before(
    rate: float, share: tuple[float, float]
) -> None:
    random = np.random.default_rng(2)
    streams = 300
    seen = 0
    for stream in random.random((streams, 200)) < rate:
        recent = Recent()
        for _ in range(1000):
            recent.add(False)
        contradicted = []
        for wrong in stream:
            recent.add(bool(wrong))
            contradicted.append(recent.contradicts(LIMIT))
        seen += any(contradicted)
    assert share[0] <= seen / streams <= share[1]


def test_the_lot_is_fair_and_the_same_for_a_row_that_comes_again() -> None:
    rows = [f"row {i}" for i in range(20_000)]
    chosen = [chosen_for_audit(row, 0.05, "run") for row in rows]
    assert chosen == [chosen_for_audit(row, 0.05, "run") for row in rows]
    assert sum(chosen) == pytest.approx(1000, abs=100)
    assert chosen != [chosen_for_audit(row, 0.05, "another run") for row in rows]
    assert all(chosen_for_audit(row, 1.0, "run") for row in rows)
