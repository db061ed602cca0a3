"""How well an order of rows spends calls to the strong tier, against random and the best order.

A row's gain is the strong tier's quality less the cheap tier's. Rows go to the strong tier in
falling score; rows of the same score in random order, which is counted by its expectation.

    PGR(share)  of the gap between the tiers' mean qualities, the part that is won back when that
                share of the rows goes to the strong tier; may pass 1 where the cheap tier is
                right and the strong one wrong
    APGR        its mean over all shares (exact integral)
    CPT(x)      the least share with PGR >= x
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RouteCurve:
    """A router's whole range: piecewise linear between its points.

    Attributes:
        shares: of calls to the strong tier, rising from 0 to 1.
        qualities: mean quality at each share.
    """

    shares: Floats
    qualities: Floats

    @property
    def gap(self) -> float:
        return float(self.qualities[-1] - self.qualities[0])

    @property
    def recovered(self) -> Floats:
        """PGR at each share; NaN where the tiers are equally good."""
        won = self.qualities - self.qualities[0]
        return won / self.gap if self.gap else np.full_like(won, np.nan)

    @property
    def apgr(self) -> float:
        return float(np.trapezoid(self.recovered, self.shares))

    def share_for(self, recovered: float) -> float:
        """CPT: the least share of strong calls that wins back this part of the gap."""
        return self._first(self.qualities[0] + recovered * self.gap)

    def cost_for(self, part: float, price_ratio: float = 10.0) -> float:
        """The least cost, of all-strong being 1, that keeps this part of the strong quality.

        In hindsight: the share is chosen on the rows it is measured on.
        """
        return cost_at(self._first(part * float(self.qualities[-1])), price_ratio)

    def quality_at(self, share: float) -> float:
        return float(np.interp(share, self.shares, self.qualities))

    def _first(self, quality: float) -> float:
        # Sums of many floats: the last point must count as reaching itself.
        at = int(np.argmax(self.qualities >= quality - 1e-9))
        if self.qualities[at] < quality - 1e-9:
            return 1.0
        if at == 0:
            return float(self.shares[0])
        below, above = self.qualities[at - 1 : at + 1]
        part = min(1.0, max(0.0, (quality - below) / (above - below)))
        return float(self.shares[at - 1] + part * (self.shares[at] - self.shares[at - 1]))


def cost_at(share: float, price_ratio: float) -> float:
    """Cost of all-strong being 1, when this share goes to a tier that is so much dearer."""
    return share + (1 - share) / price_ratio


def route_curve(scores: ArrayLike, weak: ArrayLike, strong: ArrayLike) -> RouteCurve:
    """The curve of an order by falling score.

    Args:
        scores, weak, strong: of shape (rows,): score, and quality of each tier's answer.
    """
    score = np.asarray(scores, np.float64)
    low, high = np.asarray(weak, np.float64), np.asarray(strong, np.float64)
    if not len(score) == len(low) == len(high) or not len(score):
        raise ValueError(f"{len(score)} scores, {len(low)} weak and {len(high)} strong qualities")
    _, group, sizes = np.unique(-score, return_inverse=True, return_counts=True)
    won = np.bincount(group, weights=high - low)
    shares = np.concatenate([[0], np.cumsum(sizes)]) / len(score)
    return RouteCurve(shares, low.mean() + np.concatenate([[0], np.cumsum(won)]) / len(score))


def oracle_curve(weak: ArrayLike, strong: ArrayLike) -> RouteCurve:
    """The best order there is: by the gain itself."""
    gains = np.asarray(strong, np.float64) - np.asarray(weak, np.float64)
    return route_curve(gains, weak, strong)


def random_curve(weak: ArrayLike, strong: ArrayLike) -> RouteCurve:
    """No order at all, by expectation: APGR is .5."""
    return route_curve(np.zeros(len(np.asarray(weak))), weak, strong)
