"""The best quality that a budget buys: one threshold for a whole input, by how a sample scores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.certify import Certificate, Costs, upper_bound
from pipelines.errors import UsageProblem


@dataclass(frozen=True)
class Option:
    """One threshold, on rows that nothing was fitted to; shares and losses of 1.

    Attributes:
        threshold: None sends every row to the strong tier.
        usd: a row has cost, on average.
        spread_usd: the standard deviation of that, by the confidence's quantile.
        loss_upper: holds for all options at once, so also for one that is chosen by these rows.
    """

    threshold: float | None
    share_cheap: float
    usd: float
    spread_usd: float
    loss: float
    loss_upper: float


@dataclass(frozen=True)
class Frontier:
    """What can be had, from all strong to all cheap.

    Attributes:
        sample: rows of the test.
    """

    options: Sequence[Option]
    sample: int

    @property
    def strong_usd(self) -> float:
        """Of a row where all go to the strong tier."""
        return next(option.usd for option in self.options if option.threshold is None)

    def usd(self, option: Option, rows: int) -> float:
        """The most that so many rows cost, at the confidence: their mean scatters, and so does
        that of the sample which tells it."""
        error = option.spread_usd * math.sqrt(1 / self.sample + 1 / max(rows, 1))
        return rows * (option.usd + error)


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
    quantile = NormalDist().inv_cdf(confidence)
    kept_usd, sent_usd, strong_usd = (
        np.broadcast_to(np.asarray(cost, np.float64), score.shape)
        for cost in (costs.kept, costs.sent, costs.strong)
    )
    options = [_option(None, strong_usd, np.zeros(len(score)), 0.0, 0.0, quantile)]
    for threshold in thresholds.tolist():
        kept = score <= threshold
        losses = np.where(kept, gain, 0.0)
        upper = upper_bound(losses, each, ahead)
        usd = np.where(kept, kept_usd, sent_usd)
        options.append(_option(threshold, usd, kept, float(losses.mean()), upper, quantile))
    return Frontier(options, len(score))


def _option(
    threshold: float | None,
    usd: NDArray[np.float64],
    kept: NDArray[Any],
    loss: float,
    upper: float,
    quantile: float,
) -> Option:
    spread = quantile * float(usd.std())
    return Option(threshold, float(kept.mean()), float(usd.mean()), spread, loss, upper)


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
    saving = 1 - best.usd / found.strong_usd
    return Certificate(
        best.threshold, best.share_cheap, saving, best.loss, best.loss_upper, found.sample
    )
