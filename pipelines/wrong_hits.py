"""How often is a semantic hit wrong? A bound that holds at every moment, and what it decides.

An audited candidate's row is generated although a cached answer was at hand, and the two are
compared. Groups (one tenant, context and model policy) are judged apart, each at the confidence
asked for. A group is closed until its audits bound the wrong hits; until then all of its
candidates are audits, which costs what no cache would have cost.

The bound. Over n audits, w of them wrong, a rate m is excluded when

    K(m) = mean over p of  p^w (1-p)^(n-w) / (m^w (1-m)^(n-w))  >=  1 / (1 - confidence)

with p drawn from Beta(1/2, 1) cut off at m. One more audit multiplies the term of p by p/m if it
was wrong and else by (1-p)/(1-m). Where the true rate is q >= m, that factor's mean
q p/m + (1-q)(1-p)/(1-m) is 1 at q = m and falls with q, since p < m: it is at most 1. Each term is
so a supermartingale that starts at 1, whatever q >= m does from one audit to the next, and their
mean is one too. By Ville's inequality it ever reaches 1/(1 - confidence) with probability
1 - confidence at most: looking after every audit, and stopping when one likes, is free. K grows
with m: in u = p/m it is the mean of u^w ((1-mu)/(1-m))^(n-w) over a law of u without m. The
excluded rates are therefore all those from the bound up.

Beta(1/2, 1) leans to small rates. Audits until a limit of .01 holds at .95, by wrong ones, and
with the share of the error that the lowest of several levels has:

    wrong           0     1     2     3     5    10    20
    one level     377   663   883  1079  1436  2234  3666
    lowest level  403   692   914  1112  1472  2275  3716
"""

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Literal

LEVELS = (0.98, 0.985, 0.99, 0.995, 0.999)
"""Thresholds that a group may get, rising; the lowest is where candidates begin."""

Action = Literal["trial", "audit", "serve"]

_PRIOR = 0.5
_LOWEST_SHARE = 0.8
_ROUNDING = 1e-6
"""Similarities are float32, and made from distances: equal vectors may give .9999999."""
_RISEN = 2.0
DRIFT_ALARM = 2.0
"""The drift alarm looks for twice the limit. Measured by `bench.cache_bound`: at this height a
limit of 1 % and a rate that jumps to 5 % end in an alarm within 200 audits 19 times in 20."""


def excludes(audited: int, wrong: int, rate: float, confidence: float) -> bool:
    """Whether the audits exclude every wrong rate from `rate` up, looked at as often as one likes.

    Euler's transformation turns K's integral, a hypergeometric function, into a finite sum of
    positive terms: exact, and both answers come early.
    """
    needed, odds = 1 / (1 - confidence), rate / (1 - rate)
    term = total = _PRIOR / (_PRIOR + wrong)
    for k in range(audited - wrong):
        ratio = (audited - wrong - k) / (_PRIOR + wrong + 1 + k) * odds
        term *= ratio
        total += term
        if total >= needed:
            return True
        # Later ratios are smaller: what is left is below a geometric series.
        if ratio < 1 and total + term * ratio / (1 - ratio) < needed:
            return False
    return False


def upper_bound(audited: int, wrong: int, confidence: float) -> float:
    """The wrong rate that the audits leave possible, as a share of hits; 1.0 before any audit.

    Raises:
        ValueError: for counts that cannot be, or a confidence outside (0, 1).
    """
    if not 0 <= wrong <= audited or not 0 < confidence < 1:
        raise ValueError(f"{wrong} wrong of {audited} audited at confidence {confidence}")
    low, high = 0.0, 1.0
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        if excludes(audited, wrong, middle, confidence):
            high = middle
        else:
            low = middle
        if low > 1 - 1e-9:
            return 1.0
    return high


def audits_needed(limit: float, confidence: float, levels: tuple[float, ...]) -> int:
    """Audits, none of them wrong, after which a closed group opens."""
    low, high = 0, 1
    at = confidence_at(0, levels, confidence)
    while not excludes(high, 0, limit, at):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if excludes(middle, 0, limit, at) else (middle, high)
    return high


def levels_from(similarity: float) -> tuple[float, ...]:
    """The thresholds that a group may get where candidates begin at a similarity."""
    return (similarity, *(level for level in LEVELS if level > similarity))


def level_of(similarity: float, levels: tuple[float, ...]) -> int | None:
    """The index of the highest level that a similarity reaches; None below all, and for NaN."""
    if not similarity >= levels[0] - _ROUNDING:
        return None
    return bisect_right(levels, similarity + _ROUNDING) - 1


def reaches(similarity: float, threshold: float | None) -> bool:
    return threshold is not None and similarity >= threshold - _ROUNDING


@dataclass(frozen=True)
class Evidence:
    """A group's audits by level: index i counts similarities from levels[i] to the next level.

    Counts do not depend on the order of audits, and those of two places add up.
    """

    levels: tuple[float, ...]
    audited: tuple[int, ...]
    wrong: tuple[int, ...]

    @staticmethod
    def none(levels: tuple[float, ...] = LEVELS) -> "Evidence":
        return Evidence(levels, (0,) * len(levels), (0,) * len(levels))

    def __add__(self, other: "Evidence") -> "Evidence":
        if self.levels != other.levels:
            raise ValueError(f"evidence at levels {self.levels} and {other.levels}")
        audited = tuple(a + b for a, b in zip(self.audited, other.audited, strict=True))
        wrong = tuple(a + b for a, b in zip(self.wrong, other.wrong, strict=True))
        return Evidence(self.levels, audited, wrong)

    def count(self, level: int, audited: int, wrong: int) -> "Evidence":
        """With so many more audits in the bin of that level's index."""
        none = (0,) * len(self.levels)
        more = none[:level], none[level + 1 :]
        bins = [(*more[0], number, *more[1]) for number in (audited, wrong)]
        return self + Evidence(self.levels, *bins)

    def from_level(self, level: int) -> tuple[int, int]:
        """Audited and wrong among all candidates at or above the level of that index.

        Cumulated, not by bin: wrong per hit of all that the threshold lets through is what was
        promised, and one count has its audits sooner than five. While a higher threshold is in
        force the levels below it are audited whole and those above in part, so that the lower
        ones, as a rule the worse, weigh too much here: that errs on the safe side.
        """
        return sum(self.audited[level:]), sum(self.wrong[level:])


def confidence_at(level: int, levels: tuple[float, ...], confidence: float) -> float:
    """A level's part of the confidence, so that no level of a group opens wrongly by chance.

    The lowest has four fifths of the error and the others share the rest. Opening one level after
    the other from the highest down would need no shares, but nothing could open before some 380
    audits at .999, where few candidates are: 5 % of them make that 7,500 instead of 403.
    """
    if len(levels) == 1:
        return confidence
    share = (1 - _LOWEST_SHARE) / (len(levels) - 1) if level else _LOWEST_SHARE
    return 1 - (1 - confidence) * share


def threshold(evidence: Evidence, limit: float, confidence: float) -> float | None:
    """The lowest level from which on at most `limit` of the hits are wrong; None: closed."""
    for i, level in enumerate(evidence.levels):
        at = confidence_at(i, evidence.levels, confidence)
        if excludes(*evidence.from_level(i), limit, at):
            return level
    return None


def drift_step(wrong: bool, limit: float) -> float:
    """What one audit of a hit adds to the drift: log likelihood of twice the limit over it."""
    return math.log(_RISEN if wrong else (1 - _RISEN * limit) / (1 - limit))


@dataclass(frozen=True)
class Group:
    """A group's evidence, and an alarm for what evidence cannot see: that it is out of date.

    The bound speaks of a rate that stays. After 50,000 clean audits it would take 500 wrong ones
    to pass 1 %. `drift` is therefore a CUSUM over the audits, in order, of hits that were at or
    above the threshold: it rises while they look like twice the limit rather than the limit, and
    never falls below 0, so that a long clean past buys nothing. At the alarm all evidence is
    dropped, and the group has to earn its threshold again.
    """

    evidence: Evidence
    drift: float = 0.0
    alarms: int = 0

    def after(self, similarity: float, wrong: bool, limit: float, confidence: float) -> "Group":
        """The group after one more audit. A similarity below all levels is no evidence."""
        levels = self.evidence.levels
        level = level_of(similarity, levels)
        if level is None:
            return self
        evidence = self.evidence.count(level, 1, int(wrong))
        if not reaches(levels[level], threshold(self.evidence, limit, confidence)):
            return replace(self, evidence=evidence)
        drift = max(0.0, self.drift + drift_step(wrong, limit))
        if drift >= DRIFT_ALARM:
            return Group(Evidence.none(levels), alarms=self.alarms + 1)
        return replace(self, evidence=evidence, drift=drift)


def chosen_for_audit(row_id: str, share: float, seed: str) -> bool:
    """Whether a hit belongs to the audited share: by digest, so that a repeated task agrees."""
    draw = blake2b(f"{seed}\0{row_id}".encode(), digest_size=8).digest()
    return int.from_bytes(draw) < share * 2**64


def decide(similarity: float, threshold: float | None, chosen: bool) -> Action:
    """What becomes of a candidate that passed all gates.

    Args:
        chosen: whether its row is one of the random share, see `chosen_for_audit`.

    Returns:
        `serve` answers it from the cache. `audit` and `trial` generate it and compare: the first
        as one of the share, the second because nothing bounds its like yet.
    """
    if not reaches(similarity, threshold):
        return "trial"
    return "audit" if chosen else "serve"
