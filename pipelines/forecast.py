"""What a run will take and cost, told before it starts: ranges, from a sample of its requests."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.accept_config import ByAgreement, ByVerifier
from pipelines.calibrated_config import Calibrated
from pipelines.judging import grade_of_answer, grade_of_prompt
from pipelines.prices import NUSD, HourRate, TokenRate
from pipelines.requests import Request
from pipelines.route_config import Cascade, Gatekeeper, Route, Step

Floats = NDArray[np.float64]
_SECONDS_PER_HOUR = 3600
_MTOK = 10**6
_STANDARD_ERRORS = 1.96
"""Of a mean: 95 %."""
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
        return self.through(lambda value: value * factor)

    def through(self, function: Callable[[float], float]) -> "Range":
        """Args:
        function: that grows with its argument.
        """
        expected = None if self.expected is None else function(self.expected)
        return Range(function(self.low), expected, function(self.high))

    @staticmethod
    def exactly(value: float) -> "Range":
        return Range(value, value, value)


@dataclass(frozen=True)
class Visit:
    """One request to a tier.

    Attributes:
        asked: what the tier reads.
        grades: whether it answers with a grade.
        reads_answer: whether it is asked with the answer of the visit before.
        share: of the rows on this path that make it.
        is_certain: whether all of them do; else they may.
    """

    tier: str
    asked: Request
    grades: bool = False
    reads_answer: bool = False
    share: float = 1.0
    is_certain: bool = True


Path = Sequence[Visit]


@dataclass(frozen=True)
class Speed:
    """What a tier does a second, all its replicas together; None where it is not known.

    Attributes:
        completion_tokens: as was measured.
        answers: as was measured.
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
        replicas: how many `speed` is of.
        unknown: what is not, for people.
    """

    rate: TokenRate | HourRate
    prompt_tokens: Callable[[Request], Range]
    completion_tokens: Callable[[Request], Range]
    speed: Speed
    replicas: int = 1
    unknown: Sequence[str] = ()


@dataclass(frozen=True)
class Asked:
    """A request of the sample.

    Attributes:
        paths: that it may take, by the tier that gives the answer.
        rows: of the input that ask it.
        is_hit: whether the response cache answers it.
    """

    request: Request
    paths: Mapping[str, Path]
    rows: int = 1
    is_hit: bool = False


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
    baseline_usd: the tokens of all rows' answers at the baseline's price; None without one.
    """

    hits: Range
    tiers: dict[str, TierForecast]
    cost_usd: Range
    baseline_usd: Range | None


def paths_of(
    route: Route, configured: Route, request: Request, tier: str, step: int | None
) -> dict[str, Path]:
    """The visits that a row may make, by the tier that gives its answer.

    Args:
        route: as it is taken, see `route_by`.
        configured: as it was asked for.
        tier, step: where the router has put it.
    """
    paths: dict[str, Path]
    if step is not None and isinstance(route, Gatekeeper):
        graded = Visit(route.tier, grade_of_prompt(route.guide, request), grades=True)
        paths = {end: [graded, Visit(end, request)] for end in (route.cheap, route.strong)}
    elif step is not None and isinstance(route, Cascade):
        paths = _cascade_paths(route, request)
    else:
        paths = {tier: [Visit(tier, request)]}
    if isinstance(configured, Calibrated) and step is not None:
        checked = Visit(configured.strong, request, share=configured.checked_share)
        paths[configured.cheap] = [*paths[configured.cheap], checked]
    return paths


def uncalibrated_paths(route: Calibrated, request: Request, sampled: float) -> dict[str, Path]:
    """The same where nothing was learned yet.

    Args:
        sampled: the share of requests that both tiers will answer for that.
    """
    cheap, strong = Visit(route.cheap, request), Visit(route.strong, request)
    return {
        route.cheap: [cheap, replace(strong, share=sampled)],
        route.strong: [strong, replace(cheap, share=sampled)],
    }


def forecast(
    sample: Sequence[Asked],
    requests: int,
    facts: Mapping[str, TierFacts],
    shares: Mapping[str, float] | None = None,
    baseline: TokenRate | None = None,
) -> Forecast:
    """Scale a sample up.

    Args:
        sample: of the requests, each as likely to be in it as any other.
        requests: all there are.
        shares: of rows with a choice of paths: how often a tier's answer is the last; None where
            nothing tells.
        baseline: the price that savings are counted from.
    """
    names = [*facts]
    amounts = np.array([_amounts(asked, names, facts, shares) for asked in sample])
    amounts = amounts.reshape(len(sample), len(names) + 1, 4, 3)
    totals = [[_total(amounts[:, t, q], requests) for q in range(4)] for t in range(len(names) + 1)]
    hits = np.array([[float(asked.is_hit)] * 3 for asked in sample])
    baseline_usd = None
    if baseline is not None:
        instead = np.array([_at_baseline(asked, facts, shares, baseline) for asked in sample])
        baseline_usd = _total(instead, requests).times(1 / NUSD)
    return Forecast(
        hits=_total(hits, requests),
        tiers={
            name: _tier(told, facts[name])
            for name, told in zip(names, totals, strict=False)
            if told[_VISITS].high
        },
        cost_usd=totals[-1][_COST].times(1 / NUSD),
        baseline_usd=baseline_usd,
    )


def _cascade_paths(route: Cascade, request: Request) -> dict[str, Path]:
    """Whoever is not accepted may have been judged, or have failed before that."""
    paths: dict[str, Path] = {}
    before: list[Visit] = []
    for step in route.steps:
        judged = [Visit(step.tier, request), *_judges(step, request)]
        paths[step.tier] = [*before, *judged]
        before += [judged[0], *(replace(visit, is_certain=False) for visit in judged[1:])]
    paths[route.otherwise] = [*before, Visit(route.otherwise, request)]
    return paths


def _judges(step: Step, request: Request) -> list[Visit]:
    visits = []
    for accept in step.accept:
        if isinstance(accept, ByAgreement):
            visits.append(Visit(accept.tier, request))
        elif isinstance(accept, ByVerifier):
            asked = grade_of_answer(accept.guide, request, "")
            visits.append(Visit(accept.tier, asked, grades=True, reads_answer=True))
    return visits


def _amounts(
    asked: Asked,
    names: Sequence[str],
    facts: Mapping[str, TierFacts],
    shares: Mapping[str, float] | None,
) -> Floats:
    """Of shape (tiers and all of them together, quantities, low / expected / high); an expected
    value is NaN where nothing tells it."""
    if asked.is_hit:
        return np.zeros((len(names) + 1, 4, 3))
    return _of_one({end: _walked(path, names, facts) for end, path in asked.paths.items()}, shares)


def _at_baseline(
    asked: Asked,
    facts: Mapping[str, TierFacts],
    shares: Mapping[str, float] | None,
    rate: TokenRate,
) -> Floats:
    """What the baseline would charge for the answers to all rows that ask this."""
    costs = {}
    for end in asked.paths:
        prompt = facts[end].prompt_tokens(asked.request)
        cost = _token_cost(rate, prompt, facts[end].completion_tokens(asked.request))
        costs[end] = np.array(_as_floats(cost.times(asked.rows)))
    return _of_one(costs, shares)


def _of_one(paths: Mapping[str, Floats], shares: Mapping[str, float] | None) -> Floats:
    """The amounts of a row that takes one of these paths; in what is expected they may agree.

    Args:
        paths: by their end, amounts of which the last axis is low / expected / high.
    """
    every = np.array(list(paths.values()))
    expected = every[..., _EXPECTED]
    weights = np.array([(shares or {}).get(end, 0.0) for end in paths])
    if weights.any():
        # A path that nobody takes tells nothing, whatever is not known of it.
        taken = weights > 0
        mean = np.tensordot(weights[taken] / weights.sum(), expected[taken], 1)
    else:
        mean = np.full(expected.shape[1:], np.nan)
    agreed = np.where((expected == expected[0]).all(axis=0), expected[0], mean)
    return np.stack([every[..., _LOW].min(axis=0), agreed, every[..., _HIGH].max(axis=0)], axis=-1)


def _walked(path: Path, names: Sequence[str], facts: Mapping[str, TierFacts]) -> Floats:
    amounts = np.zeros((len(names) + 1, 4, 3))
    answered = Range.exactly(0)
    for visit in path:
        tier = facts[visit.tier]
        prompt = tier.prompt_tokens(visit.asked)
        if visit.reads_answer:
            prompt = _sum(prompt, answered)
        if visit.grades:
            most = visit.asked.sampling["max_tokens"]
            completion = Range(1, most, most)
        else:
            completion = answered = tier.completion_tokens(visit.asked)
        quantities = Range.exactly(1), prompt, completion, _cost(tier, prompt, completion)
        added = np.array([_as_floats(quantity) for quantity in quantities]) * visit.share
        if not visit.is_certain:
            added[:, _LOW] = 0
        amounts[names.index(visit.tier)] += added
        amounts[-1] += added
    return amounts


def _token_cost(rate: TokenRate, prompt: Range, completion: Range) -> Range:
    """In nano-dollars. At best the prefix cache knows the whole prompt."""
    cost = _sum(prompt.times(rate.input), completion.times(rate.output))
    cached = min(rate.cached_input, rate.input)
    low = prompt.low * cached + completion.low * rate.output
    return replace(cost, low=low).times(1 / _MTOK)


def _cost(tier: TierFacts, prompt: Range, completion: Range) -> Range:
    rate = tier.rate
    if isinstance(rate, TokenRate):
        return _token_cost(rate, prompt, completion)
    speed = tier.speed.completion_tokens
    if speed is None:
        return Range(0, None, math.inf)
    return completion.times(rate.nusd_per_hour * tier.replicas / speed / _SECONDS_PER_HOUR)


def _sum(a: Range, b: Range) -> Range:
    expected = None if a.expected is None or b.expected is None else a.expected + b.expected
    return Range(a.low + b.low, expected, a.high + b.high)


def _as_floats(amount: Range) -> tuple[float, float, float]:
    return amount.low, math.nan if amount.expected is None else amount.expected, amount.high


def _total(values: Floats, of: int) -> Range:
    """A sample's mean times all there are, with what chance may have done to the sample.

    Args:
        values: of shape (rows, low / expected / high).
    """
    size = len(values)
    if not size:
        return Range.exactly(0)
    low, expected, high = (float(values[:, level].sum()) * of / size for level in range(3))
    apart = of * math.sqrt(max(1 - size / of, 0) / size) * _STANDARD_ERRORS

    def margin(level: int) -> float:
        return apart * float(values[:, level].std()) if apart else 0.0

    return Range(
        low=max(low - margin(_LOW), float(values[:, _LOW].sum())),
        expected=None if math.isnan(expected) else expected,
        high=high if math.isinf(high) else high + margin(_HIGH),
    )


def _tier(told: Sequence[Range], facts: TierFacts) -> TierForecast:
    visits, prompt, completion, cost = told
    hours = _hours(visits, prompt, completion, facts.speed)
    return TierForecast(visits, prompt, completion, cost.times(1 / NUSD), hours)


def _hours(visits: Range, prompt: Range, completion: Range, speed: Speed) -> Range | None:
    """The slowest of what holds it up. Limits alone tell only the least that it takes."""
    measured = [
        amount.times(1 / rate)
        for amount, rate in ((completion, speed.completion_tokens), (visits, speed.answers))
        if rate
    ]
    limits = [
        amount.times(1 / rate)
        for amount, rate in (
            (visits, speed.most_requests),
            (_sum(prompt, completion), speed.most_tokens),
        )
        if rate
    ]
    if not measured and not limits:
        return None
    every = [*measured, *limits]
    told = [took.expected for took in every]
    known = [seconds for seconds in told if seconds is not None]
    slowest = Range(
        low=max(took.low for took in every),
        expected=max(known) if measured and len(known) == len(told) else None,
        high=max(took.high for took in every) if measured else math.inf,
    )
    return slowest.times(1 / _SECONDS_PER_HOUR)
