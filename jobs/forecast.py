"""`nightmill plan`: what a run will answer, take and cost, before a cent is spent."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from actors.known_answers import KnownAnswers
from actors.learned_policy import policy_of
from actors.recall import recall_rows
from actors.response_cache import ResponseCache
from actors.router import Router
from jobs.batch import remaining_blocks
from jobs.past_answers import PastAnswers, past_answers
from jobs.preflight import Plan, check_writable, plan_run
from jobs.route_plans import has_plan, route_plans
from jobs.survey import Survey, survey
from jobs.tier_facts import tier_facts
from pipelines.calibrated_config import Calibrated
from pipelines.config import RunConfig
from pipelines.errors import UsageProblem
from pipelines.forecast import Asked, Forecast, Path, forecast, paths_of, uncalibrated_paths
from pipelines.prices import HourRate
from pipelines.requests import Request
from pipelines.route_plan import known_answers
from pipelines.storage import Directory


@dataclass(frozen=True)
class RunForecast:
    """What a run will do.

    Attributes:
        done: rows that it has committed already.
        rows: those that are left.
        bad, known, requests: of these, as in `Survey`.
        repeats: of these, such as get the answer of another one.
        sampled: requests that the figures were scaled up from.
        remarks: what they rest on, and what they leave out.
    """

    done: int
    rows: int
    bad: int
    known: int
    repeats: int
    requests: int
    sampled: int
    figures: Forecast
    baseline: str | None
    budget_usd: float | None
    remarks: list[str]

    @property
    def saving(self) -> float | None:
        """Of the baseline, as expected; of 1."""
        told = self.figures.baseline_usd
        if told is None or not told.expected or self.figures.cost_usd.expected is None:
            return None
        return 1 - self.figures.cost_usd.expected / told.expected

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what nothing bounds is null."""
        finite: dict[str, Any] = _finite(asdict(self))
        return {**finite, "saving": self.saving}


def forecast_run(config: RunConfig, size: int, like: Sequence[str] = ()) -> RunForecast:
    """Look at the whole input, and at a sample of its requests closely; ask no tier.

    Args:
        size: requests of the sample.
        like: earlier outputs, whose answers are taken to be like those to come.

    Raises:
        UsageProblem: the run could not start, or there is no such output.
    """
    learned = has_plan(config)
    plan = plan_run(config, datetime.now(UTC).date(), calibrated=learned)
    directory = check_writable(config)
    blocks = remaining_blocks(directory, plan)
    found = survey(plan, blocks, directory, size)
    past = past_answers([directory, *(_earlier(path, config) for path in like)], config)
    facts = {tier.name: tier_facts(plan, tier, past) for tier in config.tiers}
    figures = forecast(
        _asked(plan, found), found.requests, facts, _shares(plan, past), plan.prices.baseline
    )
    unknown = [
        f"tier {name}: {what}"
        for name, tier in facts.items()
        for what in tier.unknown
        if name in figures.tiers
    ]
    done = sum(map(directory.num_rows, directory.parts("rows")))
    rows = plan.num_rows - done
    return RunForecast(
        done=done,
        rows=rows,
        bad=found.bad,
        known=found.known,
        # Some of a run that has begun wait for their answer beside its blocks.
        repeats=rows - found.bad - found.known - found.requests,
        requests=found.requests,
        sampled=len(found.times),
        figures=figures,
        baseline=config.baseline,
        budget_usd=config.budget_usd,
        remarks=[*unknown, *_left_out(plan)],
    )


def _earlier(path: str, config: RunConfig) -> Directory:
    output = Directory(path, config.storage)
    if not output.parts("rows"):
        raise UsageProblem(f"--like: {path}: holds no answers; give the OUTPUT of an earlier run")
    return output


def _asked(plan: Plan, found: Survey) -> list[Asked]:
    if not found.requests:
        return []
    rows = _routed(plan, found.sample).select(["_request", "source", "tier", "_step"]).to_pylist()
    asked = []
    for row, times in zip(rows, found.times, strict=True):
        request, is_hit = Request.from_json(row["_request"]), row["source"] is not None
        paths = _paths(plan, found.requests, request, row["tier"], row["_step"])
        asked.append(Asked(request, paths, times, is_hit))
    return asked


def _routed(plan: Plan, sample: pa.Table) -> pa.Table:
    """As a run's router does it: what was answered before has a source, all else has a tier."""
    config, configured = plan.config, plan.config.route
    if config.response_cache is not None:
        cache = ResponseCache(config.response_cache, config.storage, lambda _: None)
        sample = recall_rows(sample, cache)
    if isinstance(configured, Calibrated):
        if plan.route_plan is None:
            return sample
        answers = known_answers(route_plans(config, configured), plan.route_plan.key)
        sample = KnownAnswers(answers, plan.dialect.keyed_by).recall(sample)
    return Router(policy_of(plan.route, configured, plan.route_plan)).route(sample)


def _paths(
    plan: Plan, requests: int, request: Request, tier: str | None, step: int | None
) -> Mapping[str, Path]:
    configured = plan.config.route
    if tier is not None:
        return paths_of(plan.route, configured, request, tier, step)
    assert isinstance(configured, Calibrated)
    if request.tier:
        return paths_of(configured, configured, request, request.tier, None)
    return uncalibrated_paths(configured, request, min(configured.sample_rows / requests, 1))


def _shares(plan: Plan, past: PastAnswers) -> Mapping[str, float]:
    """How often each tier's answer is the last, where the route's own decision does not tell."""
    configured, learned = plan.config.route, plan.route_plan
    if not isinstance(configured, Calibrated):
        return past.shares
    if learned is None:
        return {}
    cheap = learned.certificate.share_cheap
    return {configured.cheap: cheap, configured.strong: 1 - cheap}


def _left_out(plan: Plan) -> list[str]:
    config = plan.config
    remarks = []
    if isinstance(config.route, Calibrated) and plan.route_plan is None:
        remarks.append("the route is not calibrated yet: rows may go to either tier")
    if config.response_cache and config.response_cache.semantic:
        remarks.append("answers to similar questions in the response cache are not counted")
    if any(isinstance(rate, HourRate) for rate in plan.prices.tiers.values()):
        remarks.append("hours of replicas that load a model or wait for rows are not counted")
    return remarks


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and math.isinf(value) else value
