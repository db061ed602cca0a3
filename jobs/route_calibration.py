"""Learning a route from a sample of the input, and proving how far it may be trusted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from actors.embedder import Embedder
from actors.known_answers import SERVED
from actors.learned_policy import prompt_of
from actors.route_fit import Fit, Judged, Promise, fit_cascade, fit_route, surest
from jobs.preflight import plan_run
from jobs.route_plans import route_plans
from jobs.route_sampling import Answer, Answered, answer, draw
from pipelines.agreement import AGREEMENT
from pipelines.cascade import CUT_SHORT
from pipelines.certify import Certificate, Costs, Floor
from pipelines.confidence import MEASURES, Measure, confidence
from pipelines.config import RunConfig
from pipelines.errors import UsageProblem
from pipelines.route_config import (
    ByLabels,
    ByStrong,
    Calibrated,
    CertifiedCascade,
    Classifier,
    Learned,
)
from pipelines.route_curve import oracle_curve, random_curve
from pipelines.route_plan import RoutePlan, plan_key, save_plan
from pipelines.routing import Candidate
from pipelines.worth import Advice, advise, larger_samples

Say = Callable[[str], None]
_LEAST_ROWS = 60
_BASELINE = "domain_mean"


@dataclass(frozen=True)
class Policy:
    """How one way of choosing did on the rows that nothing was fitted to.

    Attributes:
        apgr: the mean of the part of the quality gap that is won back, over all shares of calls
            to the strong tier; .5 is chance.
        certified_saving: of the all-strong cost; None for those that only compare.
    """

    name: str
    apgr: float
    certified_saving: float | None


@dataclass(frozen=True)
class RouteCalibration:
    """What was learned, and what it cost.

    Attributes:
        certificate: of the chosen policy.
        quality, strong_quality: expected of routing, and of the strong tier alone, on the rows
            of the test; of 1.
        larger: what twice and four times as many rows would probably certify.
        stored: where runs will find it.
    """

    rows: int
    policies: list[Policy]
    certificate: Certificate
    quality: float
    strong_quality: float
    larger: list[Certificate]
    advice: Advice
    floor: Floor
    bill_usd: float
    stored: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


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
    say(f"judged by {route.quality.by}; fitting")
    judged, costs = _judged(route, answered), _costs(route, answered)
    promise = Promise(
        Floor(route.floor.loss_points, route.floor.confidence),
        costs,
        max(plan.num_rows - len(answered), 1),
    )
    known, held = judged.halves(route.seed)
    fits = _fits(route, known, held, promise)
    stored = route_plans(config, route)
    stored.make()
    key = plan_key(config, route)
    model, found = next(iter(fits.items()))
    is_used = found.learned is not None and found.certificate.threshold is not None
    arrays = found.learned.arrays() if found.learned and is_used else {}
    save_plan(stored, RoutePlan(key, model, found.certificate, arrays), _known(answered))
    return _told(judged, held, fits, promise, summary.bill_usd, f"{stored.url}/{key}")


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


def _told(
    judged: Judged,
    held: Judged,
    fits: Mapping[str, Fit],
    promise: Promise,
    bill_usd: float,
    stored: str,
) -> RouteCalibration:
    """The same numbers for a person: beside the baseline, chance and the best there is."""
    policies = [Policy(n, f.curve.apgr, f.certificate.saving) for n, f in fits.items()]
    policies.append(Policy("random", random_curve(held.cheap, held.strong).apgr, None))
    policies.append(Policy("oracle", oracle_curve(held.cheap, held.strong).apgr, None))
    found = next(iter(fits.values()))
    strong = float(held.strong.mean())
    costs = promise.costs
    kept, sent = (np.asarray(cost, np.float64).item() for cost in (costs.kept, costs.strong))
    return RouteCalibration(
        rows=len(judged.texts),
        policies=policies,
        certificate=found.certificate,
        quality=strong - found.certificate.loss,
        strong_quality=strong,
        larger=larger_samples(
            found.scores, held.gains, found.grid, promise.floor, costs, promise.ahead
        ),
        advice=advise(judged.cheap, judged.strong, sent / kept if kept else np.inf),
        floor=promise.floor,
        bill_usd=bill_usd,
        stored=stored,
    )


def _judged(route: Calibrated, answered: Sequence[Answered]) -> Judged:
    texts = [prompt_of(Candidate(a.sampled.request, {})) for a in answered]
    quality = np.array([_quality(route.quality, a) for a in answered], np.float64)
    vectors, doubts = np.empty((len(texts), 0), np.float32), dict[str, np.ndarray]()
    if isinstance(route, Learned):
        distinct = sorted(set(texts))
        known = dict(zip(distinct, Embedder(route.embedding).embed(distinct), strict=True))
        vectors = np.stack([known[text] for text in texts])
    if isinstance(route, CertifiedCascade):
        measures = MEASURES if route.measure == "auto" else (route.measure,)
        doubts = {m: np.array([_doubt(a.cheap, m) for a in answered]) for m in measures}
    return Judged(texts, vectors, quality[:, 0], quality[:, 1], doubts)


def _doubt(cheap: Answer, measure: Measure) -> float:
    """As the cascade will see it: what is not a full answer escalates."""
    sure = confidence(cheap["token_logprobs"], measure)
    is_full = _text(cheap) is not None and cheap["finish_reason"] != CUT_SHORT
    return -sure if is_full and sure is not None else np.inf


def _quality(measure: ByLabels | ByStrong, answered: Answered) -> tuple[float, float]:
    """(cheap, strong), each 0 or 1. A row without an answer has none."""
    agree = AGREEMENT[measure.compare]
    cheap, strong = _text(answered.cheap), _text(answered.strong)
    if isinstance(measure, ByLabels):
        right = answered.sampled.label or ""
        return float(cheap is not None and agree(right, cheap)), float(
            strong is not None and agree(right, strong)
        )
    same = cheap is not None and strong is not None and agree(strong, cheap)
    return float(same), float(strong is not None)


def _text(answer: Answer) -> str | None:
    return answer["response"] if answer["status"] == "ok" else None


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


def print_route_calibration(found: RouteCalibration, console: Console) -> None:
    """What was learned, in tables."""
    pair = Table(title=f"the pair of tiers, on {found.rows:,} rows", title_justify="left")
    for heading in ("", "share", "interval"):
        pair.add_column(heading, justify="right" if heading else "left")
    for figure in found.advice.table:
        interval = f"{100 * figure.low:.1f} to {100 * figure.high:.1f}"
        pair.add_row(figure.name, f"{100 * figure.value:.1f} %", interval)
    console.print(pair)
    console.print(f"{found.advice.verdict}: {found.advice.reason}")
    table = Table(title="policies", title_justify="left")
    for heading in ("policy", "APGR", "certified saving"):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for policy in found.policies:
        saving = policy.certified_saving
        certified = "" if saving is None else f"{100 * saving:.1f} %"
        table.add_row(policy.name, f"{policy.apgr:.3f}", certified)
    console.print(table)
    console.print(_verdict(found), highlight=False)
    projected = ", ".join(
        f"{100 * c.saving:.1f} % with {factor} times the rows"
        for factor, c in zip((2, 4), found.larger, strict=False)
    )
    console.print(f"a larger sample would probably certify {projected}", highlight=False)
    console.print(f"bill: ${found.bill_usd:.6f}; stored: {found.stored}", highlight=False)


def _verdict(found: RouteCalibration) -> str:
    certificate, floor = found.certificate, found.floor
    promise = f"{floor.loss_points:g} points at {100 * floor.confidence:g} % confidence"
    if certificate.threshold is None:
        return f"nothing can be certified within {promise}: every row goes to the strong tier"
    return (
        f"certified within {promise}: {100 * certificate.saving:.1f} % saved, "
        f"{100 * certificate.share_cheap:.1f} % of rows stay cheap; quality "
        f"{100 * found.quality:.1f} of the strong tier's {100 * found.strong_quality:.1f}, "
        f"at most {100 * certificate.loss_upper:.2f} points less"
    )
