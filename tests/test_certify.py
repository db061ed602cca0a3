import math

import numpy as np
import pytest

from pipelines.certify import (
    Costs,
    Floor,
    as_telling,
    certify,
    evidence,
    p_value,
    threshold_grid,
    upper_bound,
)

GRID = np.arange(1, 21) / 20
FLOOR = Floor(1.0, 0.95)


def draw(rng: np.random.Generator, rows: int, halves: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and gains that grow with them; kept up to a threshold t they lose t (.07 t - .03)."""
    scores = rng.random(rows)
    lost = rng.random(rows) < 0.14 * scores
    gains = lost.astype(float) - ((rng.random(rows) < 0.03) & ~lost)
    return scores, gains * rng.choice([0.5, 1.0], rows) if halves else gains


@pytest.mark.parametrize("limit", [0.05, -0.05])
@pytest.mark.parametrize("rate", [0.05, 0.06, 0.2])
@pytest.mark.parametrize("counts", [(0, 4), (1, 9), (3, 3), (0, 0)])
def test_the_chance_of_what_was_counted_is_exact(
    limit: float, rate: float, counts: tuple[int, int]
) -> None:
    """Against a sum over all outcomes of 40 rows."""
    rows = 40
    pairs = [(lost, won) for lost in range(rows + 1) for won in range(rows + 1 - lost)]
    lost, won = np.array(pairs, float).T
    seen = evidence(np.array(counts[0]), np.array(counts[1]), rows, limit)
    law = [
        math.comb(rows, a)
        * math.comb(rows - a, b)
        * (limit + rate) ** a
        * rate**b
        * (1 - limit - 2 * rate) ** (rows - a - b)
        for a, b in pairs
    ]
    if seen > 0:
        chance = np.sum(law, where=evidence(lost, won, rows, limit) >= seen - 1e-9)
        found = as_telling(float(seen), rows, limit, np.array([rate]))
        assert found == pytest.approx(chance, abs=1e-8)


def test_a_floor_at_its_limit_is_passed_no_more_often_than_promised() -> None:
    """Exact: the chance that counts from the worst law end in a P-value below the error."""
    rows, limit, error = 400, 0.02, 0.05
    for down in (0.0, 0.01, 0.05):
        law = np.random.default_rng(1).multinomial(rows, [limit + down, down, 1], size=2000)
        values = {
            (lost, won): p_value(
                np.repeat([1.0, -1.0, 0.0], [lost, won, rows - lost - won]), limit, error
            )
            for lost, won in {(int(r[0]), int(r[1])) for r in law}
        }
        passed = np.mean([values[int(r[0]), int(r[1])] <= error for r in law])
        # Four standard errors of 2,000 draws.
        assert passed <= error + 0.02


@pytest.mark.parametrize("halves", [False, True])
def test_certified_thresholds_hold_the_floor(halves: bool) -> None:
    rng, wrong, shares = np.random.default_rng(2), 0, []
    scores, gains = draw(rng, 100_000, halves)
    for _ in range(120):
        found = certify(*draw(rng, 2000, halves), GRID, FLOOR)
        kept = scores <= (found.threshold if found.threshold is not None else -1)
        wrong += np.where(kept, gains, 0.0).mean() > FLOOR.loss
        shares.append(found.share_cheap)
    assert wrong <= 12
    assert np.mean(shares) > 0.25


def test_rows_ahead_hold_it_too() -> None:
    rng, broken, before = np.random.default_rng(3), 0, 0
    for _ in range(120):
        sample, (scores, gains) = draw(rng, 1500, False), draw(rng, 1500, False)
        for ahead in (1500, None):
            threshold = certify(*sample, GRID, FLOOR, ahead=ahead).threshold
            kept = scores <= (threshold if threshold is not None else -1)
            lost = np.where(kept, gains, 0.0).mean() > FLOOR.loss
            broken, before = broken + (lost and bool(ahead)), before + (lost and not ahead)
    assert broken <= 8
    assert before >= 2 * broken


def test_it_stops_at_the_first_threshold_that_is_not_proved() -> None:
    scores = np.repeat([0.1, 0.2, 0.3], 1000)
    gains = np.concatenate([np.zeros(1000), np.ones(1000), -np.ones(1000)])
    found = certify(scores, gains, [0.1, 0.2, 0.3], FLOOR)
    assert (found.threshold, found.share_cheap, found.loss) == (0.1, pytest.approx(1 / 3), 0.0)
    assert found.saving == pytest.approx(0.3)
    assert found.loss_upper <= FLOOR.loss


@pytest.mark.parametrize("rows", [0, 1, 50])
def test_nothing_is_proved_by_few_rows(rows: int) -> None:
    found = certify(np.zeros(rows), np.zeros(rows), [0.0], FLOOR)
    assert found.threshold is None
    assert (found.saving, found.share_cheap, found.sample) == (0.0, 0.0, rows)


def test_nothing_is_proved_where_the_cheap_tier_is_bad() -> None:
    assert certify(np.zeros(5000), np.ones(5000), [0.0], FLOOR).threshold is None


def test_a_cascade_pays_its_cheap_attempt() -> None:
    kept = np.array([True, True, False, False])
    assert Costs(kept=0.1, sent=1.1, strong=1.0).saving(kept) == pytest.approx(0.4)
    by_row = Costs(kept=np.full(4, 0.1), sent=np.array([1.0, 1, 1, 5]), strong=[1.0, 1, 1, 5])
    assert by_row.saving(kept) == pytest.approx(1 - 6.2 / 8)


@pytest.mark.parametrize("ahead", [None, 700])
def test_more_rows_ahead_or_sampled_bound_closer(ahead: int | None) -> None:
    losses = np.repeat([1.0, -1.0, 0.0], [30, 10, 1960])
    bound = upper_bound(losses, 0.95, ahead)
    assert 0.01 < upper_bound(np.tile(losses, 4), 0.95, ahead and 4 * ahead) < bound < 0.04


def test_half_gains_are_bounded_about_as_closely_as_whole_ones() -> None:
    rng = np.random.default_rng(4)
    losses = rng.choice([1.0, -1.0, 0.0], 3000, p=[0.03, 0.02, 0.95])
    exact, betting = upper_bound(losses, 0.95), upper_bound(losses * 0.999, 0.95)
    assert abs(exact - betting) < 0.006


def test_a_grid_keeps_equal_shares_and_ends_with_all() -> None:
    scores = np.random.default_rng(5).permutation(1000) / 1000
    grid = threshold_grid(scores, 4)
    assert [float(np.mean(scores <= t)) for t in grid] == [0.25, 0.5, 0.75, 1.0]
    assert len(threshold_grid(np.zeros(10))) == 1


@pytest.mark.parametrize("gains", [[0.0], [0.0, 2.0]])
def test_rows_that_do_not_match_are_refused(gains: list[float]) -> None:
    with pytest.raises(ValueError, match="one each a row"):
        certify([0.1, 0.2], gains, [0.1], FLOOR)
