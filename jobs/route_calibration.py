"""Learning a route from a sample of the input, and proving how far it may be trusted."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from actors.route_fit import (
    Certified,
    Fit,
    Judged,
    Promise,
    certified,
    fit_doubt,
    fit_route,
    surest,
    untested,
)
from jobs.preflight import check_writable, plan_run
from jobs.route_evidence import Evidence
from jobs.route_findings import RouteCalibration, findings
from jobs.route_plans import route_plans
from jobs.route_sampling import Sampled, draw
from jobs.route_spending import spent_on
from pipelines.calibrated_config import Calibrated, Classifier, Learned
from pipelines.config import RunConfig
from pipelines.errors import UsageProblem
from pipelines.prices import NUSD
from pipelines.route_plan import RoutePlan, plan_key, save_plan
from pipelines.sample_size import LUCK, Enough, Prospect, Sampling, looks, prospects, why_enough
from pipelines.within_budget import frontier

Say = Callable[[str], None]
_LEAST_ROWS = 60
_BASELINE = "domain_mean"
_LARGER = (2, 4)


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
    evidence = Evidence(config, route, divert_stderr)
    enough = _grow(evidence, route, sample, plan.num_rows, say)
    say("certifying")
    judged, promise = evidence.judged(), _promise(route, evidence, plan.num_rows)
    known, held = judged.halves()
    tested = certified if enough is None or enough.certifies else untested
    found = {fit.measure: tested(fit, held, promise) for fit in _fits(route, known)}
    chosen = next(iter(found.values()))
    learned = _plan(plan_key(config, route), route, chosen, held, promise)
    if (threshold := learned.certificate.threshold) is not None:
        learned = replace(learned, difference=evidence.difference(chosen.scores <= threshold))
    stored = route_plans(config, route)
    stored.make()
    save_plan(stored, learned, evidence.known())
    learned = spent_on(learned, config, check_writable(config), plan.num_rows)
    sizes = [factor * len(evidence) for factor in _LARGER]
    told = findings(
        judged,
        found,
        promise.floor,
        evidence.advice(),
        _prospects(chosen.fit, known, promise, evidence, sizes),
        enough,
        evidence.spent_nusd / NUSD,
        f"{stored.url}/{learned.key}",
    )
    budget = config.budget_usd if learned.frontier else None
    return replace(told, certificate=learned.certificate, budget_usd=budget)


def _grow(
    evidence: Evidence, route: Calibrated, sample: Sequence[Sampled], num_rows: int, say: Say
) -> Enough | None:
    """Ask about more and more of the sample, until more cannot pay; why it was not all of it.

    Raises:
        UsageProblem: a tier could not be reached.
    """
    # Quality that money buys has no saving to weigh a row against.
    sizes = [len(sample)] if route.objective == "max_quality" else looks(len(sample))
    for i, size in enumerate(sizes):
        say(f"{size:,} rows of {num_rows:,} are answered by {route.cheap}, {route.strong}")
        evidence.add(sample[sizes[i - 1] if i else 0 : size])
        if len(evidence) < _LEAST_ROWS:
            raise UsageProblem(
                f"route: both tiers could be reached for only {len(evidence)} rows of the sample; "
                f"{_LEAST_ROWS} are the least. Run the same command again once they answer"
            )
        if larger := sizes[i + 1 :]:
            known, _ = evidence.judged().halves()
            fit, promise = next(_fits(route, known)), _promise(route, evidence, num_rows)
            ahead = _prospects(fit, known, promise, evidence, larger, LUCK)
            if enough := why_enough(evidence.advice(), ahead):
                say(f"enough: {enough.reason}")
                return enough
    return None


def _promise(route: Calibrated, evidence: Evidence, num_rows: int) -> Promise:
    costs = evidence.costs(held=True)
    return Promise(route.floor.terms, costs, max(num_rows - len(evidence), 1))


def _prospects(
    fit: Fit,
    known: Judged,
    promise: Promise,
    evidence: Evidence,
    sizes: Sequence[int],
    luck: float = 0.0,
) -> list[Prospect]:
    sampling = Sampling(len(evidence), promise.ahead, evidence.extra_usd())
    floor, costs = promise.floor, evidence.costs(held=False)
    return prospects(fit.scores, known.gains, fit.grid, floor, costs, sampling, sizes, luck)


def _fits(route: Calibrated, known: Judged) -> Iterator[Fit]:
    """What the route asks for, then what it is to be compared with."""
    if isinstance(route, Learned):
        model = route.model if isinstance(route, Classifier) else _BASELINE
        for name in dict.fromkeys((model, _BASELINE)):
            yield fit_route(name, known, route.unfamiliar, route.seed)
    else:
        first = surest(known)
        for measure in dict.fromkeys((first, *known.doubts)):
            yield fit_doubt(measure, known, route.unfamiliar)


def _plan(
    key: str, route: Calibrated, chosen: Certified, held: Judged, promise: Promise
) -> RoutePlan:
    fit, certificate, bought = chosen.fit, chosen.certificate, None
    if route.objective == "max_quality":
        sure, ahead = route.floor.confidence, promise.ahead
        bought = frontier(chosen.scores, held.gains, fit.grid, promise.costs, sure, ahead)
    is_used = bought is not None or certificate.threshold is not None
    arrays = fit.learned.arrays() if is_used else {}
    return RoutePlan(key, fit.measure, certificate, arrays, bought)
