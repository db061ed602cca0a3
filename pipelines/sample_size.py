"""How many rows of an input are worth sampling, told while the sample grows.

A sample is looked at after 300 rows, and whenever it has doubled. What may end it are rows that
routing is fitted to. Those of the test are not looked at before the sample has its size, and then
once: a size that follows from other rows leaves their proof what it is. (Of what sampling has cost
their part is known, not what it bought.) Only that a pair of tiers cannot pay may be told by all
rows, because it ends without a certificate, and none cannot be wrong.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from pipelines.certify import Certificate, Costs, Floor, certify
from pipelines.worth import Advice

FIRST_LOOK = 300
LUCK = 1.0
"""How much better than projected a larger sample may do before sampling is given up: small samples
project badly. In standard errors, chosen among 0, .5, 1 and 2 by `bench.sample_size`."""
_LEAST_GROWTH = 1.5
"""A last step that adds less is taken with the one before it: each look starts the engines."""


@dataclass(frozen=True)
class Prospect:
    """What a larger sample would probably do; a projection, not a proof.

    Attributes:
        rows: of it.
        pays: whether those that it adds would save more than they cost.
    """

    rows: int
    certificate: Certificate
    pays: bool


@dataclass(frozen=True)
class Enough:
    """Why a sample grows no further.

    Attributes:
        certifies: whether what it has may be certified.
    """

    reason: str
    certifies: bool = True


@dataclass(frozen=True)
class Sampling:
    """What sampling costs, and what it is for.

    Attributes:
        rows: of the sample.
        ahead: rows of the input that are not in it.
        extra: what a sampled row costs beyond the strong tier's answer, which is kept: the cheap
            answer, its judgement, the engines' start; in the currency of the costs.
    """

    rows: int
    ahead: int
    extra: float


def looks(most: int) -> list[int]:
    """The rows that a growing sample of at most so many has whenever it is looked at."""
    sizes, size = list[int](), FIRST_LOOK
    while size * _LEAST_GROWTH <= most:
        sizes.append(size)
        size *= 2
    return [*sizes, most]


def why_enough(advice: Advice, prospects: Sequence[Prospect]) -> Enough | None:
    """None: go on sampling."""
    if advice.verdict == "cannot pay":
        return Enough("this pair of tiers cannot pay", certifies=False)
    if not any(prospect.pays for prospect in prospects):
        return Enough("more rows would not pay for themselves")
    return None


def prospects(
    scores: ArrayLike,
    gains: ArrayLike,
    grid: ArrayLike,
    floor: Floor,
    costs: Costs,
    sampling: Sampling,
    sizes: Sequence[int],
    luck: float = 0.0,
) -> list[Prospect]:
    """Of samples of these sizes, were their rows like these: these, over and over.

    Args:
        scores: of the rows that routing is fitted to, by models that had not seen them; the test
            has as many rows.
        luck: by so many standard errors of a loss as high as the floor the larger ones do better.
    """

    def of(size: int, floor: Floor) -> Certificate:
        rows = round(len(np.asarray(scores)) * size / sampling.rows)
        score, gain = (np.resize(np.asarray(v, np.float64), rows) for v in (scores, gains))
        each = (costs.kept, costs.sent, costs.strong)
        repeated = Costs(*(c if np.ndim(c) == 0 else np.resize(c, rows) for c in each))
        return certify(score, gain, grid, floor, repeated, sampling.ahead)

    now, strong = of(sampling.rows, floor), float(np.mean(np.asarray(costs.strong, np.float64)))
    error = math.sqrt(floor.loss / len(np.asarray(scores)))
    hoped = replace(floor, loss_points=floor.loss_points + 100 * luck * error)
    larger = [(size, of(size, hoped)) for size in sizes]
    return [
        Prospect(size, found, worth_sampling(now, found, sampling, size, strong))
        for size, found in larger
    ]


def worth_sampling(
    now: Certificate, larger: Certificate, sampling: Sampling, size: int, strong_cost: float
) -> bool:
    """Whether the rows that a sample of this size adds would save more than they cost.

    Args:
        strong_cost: of a row on the strong tier.
    """
    added = size - sampling.rows
    rest = sampling.ahead - added
    if rest <= 0:
        return False
    gained = rest * strong_cost * (larger.saving - now.saving)
    # A sampled row is answered by the strong tier, so what routing saved on it is lost too.
    paid = added * (sampling.extra + strong_cost * now.saving)
    return bool(gained > paid)
