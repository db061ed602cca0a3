"""Learning a route from a sample of the input, and proving how far it may be trusted."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from actors.embedder import Embedder
from actors.known_answers import SERVED
from actors.learned_policy import prompt_of
from actors.route_fit import Fit, Judged, Promise, fit_cascade, fit_route, surest
from jobs.preflight import check_writable, plan_run
from jobs.route_findings import RouteCalibration, findings
from jobs.route_plans import route_plans
from jobs.route_quality import Qualities, qualities, text_of_answer
from jobs.route_sampling import Answer, Answered, answer, draw
from jobs.route_spending import note_calibration, spent_on
from jobs.summary import Summary
from pipelines.cascade import CUT_SHORT
from pipelines.certify import Costs
from pipelines.confidence import MEASURES, Measure, confidence
from pipelines.config import RunConfig
from pipelines.errors import UsageProblem
from pipelines.prices import NUSD
from pipelines.route_config import Calibrated, CertifiedCascade, Classifier, Learned
from pipelines.route_plan import RoutePlan, plan_key, save_plan
from pipelines.routing import Candidate
from pipelines.within_budget import frontier

Say = Callable[[str], None]
_LEAST_ROWS = 60
_BASELINE = "domain_mean"


def calibrate_route(config: RunConfig, say: Say, divert_stderr: bool = False) -> RouteCalibration:
    """Answer a sample with both tiers, fit, certify, and store the plan for runs to use.

    Raises:
        UsageProblem: the route is not one that learns, or the sample cannot tell anything.
    """
    route = config.route
    if not isinstance(route, Calibrated):
        raise UsageProblem("route: learns nothing that could be calibrated")
    plan = plan_run(config, datetime.now(UTC).date(), calibrated=False)
    sample = draw(plan, route)
    if len(sample) < _LEAST_ROWS:
        raise UsageProblem(
            f"route: only {len(sample)} rows of the sample are requests with a known quality; "
            f"{_LEAST_ROWS} are the least"
        )
    say(f"{len(sample):,} rows of {plan.num_rows:,} are answered by {route.cheap}, {route.strong}")
    answered, summary = answer(config, route, sample, divert_stderr)
    say(f"judged by {route.quality.by}")
    quality = qualities(_with_the_rest(config, summary), route.quality, answered, divert_stderr)
    spent = summary.bill_nusd + quality.cost_nusd
    if route.calibrate == "in_run":
        # Before there is a plan: who has one does not calibrate again, whatever happened.
        note_calibration(check_writable(config), spent)
    say("fitting")
    judged, costs = _judged(route, answered, quality), _costs(route, answered)
    promise = Promise(route.floor.terms, costs, ahead=max(plan.num_rows - len(answered), 1))
    known, held = judged.halves(route.seed)
    fits = _fits(route, known, held, promise)
    stored = route_plans(config, route)
    stored.make()
    key = plan_key(config, route)
    model, found = next(iter(fits.items()))
    bought = None
    if route.objective == "max_quality":
        confidence = route.floor.confidence
        bought = frontier(found.scores, held.gains, found.grid, costs, confidence, promise.ahead)
    is_used = bought is not None or found.certificate.threshold is not None
    arrays = found.learned.arrays() if found.learned and is_used else {}
    learned = RoutePlan(key, model, found.certificate, arrays, bought)
    save_plan(stored, learned, _known(answered))
    directory = check_writable(config)
    learned = spent_on(learned, config, directory, plan.num_rows)
    told = findings(judged, held, fits, promise, spent / NUSD, f"{stored.url}/{key}")
    budget = config.budget_usd if bought else None
    return replace(told, certificate=learned.certificate, budget_usd=budget)


def _with_the_rest(config: RunConfig, spent: Summary) -> RunConfig:
    """What the sample has left of the budget is for judging it."""
    if config.budget_usd is None:
        return config
    left = max(config.budget_usd - spent.bill_usd, 1 / NUSD)
    return config.model_copy(update={"budget_usd": left})


def _fits(route: Calibrated, known: Judged, held: Judged, promise: Promise) -> dict[str, Fit]:
    """By name: what the route asks for, then what it is to be compared with."""
    if isinstance(route, CertifiedCascade):
        measure = surest(known) if route.measure == "auto" else route.measure
        others = [name for name in known.doubts if name != measure]
        return {name: fit_cascade(name, known, held, promise) for name in (measure, *others)}
    assert isinstance(route, Learned)
    model = route.model if isinstance(route, Classifier) else _BASELINE
    return {
        name: fit_route(name, known, held, promise, route.unfamiliar, route.seed)
        for name in dict.fromkeys((model, _BASELINE))
    }


def _judged(route: Calibrated, answered: Sequence[Answered], quality: Qualities) -> Judged:
    texts = [prompt_of(Candidate(a.sampled.request, {})) for a in answered]
    vectors, doubts = np.empty((len(texts), 0), np.float32), dict[str, np.ndarray]()
    if isinstance(route, Learned):
        distinct = sorted(set(texts))
        known = dict(zip(distinct, Embedder(route.embedding).embed(distinct), strict=True))
        vectors = np.stack([known[text] for text in texts])
    if isinstance(route, CertifiedCascade):
        measures = MEASURES if route.measure == "auto" else (route.measure,)
        doubts = {m: np.array([_doubt(a.cheap, m) for a in answered]) for m in measures}
    return Judged(texts, vectors, quality.cheap, quality.strong, doubts)


def _doubt(cheap: Answer, measure: Measure) -> float:
    """As the cascade will see it: what is not a full answer escalates."""
    sure = confidence(cheap["token_logprobs"], measure)
    is_full = text_of_answer(cheap) is not None and cheap["finish_reason"] != CUT_SHORT
    return -sure if is_full and sure is not None else np.inf


def _costs(route: Calibrated, answered: Sequence[Answered]) -> Costs:
    kept = float(np.mean([float(a.cheap["cost_usd"]) for a in answered]))
    sent = float(np.mean([float(a.strong["cost_usd"]) for a in answered]))
    if not sent:
        raise UsageProblem("tiers: the strong tier's answers cost nothing, so nothing can be saved")
    # What escalates in a cascade has been answered cheap before.
    return Costs(kept, sent + kept * isinstance(route, CertifiedCascade), sent)


def _known(answered: Sequence[Answered]) -> pa.Table:
    """The strong tier's full answers, which are at least as good as what the rows would get."""
    rows = {
        a.sampled.key: {"known_key": a.sampled.key, **{name: a.strong[name] for name in SERVED}}
        for a in answered
        if a.strong["status"] == "ok" and a.strong["response"] is not None
    }
    kinds = {"prompt_tokens": pa.int64(), "completion_tokens": pa.int64()}
    names = ("known_key", *SERVED)
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
    return pa.Table.from_pylist(list(rows.values()), schema=schema)
