"""`nightmill plan`: what a run will answer, take and cost, before a cent is spent."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from actors.known_answers import KnownAnswers
from actors.learned_policy import policy_of
from actors.recall import recall_rows
from actors.response_cache import ResponseCache
from actors.router import Router
from jobs.batch import remaining_blocks, spent_before
from jobs.past_answers import PastAnswers, past_answers
from jobs.preflight import Plan, check_writable, plan_run
from jobs.route_plans import has_plan, route_plans
from jobs.run_state import run_here
from jobs.survey import Survey, survey
from jobs.tier_facts import tier_facts
from pipelines.calibrated_config import ByJudge, Calibrated
from pipelines.commit import waiting_rows
from pipelines.config import RunConfig
from pipelines.errors import UsageProblem
from pipelines.forecast import Forecast, Sampled, forecast
from pipelines.prices import NUSD, HourRate
from pipelines.requests import Request
from pipelines.route_plan import known_answers
from pipelines.storage import Directory
from pipelines.walks import Walk, walks, walks_before_calibration


@dataclass(frozen=True)
class RunForecast:
    """What a run will do.

    Attributes:
        done: rows that it has committed already.
        rows: those that are left.
        bad, known, requests: of these, as in `Survey`.
        repeats: of these, such as get the answer of another one.
        sampled: requests that the figures were scaled up from.
        budget_left_usd: after what the run has cost so far; None without a budget.
        is_whole: whether the cost leaves no hour out that will be paid.
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
    budget_left_usd: float | None
    is_whole: bool
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
    plan = plan_run(config, datetime.now(UTC).date(), calibrated=has_plan(config))
    directory = check_writable(config)
    run_here(directory, plan)
    past = past_answers([directory, *(_earlier(path, config) for path in like)], config)
    blocks, remarks = remaining_blocks(directory, plan), list[str]()
    found = survey(plan, blocks, directory, size)
    rows = sum(block.num_rows for block in blocks) + waiting_rows(directory)
    sample = _sampled(plan, found, remarks.append)
    facts = {
        tier.name: tier_facts(plan, tier, past, found.requests * _share_of(tier.name, sample))
        for tier in config.tiers
    }
    shares, baseline = _shares(plan, past), plan.prices.baseline
    figures = forecast(sample, found.requests, found.asking, facts, shares, baseline)
    for name in figures.tiers:
        remarks += [f"tier {name}: {what}" for what in facts[name].unknown]
    left_usd = config.budget_usd
    if left_usd is not None and blocks:
        left_usd -= spent_before(directory, plan) / NUSD
    return RunForecast(
        done=plan.num_rows - rows,
        rows=rows,
        bad=found.bad,
        known=found.known,
        # Some of a run that has begun wait for their answer beside its blocks.
        repeats=rows - found.bad - found.known - found.requests,
        requests=found.requests,
        sampled=len(sample),
        figures=figures,
        baseline=config.baseline,
        budget_left_usd=left_usd,
        is_whole=not any(isinstance(facts[name].rate, HourRate) for name in figures.tiers),
        remarks=[*remarks, *_left_out(plan)],
    )


def _earlier(path: str, config: RunConfig) -> Directory:
    output = Directory(path, config.storage)
    if not output.parts("rows"):
        raise UsageProblem(f"--like: {path}: holds no answers; give the OUTPUT of an earlier run")
    return output


def _sampled(plan: Plan, found: Survey, warn: Callable[[str], None]) -> list[Sampled]:
    if not found.requests:
        return []
    table = _routed(plan, found.sample, warn)
    rows = table.select(["row_id", "_request", "source", "tier", "_step"]).to_pylist()
    sample = []
    for row, times, is_drawn in zip(rows, found.times, found.drawn, strict=True):
        request = Request.from_json(row["_request"])
        taken = _walks(plan, found.requests, request, row)
        sample.append(Sampled(request, taken, times, row["source"] is not None, is_drawn))
    return sample


def _share_of(tier: str, sample: Sequence[Sampled]) -> float:
    """Of the requests: that may be put to this tier."""
    asks = [
        not one.is_hit and any(visit.tier == tier for walk in one.walks for visit in walk.visits)
        for one in sample
    ]
    return sum(asks) / max(len(asks), 1)


def _routed(plan: Plan, sample: pa.Table, warn: Callable[[str], None]) -> pa.Table:
    """As a run's router does it: what was answered before has a source, all else has a tier."""
    config, configured = plan.config, plan.config.route
    if config.cache_in_use is not None:
        sample = recall_rows(sample, ResponseCache(config.cache_in_use, config.storage, warn))
    if isinstance(configured, Calibrated):
        if plan.route_plan is None:
            return sample
        answers = known_answers(route_plans(config, configured), plan.route_plan.key)
        sample = KnownAnswers(answers, plan.dialect.keyed_by).recall(sample)
    return Router(policy_of(plan.route, configured, plan.route_plan)).route(sample)


def _walks(plan: Plan, requests: int, request: Request, row: Mapping[str, Any]) -> list[Walk]:
    configured = plan.config.route
    if row["tier"] is not None:
        place = row["tier"], row["_step"], row["row_id"]
        return walks(plan.route, configured, request, *place)
    assert isinstance(configured, Calibrated)
    if request.tier:
        return walks(configured, configured, request, request.tier, None)
    sampled = min(configured.sample_rows / requests, 1)
    return walks_before_calibration(configured, request, sampled, row["row_id"])


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
        remarks += _of_uncalibrated(config.route)
    if config.cache_in_use and config.cache_in_use.semantic:
        remarks.append("answers to similar questions in the response cache are not counted")
    if any(isinstance(rate, HourRate) for rate in plan.prices.tiers.values()):
        remarks.append("hours of replicas that load a model or wait for rows are not counted")
    return remarks


def _of_uncalibrated(route: Calibrated) -> list[str]:
    is_refused = route.calibrate == "beforehand"
    remedy = "; `run` wants `nightmill calibrate` first" if is_refused else ""
    remarks = [f"the route is not calibrated yet: rows may go to either tier{remedy}"]
    if isinstance(route.quality, ByJudge):
        remarks.append(f"what tier {route.quality.tier} costs as a judge is not counted")
    return remarks


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
