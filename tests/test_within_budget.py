import numpy as np
import pytest

from pipelines.certify import Costs, threshold_grid
from pipelines.errors import UsageProblem
from pipelines.within_budget import Frontier, best_within, frontier

COSTS = Costs(kept=1.0, sent=10.0, strong=10.0)


def found(rows: int = 1000, seed: int = 0) -> Frontier:
    """The higher the score, the likelier only the strong tier is right."""
    rng = np.random.default_rng(seed)
    scores = rng.random(rows)
    gains = (rng.random(rows) < scores**2).astype(float)
    return frontier(scores, gains, threshold_grid(rng.random(rows)), COSTS, 0.95)


def test_nothing_is_lost_where_the_budget_allows_it() -> None:
    scores = np.linspace(0, 1, 500)
    gains = np.where(scores < 0.2, 0.0, 1.0)
    chosen = best_within(frontier(scores, gains, threshold_grid(scores), COSTS, 0.95), 100, 1000.0)
    # What loses nothing stays cheap however much there is to spend.
    assert (chosen.loss, chosen.share_cheap) == (0, pytest.approx(0.2, abs=0.01))
    lost = frontier(scores, np.ones(500), threshold_grid(scores), COSTS, 0.95)
    assert best_within(lost, 100, 1000.0).threshold is None


def test_a_smaller_budget_keeps_more_rows_cheap_and_loses_more() -> None:
    chosen = [best_within(found(), 100, usd) for usd in (900, 600, 300, 120)]
    assert [c.share_cheap for c in chosen] == sorted(c.share_cheap for c in chosen)
    assert [c.loss for c in chosen] == sorted(c.loss for c in chosen)
    assert all(c.loss <= c.loss_upper for c in chosen)


def test_the_budget_holds_for_rows_to_come() -> None:
    """In 19 of 20 samples: the share that stays cheap is the least that is likely."""
    passed = 0
    for seed in range(200):
        chosen = best_within(found(400, seed), 100_000, 500_000.0)
        assert chosen.threshold is not None
        cheap = chosen.threshold  # Scores are uniform.
        passed += 100_000 * (cheap * 1.0 + (1 - cheap) * 10.0) > 500_000
    assert passed <= 10


def test_rows_that_escalate_and_cost_more_than_others_are_counted_at_their_cost() -> None:
    scores = np.linspace(0, 1, 400)
    sent = np.where(scores > 0.75, 40.0, 2.0)
    costs = Costs(kept=np.full(400, 1.0), sent=sent, strong=sent)
    bought = frontier(scores, np.where(scores > 0.75, 1.0, 0.0), [0.75], costs, 0.95)
    chosen = best_within(bought, 100, 1e9)
    assert chosen.share_cheap == pytest.approx(0.75)
    # 300 at 1 and 100 at 40, of 300 at 2 and 100 at 40; by the means it would be 67 %.
    assert chosen.saving == pytest.approx(300 / 4600)
    option = next(option for option in bought.options if option.threshold is not None)
    assert bought.usd(option, 100) > 100 * 43 / 4


def test_cheap_answers_that_are_better_are_taken_at_any_budget() -> None:
    scores = np.linspace(0, 1, 500)
    gains = np.where(scores < 0.5, -1.0, 1.0)
    chosen = best_within(frontier(scores, gains, threshold_grid(scores), COSTS, 0.95), 10, 1e9)
    assert chosen.share_cheap == pytest.approx(0.5, abs=0.05)
    assert chosen.loss < 0


def test_a_budget_that_buys_nothing_is_refused_with_what_it_takes() -> None:
    with pytest.raises(UsageProblem, match=r"budget_usd.*\$50\.0.*100 rows.*\$1[0-9][0-9]\."):
        best_within(found(), 100, 50.0)
