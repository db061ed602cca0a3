"""Can routing between these two tiers pay at all?"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.certify import upper_bound

Verdict = Literal["can pay", "cannot pay", "too few rows"]

LEAST_ROWS = 100
LEAST_SAVING = 0.05
"""Less than this, by a router that makes no mistake, is not worth a router."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; of 1."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Advice:
    """What labelled rows say about a pair of tiers.

    Attributes:
        gap: strong quality less cheap quality.
        strong_only, weak_only: where one of them is better.
        both, neither: where they are equal, by whether the answers are right (half or more).
        oracle_saving: at the strong tier's quality, by a router that makes no mistake.
        reason: of the verdict, in words.
    """

    rows: int
    gap: Estimate
    strong_only: Estimate
    weak_only: Estimate
    both: Estimate
    neither: Estimate
    oracle_saving: Estimate
    verdict: Verdict
    reason: str

    @property
    def table(self) -> tuple[Estimate, ...]:
        """The figures, in the order they are read."""
        shares = (self.strong_only, self.weak_only, self.both, self.neither)
        return (self.gap, *shares, self.oracle_saving)


def advise(
    weak: ArrayLike, strong: ArrayLike, price_ratio: float, confidence: float = 0.95
) -> Advice:
    """From the quality of both tiers' answers to the same rows, each from 0 to 1.

    Args:
        price_ratio: what a row costs on the strong tier over what it costs on the cheap one.

    Raises:
        ValueError: the two do not match, or there are no rows.
    """
    low, high = np.asarray(weak, np.float64), np.asarray(strong, np.float64)
    if low.shape != high.shape or not len(low):
        raise ValueError(f"{len(low)} cheap and {len(high)} strong qualities")
    gain = high - low
    gap = _gap(gain, confidence)
    saved = [_oracle_saving(g, price_ratio) for g in (gap.value, gap.high, gap.low)]
    oracle = Estimate("saving of an oracle", *saved)
    verdict, reason = _verdict(len(gain), gap, oracle)
    return Advice(
        len(gain),
        gap,
        _share("strong only", gain > 0, confidence),
        _share("cheap only", gain < 0, confidence),
        _share("both", (gain == 0) & (high >= 0.5), confidence),
        _share("neither", (gain == 0) & (high < 0.5), confidence),
        oracle,
        verdict,
        reason,
    )


def wilson(hits: int, rows: int, confidence: float) -> tuple[float, float]:
    """An interval for a share of rows; (0, 1) without rows."""
    from scipy.stats import norm

    if not rows:
        return 0.0, 1.0
    z = float(norm.ppf((1 + confidence) / 2))
    share, extra = hits / rows, z * z / rows
    centre = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * np.sqrt(share * (1 - share) / rows + extra / rows / 4)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def _share(name: str, rows: NDArray[np.bool_], confidence: float) -> Estimate:
    return Estimate(name, float(rows.mean()), *wilson(int(rows.sum()), len(rows), confidence))


def _gap(gain: NDArray[np.float64], confidence: float) -> Estimate:
    # Two bounds, so each has half of the error.
    each = (1 + confidence) / 2
    low, high = -upper_bound(-gain, each), upper_bound(gain, each)
    return Estimate("gap in quality", float(gain.mean()), low, high)


def _oracle_saving(gap: float, price_ratio: float) -> float:
    """It needs the strong tier for as many rows as the gap has: cheap wins make up for others."""
    return (1 - max(gap, 0.0)) * (1 - 1 / price_ratio)


def _verdict(rows: int, gap: Estimate, oracle: Estimate) -> tuple[Verdict, str]:
    if rows < LEAST_ROWS:
        return "too few rows", f"{rows} labelled rows say little; label {LEAST_ROWS} or more"
    if oracle.high < LEAST_SAVING:
        most = f"even a router without mistakes saves at most {100 * max(oracle.high, 0):.1f} %"
        return "cannot pay", f"{most}: use the strong tier for all"
    if gap.high <= 0:
        return "can pay", "the cheap tier is at least as good: use it for all"
    if oracle.low < LEAST_SAVING:
        least = f"a router without mistakes may save as little as {100 * oracle.low:.1f} %"
        return "too few rows", f"{least}: label more rows"
    if gap.low <= 0:
        return "can pay", "no gap in quality is proved: most rows can stay cheap"
    return "can pay", f"up to {100 * oracle.value:.0f} %; what a learned router gets is less"
