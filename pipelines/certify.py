"""Which share of the rows may stay on the cheap tier: a threshold with a finite-sample proof.

A row's gain is the strong tier's quality less the cheap tier's, from -1 to 1. Rows scored at or
below a threshold stay cheap; routing then loses a row's gain where it stays and nothing where it
does not. The floor says: the mean loss is at most `loss_points` hundredths, with a confidence.

Fixed-sequence testing: thresholds are tried from the strictest up, each at the full error of the
floor, and the first that is not proved ends it. Calling a wrong threshold proved needs an error
at the first wrong one, so trying many costs nothing. The thresholds must be chosen without the
gains that are tested here: from the rows the scores were learned on.

The test. Gains of -1, 0 and 1 make the losses trinomial. Counts of 1 and -1 are ordered by the
score statistic, and its exact law under "the loss is the floor's" has one more unknown, the rate
of -1. The P-value is the largest up to that rate's upper confidence bound (Clopper-Pearson, at a
fiftieth of the error), plus that fiftieth: Berger and Boos, JASA 1994. All other gains are tested
by betting against the floor (Waudby-Smith and Ramdas, JRSS B 2024).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_NUISANCE_ERROR = 0.02
"""The share of the error that the bound on the rate of -1 takes."""
_NUISANCE_STEPS = 9
_FAR = 1e-9
_RESOLUTION = 1e-4
"""Bounds are found to a hundredth of a point."""


@dataclass(frozen=True)
class Floor:
    """The contract: at most so many points of mean quality are lost, at this confidence."""

    loss_points: float
    confidence: float = 0.95

    @property
    def loss(self) -> float:
        return self.loss_points / 100

    @property
    def error(self) -> float:
        return 1 - self.confidence


@dataclass(frozen=True)
class Costs:
    """What a row costs, as one number for all or one for each row, in any one currency.

    Attributes:
        kept: where it stays on the cheap tier.
        sent: where it goes to the strong tier; in a cascade, the cheap attempt included.
        strong: where all rows go to the strong tier at once: what a saving is counted from.
    """

    kept: ArrayLike = 0.1
    sent: ArrayLike = 1.0
    strong: ArrayLike = 1.0

    def saving(self, kept: NDArray[np.bool_]) -> float:
        """The share of the all-strong cost that is saved where these rows stay cheap."""
        routed = np.where(kept, self.kept, self.sent)
        return float(1 - routed.mean() / np.broadcast_to(self.strong, kept.shape).mean())


@dataclass(frozen=True)
class Certificate:
    """What was proved.

    Attributes:
        threshold: rows scored at or below it may stay cheap; None: no row does.
        share_cheap, saving, loss: on the rows of the test, of 1.
        loss_upper: the most that the test leaves possible at this threshold, of 1.
        sample: rows of the test.
    """

    threshold: float | None
    share_cheap: float
    saving: float
    loss: float
    loss_upper: float
    sample: int


def threshold_grid(scores: ArrayLike, levels: int = 30) -> Floats:
    """Rising thresholds that keep equal further shares of these rows; the last keeps all."""
    values = np.asarray(scores, np.float64)
    shares = np.arange(1, levels + 1) / levels
    return np.unique(np.quantile(values, shares, method="inverted_cdf"))


def certify(
    scores: ArrayLike,
    gains: ArrayLike,
    grid: ArrayLike,
    floor: Floor,
    costs: Costs | None = None,
    ahead: int | None = None,
) -> Certificate:
    """The highest threshold up to which the floor is proved; none if even that saves nothing, as
    where asking for each row's score costs more than the rows that stay cheap save.

    Args:
        scores: of shape (rows,), higher where the strong tier gains more.
        gains: of shape (rows,), strong quality less cheap quality, from -1 to 1.
        grid: thresholds chosen without these gains, see `threshold_grid`.
        ahead: promise the floor for the realised mean over so many rows to come, whose own
            chance counts too; None: for the mean that more and more rows would approach.

    Raises:
        ValueError: rows that do not match, or gains outside [-1, 1].
    """
    score, gain = np.asarray(scores, np.float64), np.asarray(gains, np.float64)
    if score.shape != gain.shape or score.ndim != 1 or np.any(np.abs(gain) > 1):
        raise ValueError(f"scores {score.shape} and gains {gain.shape}: one each a row, -1 to 1")
    proved: float | None = None
    for threshold in np.sort(np.asarray(grid, np.float64)) if len(gain) else ():
        losses = np.where(score <= threshold, gain, 0.0)
        if p_value(losses, floor.loss, floor.error, ahead) > floor.error:
            break
        proved = float(threshold)
    kept = score <= (-np.inf if proved is None else proved)
    saving = (costs or Costs()).saving(kept) if len(gain) else 0.0
    if proved is None or saving <= 0:
        return Certificate(None, 0.0, 0.0, 0.0, 0.0, len(gain))
    losses = np.where(kept, gain, 0.0)
    upper = min(floor.loss, upper_bound(losses, floor.confidence, ahead))
    return Certificate(proved, kept.mean(), saving, losses.mean(), upper, len(gain))


def upper_bound(losses: Floats, confidence: float, ahead: int | None = None) -> float:
    """The mean loss that these leave possible at that confidence, of 1."""
    low, high = float(np.mean(losses)), 1.0
    while high - low > _RESOLUTION:
        middle = (low + high) / 2
        if p_value(losses, middle, 1 - confidence, ahead) <= 1 - confidence:
            high = middle
        else:
            low = middle
    return high


def p_value(losses: Floats, limit: float, error: float, ahead: int | None = None) -> float:
    """Of the claim that the mean loss is below the limit. Valid as a comparison with `error`.

    With rows ahead, both means scatter, and their difference as the mean of nN/(n + N) rows does:
    the test is made as if it had so few.
    """
    n = len(losses)
    rows = n if ahead is None else n * ahead // (n + ahead)
    if rows == 0 or np.mean(losses) >= limit:
        return 1.0
    if np.all(np.isin(losses, (-1.0, 0.0, 1.0))):
        lost, won = int(np.sum(losses == 1)), int(np.sum(losses == -1))
        return _trinomial(n, lost, won, limit, error, rows)
    return _betting(losses, limit, error, rows / n)


def _trinomial(n: int, lost: int, won: int, limit: float, error: float, rows: int) -> float:
    """P-value for `lost` of 1 and `won` of -1 among n losses, tested as `rows` of them."""
    from scipy.special import betaincinv

    spent = _NUISANCE_ERROR * error
    bound = float(betaincinv(won + 1, n - won, 1 - spent)) if won < n else 1.0
    # Beyond these there is no law with that mean.
    least, most = max(0.0, -limit), min(bound, (1 - limit) / 2)
    if least > most:
        return spent
    seen = float(evidence(np.array(lost * rows / n), np.array(won * rows / n), rows, limit))
    rates = np.linspace(least, most, _NUISANCE_STEPS)
    return min(1.0, spent + float(as_telling(seen, rows, limit, rates).max()))


def as_telling(seen: float, rows: int, limit: float, rates: Floats) -> Floats:
    """P(evidence >= seen) for counts of 1 at the rates `limit` + each of `rates`, of -1 at these.

    Exact but for counts of -1 farther off than a chance of 1e-9, which count as telling.
    """
    from scipy.special import betainc, gammaln

    first, last = _reach(rows, float(rates[0]))[0], _reach(rows, float(rates[-1]))[1]
    won = np.arange(first, last + 1, dtype=np.float64)
    # Evidence falls as the count of 1 grows: up to which one is it as much as was seen?
    most = _most_lost(seen, won, rows, limit)
    chosen = gammaln(rows + 1) - gammaln(won + 1) - gammaln(rows - won + 1)
    rate = np.clip(rates[:, None], 1e-300, 1 - 1e-15)
    chance = np.exp(chosen + won * np.log(rate) + (rows - won) * np.log1p(-rate))
    up = np.clip((limit + rate) / (1 - rate), 0.0, 1.0)
    some = np.clip(most, 0, np.maximum(rows - won - 1, 0))
    fewer = betainc(np.maximum(rows - won - some, 1e-9), some + 1, 1 - up)
    fewer = np.where(most < 0, 0.0, np.where(most >= rows - won, 1.0, fewer))
    return (chance * fewer).sum(axis=1) + _FAR


def _reach(rows: int, rate: float) -> tuple[int, int]:
    """Counts beyond which there is a chance of 1e-9 at most, by Bernstein's inequality."""
    far = math.log(2 / _FAR)
    reach = far / 3 + math.sqrt((far / 3) ** 2 + 2 * far * rows * rate * (1 - rate))
    return max(0, math.floor(rows * rate - reach)), min(rows, math.ceil(rows * rate + reach))


def _most_lost(seen: float, won: Floats, rows: int, limit: float) -> Floats:
    """For each count of -1, the largest count of 1 that is as telling as `seen`; -1 if none."""
    low, high = np.full(len(won), -1.0), rows - won
    while np.any(high > low):
        middle = np.ceil((low + high) / 2)
        telling = evidence(middle, won, rows, limit) >= seen - 1e-9
        low, high = np.where(telling, middle, low), np.where(telling, high, middle - 1)
    return low


def evidence(lost: Floats, won: Floats, rows: int, limit: float) -> Floats:
    """How many standard errors the mean loss is below the limit: the score statistic.

    Its variance is that of the likeliest law whose mean is the limit, which makes its law nearly
    the same whatever the rate of -1: nothing is lost by taking the worst.
    """
    ups, downs = lost / rows, won / rows
    # The likeliest rate of -1, where that of 1 is higher by the limit: a quadratic equation.
    half = ups * (1 + limit) + downs * (1 - limit) - 2 * limit
    root = np.sqrt(np.maximum(half**2 + 8 * downs * limit * (1 - limit), 0))
    rate = (half + root) / 4
    variance = np.maximum(2 * rate + limit - limit**2, 1e-12)
    return (limit - ups + downs) * np.sqrt(rows / variance)


def _betting(losses: Floats, limit: float, error: float, weight: float) -> float:
    """One over the capital won by betting on every loss being below the limit, in turn.

    The stake follows from the losses before it only. Where the test counts as one of fewer rows,
    the growth of the capital is that much smaller.
    """
    # Any order is valid that does not look at the losses; theirs may be sorted.
    turns = np.random.default_rng(len(losses)).permutation(losses)
    before = np.arange(1, len(turns) + 1)
    mean = (np.concatenate([[0.0], np.cumsum(turns)[:-1]]) + limit / 2) / before
    spread = np.cumsum((turns - mean) ** 2)
    variance = (np.concatenate([[0.0], spread[:-1]]) + 0.25) / before
    stake: Any = np.sqrt(2 * math.log(1 / error) / (variance * len(turns)))
    growth = np.log1p(np.minimum(stake, 0.5 / (1 + limit)) * (limit - turns))
    return float(min(1.0, math.exp(-weight * growth.sum())))
