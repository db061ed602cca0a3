import numpy as np
import pytest

from pipelines.route_curve import cost_at, oracle_curve, random_curve, route_curve

WEAK = np.array([1.0, 0, 0, 1, 1, 0, 1, 1, 1, 1])
STRONG = np.array([1.0, 1, 1, 0, 1, 1, 1, 1, 1, 1])


def test_random_wins_back_as_it_spends() -> None:
    curve = random_curve(WEAK, STRONG)
    assert curve.apgr == pytest.approx(0.5)
    assert curve.share_for(0.8) == pytest.approx(0.8)
    assert curve.cost_for(1.0) == pytest.approx(1.0)


def test_an_oracle_passes_the_strong_tier() -> None:
    """3 of 10 rows are won by the strong tier and 1 is lost, so PGR goes up to 1.5."""
    curve = oracle_curve(WEAK, STRONG)
    assert curve.recovered.max() == pytest.approx(1.5)
    assert curve.share_for(1.0) == pytest.approx(0.2)
    assert curve.cost_for(1.0) == pytest.approx(cost_at(0.2, 10)) == pytest.approx(0.28)
    # Two slopes, from 0 to 1.5 and from 1.5 to 1, around a level part.
    assert curve.apgr == pytest.approx(0.3 * 0.75 + 0.6 * 1.5 + 0.1 * 1.25)


def test_a_curve_follows_its_order() -> None:
    curve = route_curve(np.arange(10)[::-1], WEAK, STRONG)
    steps = STRONG - WEAK
    qualities = WEAK.mean() + np.concatenate([[0], np.cumsum(steps)]) / 10
    assert curve.qualities == pytest.approx(qualities)
    assert curve.quality_at(0.25) == pytest.approx((qualities[2] + qualities[3]) / 2)


def test_equal_scores_count_by_expectation() -> None:
    rng = np.random.default_rng(0)
    weak, strong = (rng.random(200) < p for p in (0.5, 0.8))
    scores = rng.integers(0, 5, 200)
    noise = [route_curve(scores + 0.1 * rng.random(200), weak, strong).apgr for _ in range(300)]
    assert route_curve(scores, weak, strong).apgr == pytest.approx(np.mean(noise), abs=0.003)


def test_a_cheap_tier_that_is_better_costs_nothing_to_keep() -> None:
    curve = route_curve(np.arange(10), STRONG, WEAK)
    assert curve.cost_for(1.0) == pytest.approx(0.1)
    assert np.isnan(random_curve(WEAK, WEAK).apgr)


def test_rows_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="2 scores"):
        route_curve([1, 2], [1], [1])
