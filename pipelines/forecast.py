"""What a run will take and cost, told before it starts: ranges, from a sample of its requests."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.prices import NUSD, HourRate, TokenRate
from pipelines.requests import Request
from pipelines.walks import Walk

Floats = NDArray[np.float64]
STANDARD_ERRORS = 1.96
"""Of a mean: 95 %."""
_SECONDS_PER_HOUR = 3600
_MTOK = 10**6
_VISITS, _PROMPT, _COMPLETION, _COST = range(4)
_LOW, _EXPECTED, _HIGH = range(3)


@dataclass(frozen=True)
class Range:
    """Attributes:
    low, high: what it lies between; `high` is infinite where nothing bounds it.
    expected: None where nothing tells it.
    """

    low: float
    expected: float | None
    high: float

    def times(self, factor: float) -> "Range":
        """Nothing, where the factor is nothing."""
        if not factor:
            return Range.exactly(0)
        expected = None if self.expected is None else self.expected * factor
        return Range(self.low * factor, expected, self.high * factor)

    @staticmethod
    def exactly(value: float) -> "Range":
        return Range(value, value, value)

    @staticmethod
    def sum(*parts: "Range") -> "Range":
        told = [part.expected for part in parts if part.expected is not None]
        return Range(
            sum(part.low for part in parts),
            sum(told) if len(told) == len(parts) else None,
            sum(part.high for part in parts),
        )


@dataclass(frozen=True)
class Speed:
    """What a tier does a second, all its replicas together; None where it is not known.

    Attributes:
        completion_tokens, answers: as was measured.
        most_requests, most_tokens: what limits leave.
    """

    completion_tokens: float | None = None
    answers: float | None = None
    most_requests: float | None = None
    most_tokens: float | None = None


@dataclass(frozen=True)
class TierFacts:
    """What is known of a tier.

    Attributes:
        prompt_tokens: of what it is asked.
        completion_tokens: of its answer.
        refuses: what it will not work on, at no cost.
        replicas: how many `speed` is of.
        unknown: what is not, for people.
    """

    rate: TokenRate | HourRate
    prompt_tokens: Callable[[Request], Range]
    completion_tokens: Callable[[Request], Range]
    speed: Speed
    refuses: Callable[[Request], bool] = lambda _: False
    replicas: int = 1
    unknown: Sequence[str] = ()


@dataclass(frozen=True)
class Sampled:
    """A request that was looked at closely.

    Attributes:
        walks: that its rows may take.
        rows: of the input that ask it.
        is_hit: whether the response cache answers it.
        is_drawn: at random from those that were not chosen for what they are.
    """

    request: Request
    walks: Sequence[Walk]
    rows: int = 1
    is_hit: bool = False
    is_drawn: bool = True


@dataclass(frozen=True)
class TierForecast:
    """What a tier will do. `hours` is None where nothing is known of its speed."""

    requests: Range
    prompt_tokens: Range
    completion_tokens: Range
    cost_usd: Range
    hours: Range | None


@dataclass(frozen=True)
class Forecast:
    """Attributes:
    hits: requests that the response cache answers.
    refused: requests that no tier which may answer them takes.
    baseline_usd: the tokens of all rows' answers at the baseline's price; None without one.
    """

    hits: Range
    refused: Range
    tiers: dict[str, TierForecast]
    cost_usd: Range
    baseline_usd: Range | None


def forecast(
    sample: Sequence[Sampled],
    requests: int,
    rows: int,
    facts: Mapping[str, TierFacts],
    shares: Mapping[str, float] | None = None,
    baseline: TokenRate | None = None,
) -> Forecast:
    """Scale a sample up.

    Args:
        requests: all there are.
        rows: all that ask them.
        shares: of rows with a choice of walks: how often a tier's answer is the last; None where
            nothing tells.
        baseline: the price that savings are counted from.
    """
    names = [*facts]
    scale = _Scale(sample, requests, rows)
    amounts = np.array([_amounts(one, names, facts, shares) for one in sample])
    amounts = amounts.reshape(len(sample), len(names) + 1, 4, 3)
    totals = [[scale.total(amounts[:, t, q]) for q in range(4)] for t in range(len(names) + 1)]
    hits = [one.is_hit for one in sample]
    refused = [
        not one.is_hit and all(facts[walk.end].refuses(one.request) for walk in one.walks)
        for one in sample
    ]
    baseline_usd = None
    if baseline is not None:
        instead = np.array([_at_baseline(one, facts, shares, baseline) for one in sample])
        baseline_usd = scale.total_of_rows(instead).times(1 / NUSD)
    return Forecast(
        hits=scale.total(_alike(hits)),
        refused=scale.total(_alike(refused)),
        tiers={
            name: _tier(told, facts[name])
            for name, told in zip(names, totals, strict=False)
            if told[_VISITS].high
        },
        cost_usd=totals[-1][_COST].times(1 / NUSD),
        baseline_usd=baseline_usd,
    )


class _Scale:
    """From a sample to all: what was chosen counts as it is, what was drawn stands for the rest."""

    def __init__(self, sample: Sequence[Sampled], requests: int, rows: int) -> None:
        self._times = np.array([one.rows for one in sample], np.float64)
        self._drawn = np.array([one.is_drawn for one in sample], bool)
        self._requests = requests - int((~self._drawn).sum())
        self._rows = rows - float(self._times[~self._drawn].sum())

    def total(self, values: Floats) -> Range:
        """Of all requests. `values`: of each, of shape (requests, low / expected / high)."""
        return self._scaled(values, np.ones(len(values)), self._requests)

    def total_of_rows(self, values: Floats) -> Range:
        """Of all rows. `values`: of a row that asks each."""
        return self._scaled(values, self._times, self._rows)

    def _scaled(self, values: Floats, weights: Floats, of: float) -> Range:
        """A ratio estimate: the weights' whole sum is known."""
        if not len(values):
            return Range.exactly(0)
        chosen = (values * weights[:, None])[~self._drawn].sum(axis=0)
        drawn, weights = values[self._drawn], weights[self._drawn]
        size = len(drawn)
        if not size:
            return _range(chosen, np.zeros(3))
        seen = (drawn * weights[:, None]).sum(axis=0)
        unseen = 1 - size / self._requests
        if unseen <= 0:
            return _range(chosen + seen, np.zeros(3))
        mean = seen / weights.sum()
        finite, apart = np.isfinite(mean), np.zeros(3)
        off = (drawn[:, finite] - mean[finite]) * (weights / weights.mean())[:, None]
        error = np.sqrt((off**2).sum(axis=0) / max(size - 1, 1) / size * unseen)
        apart[finite] = of * STANDARD_ERRORS * error
        return _range(chosen + of * mean, apart, least=float(chosen[_LOW] + seen[_LOW]))


def _alike(values: Sequence[bool]) -> Floats:
    """The same low, expected and high, of shape (values, 3)."""
    return np.repeat(np.array(values, np.float64)[:, None], 3, axis=1)


def _range(levels: Floats, apart: Floats, least: float = 0.0) -> Range:
    low, expected, high = (float(level) for level in levels)
    return Range(
        low=max(low - float(apart[_LOW]), least),
        expected=None if math.isnan(expected) else expected,
        high=high + float(apart[_HIGH]),
    )


def _amounts(
    one: Sampled,
    names: Sequence[str],
    facts: Mapping[str, TierFacts],
    shares: Mapping[str, float] | None,
) -> Floats:
    """Of shape (tiers and all of them together, quantities, low / expected / high); an expected
    value is NaN where nothing tells it."""
    if one.is_hit:
        return np.zeros((len(names) + 1, 4, 3))
    return _of_one(one.walks, [_walked(walk, names, facts) for walk in one.walks], shares)


def _at_baseline(
    one: Sampled,
    facts: Mapping[str, TierFacts],
    shares: Mapping[str, float] | None,
    rate: TokenRate,
) -> Floats:
    """What the baseline would charge for the answer to a row that asks this."""
    costs = []
    for walk in one.walks:
        tier = facts[walk.end]
        prompt = tier.prompt_tokens(one.request)
        cost = _token_cost(rate, prompt, tier.completion_tokens(one.request))
        costs.append(_as_floats(Range.exactly(0) if tier.refuses(one.request) else cost))
    return _of_one(one.walks, costs, shares)


def _of_one(
    taken: Sequence[Walk], amounts: Sequence[Floats], shares: Mapping[str, float] | None
) -> Floats:
    """The amounts of a row that takes one of these walks; in what is expected they may agree.

    Args:
        amounts: of each walk; the last axis is low / expected / high.
    """
    every = np.array(amounts)
    expected = every[..., _EXPECTED]
    mean = np.full(expected.shape[1:], np.nan)
    ends = [walk.end for walk in taken]
    weights = np.array([(shares or {}).get(end, 0.0) for end in ends])
    # Of two walks to one end nothing tells which is taken.
    if weights.any() and len(set(ends)) == len(ends):
        # A walk that nobody takes tells nothing, whatever is not known of it.
        mean = np.tensordot(weights[weights > 0] / weights.sum(), expected[weights > 0], 1)
    agreed = np.where((expected == expected[0]).all(axis=0), expected[0], mean)
    return np.stack([every[..., _LOW].min(axis=0), agreed, every[..., _HIGH].max(axis=0)], axis=-1)


def _walked(walk: Walk, names: Sequence[str], facts: Mapping[str, TierFacts]) -> Floats:
    amounts = np.zeros((len(names) + 1, 4, 3))
    answered = Range.exactly(0)
    for visit in walk.visits:
        tier = facts[visit.tier]
        if tier.refuses(visit.asked):
            continue
        prompt = tier.prompt_tokens(visit.asked)
        if visit.reads_answer:
            prompt = Range.sum(prompt, answered)
        if visit.grades:
            most = visit.asked.sampling["max_tokens"]
            completion = Range(1, most, most)
        else:
            completion = tier.completion_tokens(visit.asked)
        if not visit.judges:
            answered = completion
        quantities = Range.exactly(1), prompt, completion, _cost(tier, prompt, completion)
        added = np.array([_as_floats(quantity.times(visit.share)) for quantity in quantities])
        if not visit.is_certain:
            added[:, _LOW] = 0
        amounts[names.index(visit.tier)] += added
        amounts[-1] += added
    return amounts


def _token_cost(rate: TokenRate, prompt: Range, completion: Range) -> Range:
    """In nano-dollars. At best the prefix cache knows the whole prompt."""
    cost = Range.sum(prompt.times(rate.input), completion.times(rate.output))
    cached = min(rate.cached_input, rate.input)
    low = prompt.low * cached + completion.low * rate.output
    return replace(cost, low=low).times(1 / _MTOK)


def _cost(tier: TierFacts, prompt: Range, completion: Range) -> Range:
    rate, speed = tier.rate, tier.speed
    if isinstance(rate, TokenRate):
        return _token_cost(rate, prompt, completion)
    if not rate.nusd_per_hour:
        return Range.exactly(0)
    nusd_per_s = rate.nusd_per_hour * tier.replicas / _SECONDS_PER_HOUR
    if speed.completion_tokens is not None:
        return completion.times(nusd_per_s / speed.completion_tokens)
    if speed.answers is not None:
        return Range.exactly(nusd_per_s / speed.answers)
    return Range(0, None, math.inf)


def _as_floats(amount: Range) -> Floats:
    expected = math.nan if amount.expected is None else amount.expected
    return np.array([amount.low, expected, amount.high])


def _tier(told: Sequence[Range], facts: TierFacts) -> TierForecast:
    visits, prompt, completion, cost = told
    hours = _hours(visits, prompt, completion, facts.speed)
    return TierForecast(visits, prompt, completion, cost.times(1 / NUSD), hours)


def _hours(visits: Range, prompt: Range, completion: Range, speed: Speed) -> Range | None:
    """The slowest of what holds it up. Limits alone tell only the least that it takes."""
    measured = [(completion, speed.completion_tokens), (visits, speed.answers)]
    limits = [
        (visits, speed.most_requests),
        (Range.sum(prompt, completion), speed.most_tokens),
    ]
    is_measured = any(rate for _, rate in measured)
    every = [amount.times(1 / rate) for amount, rate in (*measured, *limits) if rate]
    if not every:
        return None
    told = [took.expected for took in every if took.expected is not None]
    slowest = Range(
        low=max(took.low for took in every),
        expected=max(told) if is_measured and len(told) == len(every) else None,
        high=max(took.high for took in every) if is_measured else math.inf,
    )
    return slowest.times(1 / _SECONDS_PER_HOUR)
