"""How many hits are wrong: a bound from audits that holds at all times at once.

An audit is one candidate of the response cache whose row was answered anew, and whose two answers
were compared. Whether a candidate is audited does not depend on how that turns out, so audits show
the rate of wrong hits.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betainc, betaln

from pipelines.keys import digest

LEVELS = (0.98, 0.985, 0.99, 0.995, 0.999)
"""Similarities at which a threshold may lie."""
_A, _B = 0.3, 20.0
"""The prior of the bound, a Beta distribution: most mass where useful groups are, below 2 %."""
_BISECTIONS = 50
_RECENT = 300
"""Audits of one of the two windows in which a change is looked for."""
_ALARM = 5.0
"""The likelihood ratio against the limit at which recent audits void all before them. It is no
bound's: an alarm in vain costs audits, and no wrong answer.
"""


@dataclass(frozen=True)
class Evidence:
    """Audits of one group, by level of similarity: order and source do not matter.

    Attributes:
        levels: ascending; a candidate belongs to the highest that its similarity reaches.
        audited, wrong: counts of each level.
    """

    levels: tuple[float, ...]
    audited: tuple[int, ...]
    wrong: tuple[int, ...]

    def __add__(self, other: "Evidence") -> "Evidence":
        if self.levels != other.levels:
            raise ValueError(f"evidence at levels {self.levels} and at {other.levels}")
        return Evidence(
            self.levels,
            tuple(a + b for a, b in zip(self.audited, other.audited, strict=True)),
            tuple(a + b for a, b in zip(self.wrong, other.wrong, strict=True)),
        )

    def from_level(self, level: float) -> tuple[int, int]:
        """(audited, wrong) of all candidates whose similarity reaches a level."""
        first = self.levels.index(level)
        return sum(self.audited[first:]), sum(self.wrong[first:])


def levels_from(similarity: float) -> tuple[float, ...]:
    """The levels of a cache whose candidates start at a similarity."""
    return (similarity, *(level for level in LEVELS if level > similarity))


def evidence_of(audits: Iterable[tuple[float, bool]], levels: Sequence[float]) -> Evidence:
    """The evidence of (similarity, wrong) pairs; similarities below all levels count as lowest."""
    audited, wrong = [0] * len(levels), [0] * len(levels)
    for similarity, is_wrong in audits:
        level = max(int(np.searchsorted(levels, similarity, side="right")) - 1, 0)
        audited[level] += 1
        wrong[level] += is_wrong
    return Evidence(tuple(levels), tuple(audited), tuple(wrong))


def upper_bound(audited: int, wrong: int, confidence: float) -> float:
    """The rate of wrong hits is below this, at all times at once, with the given confidence.

    For a rate m and each p < m the likelihood ratio of p against m has, under any true rate
    q >= m, an expected growth of q p/m + (1-q)(1-p)/(1-m) <= 1 an audit: it is linear in q, 1 at
    q = m, and falls with q. So its mean over a prior on (0, m) is a nonnegative supermartingale,
    and by Ville's inequality reaches 1/(1 - confidence) with a probability of at most
    1 - confidence, however long one looks. The bound is the largest m that was not rejected so.
    """
    low, high = wrong / audited if audited else 0.0, 1.0
    bar = -math.log1p(-confidence)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _log_evidence_below(audited, wrong, middle) >= bar:
            high = middle
        else:
            low = middle
    return high


def _log_evidence_below(audited: int, wrong: int, rate: float) -> float:
    """The log of the mean likelihood ratio of smaller rates against this one."""
    a, b = _A + wrong, _B + audited - wrong
    with np.errstate(divide="ignore"):
        mass = float(np.log(betainc(a, b, rate)) - np.log(betainc(_A, _B, rate)))
    against = wrong * math.log(rate) + (audited - wrong) * math.log1p(-rate)
    return float(betaln(a, b) - betaln(_A, _B)) + mass - against


def audits_needed(limit: float, confidence: float) -> int:
    """Audits without a wrong one after which the bound is within the limit."""
    low, high = 0, 1
    while upper_bound(high, 0, confidence) > limit:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if upper_bound(middle, 0, confidence) > limit:
            low = middle
        else:
            high = middle
    return high


def threshold(evidence: Evidence, limit: float, confidence: float) -> float | None:
    """The lowest level from which hits are bounded by the limit; None if they are at none.

    Levels are opened one after the other from the highest down, so that no correction for
    their number is needed: for a wrong one to open, the first wrong one must have.

    Counted are all audits from a level on, although those below the present threshold are
    audited more often than those above it. That is safe: where lower similarities are more
    often wrong it counts too many wrong ones, and where they are not, hits from the level on
    are no more often wrong than those from the level before it, which is bounded itself.
    """
    opened = None
    for level in reversed(evidence.levels):
        if upper_bound(*evidence.from_level(level), confidence) > limit:
            break
        opened = level
    return opened


class Recent:
    """The latest audits of a group, to see a change that a long good history would hide."""

    def __init__(self) -> None:
        self._before, self._now = (0, 0), (0, 0)

    @property
    def counts(self) -> tuple[int, int]:
        """(audited, wrong) of the two windows."""
        return self._before[0] + self._now[0], self._before[1] + self._now[1]

    def add(self, wrong: bool) -> None:
        if self._now[0] == _RECENT:
            self._before, self._now = self._now, (0, 0)
        self._now = (self._now[0] + 1, self._now[1] + wrong)

    def contradicts(self, limit: float) -> bool:
        """Whether they speak against a rate within the limit."""
        return any(_ratio_above(*counts, limit) >= _ALARM for counts in (self.counts, self._now))


def _ratio_above(audited: int, wrong: int, limit: float) -> float:
    """The likelihood ratio of three times the limit against it."""
    rate = min(3 * limit, (1 + limit) / 2)
    log_ratio = wrong * math.log(rate / limit)
    log_ratio += (audited - wrong) * (math.log1p(-rate) - math.log1p(-limit))
    return math.exp(min(log_ratio, 700.0))


def chosen_for_audit(row_id: str, share: float, seed: str) -> bool:
    """Whether a row is audited: by lot, and the same whenever Ray runs its task again."""
    lot = int.from_bytes(digest(f"{seed}\0{row_id}".encode())[:8], "big")
    return lot < share * 2**64
