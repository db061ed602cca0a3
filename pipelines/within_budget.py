"""The best quality that a budget buys: one threshold for a whole input, by how a sample scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pipelines.certify import Certificate, Costs, upper_bound
from pipelines.errors import UsageProblem
from pipelines.worth import wilson


@dataclass(frozen=True)
class Option:
    """One threshold, on rows that nothing was fitted to; shares and losses of 1.

    Attributes:
        threshold: None sends every row to the strong tier.
        least_cheap: of the rows to come will stay cheap at least, at the confidence.
        loss_upper: holds for all options at once, so also for one that is chosen by these rows.
    """

    threshold: float | None
    share_cheap: float
    least_cheap: float
    loss: float
    loss_upper: float


@dataclass(frozen=True)
class Frontier:
    """What can be had, from all strong to all cheap.

    Attributes:
        kept_usd, sent_usd, strong_usd: of a row that stays cheap, that goes to the strong tier,
            and where all do.
        sample: rows of the test.
    """

    options: Sequence[Option]
    kept_usd: float
    sent_usd: float
    strong_usd: float
    sample: int

    def usd(self, option: Option, rows: int) -> float:
        """The most that so many rows cost, at the confidence."""
        if option.threshold is None:
            return rows * self.strong_usd
        cheap = option.least_cheap
        return rows * (cheap * self.kept_usd + (1 - cheap) * self.sent_usd)


def frontier(
    scores: ArrayLike,
    gains: ArrayLike,
    grid: ArrayLike,
    costs: Costs,
    confidence: float,
    ahead: int | None = None,
) -> Frontier:
    """Args: as `certify` takes them; costs in dollars."""
    score, gain = np.asarray(scores, np.float64), np.asarray(gains, np.float64)
    thresholds = np.sort(np.asarray(grid, np.float64))
    each = 1 - (1 - confidence) / max(len(thresholds), 1)
    options = [Option(None, 0.0, 0.0, 0.0, 0.0)]
    for threshold in thresholds.tolist():
        kept = score <= threshold
        losses = np.where(kept, gain, 0.0)
        least, _ = wilson(int(kept.sum()), len(kept), confidence)
        upper = upper_bound(losses, each, ahead)
        options.append(Option(threshold, float(kept.mean()), least, float(losses.mean()), upper))
    kept, sent, strong = (
        float(np.asarray(cost, np.float64).mean())
        for cost in (costs.kept, costs.sent, costs.strong)
    )
    return Frontier(options, kept, sent, strong, len(score))


def best_within(found: Frontier, rows: int, usd: float) -> Certificate:
    """The option that loses least among those that these rows can pay.

    Raises:
        UsageProblem: not even the cheapest one fits.
    """
    affordable = [option for option in found.options if found.usd(option, rows) <= usd]
    if not affordable:
        least = min(found.usd(option, rows) for option in found.options)
        raise UsageProblem(
            f"budget_usd: ${usd:.6f} are left for {rows:,} rows, and the cheapest way to answer "
            f"them takes up to ${least:.6f}; raise it"
        )
    best = min(affordable, key=lambda option: (option.loss, found.usd(option, rows)))
    expected = best.share_cheap * found.kept_usd + (1 - best.share_cheap) * found.sent_usd
    saving = 0.0 if best.threshold is None else 1 - expected / found.strong_usd
    return Certificate(
        best.threshold, best.share_cheap, saving, best.loss, best.loss_upper, found.sample
    )
