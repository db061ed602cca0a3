"""Learning a route from a sample of the input, and proving how far it may be trusted."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from actors.route_models import fit
from rich.console import Console
from rich.table import Table

from actors.embedder import Embedder
from actors.known_answers import SERVED
from actors.learned_policy import Learned as Fitted
from actors.learned_policy import prompt_of
from jobs.preflight import Plan, plan_run
from jobs.route_plans import route_plans
from jobs.route_sampling import Answered, answer, draw
from pipelines.agreement import AGREEMENT
from pipelines.certify import Certificate, Costs, Floor, certify, threshold_grid
from pipelines.config import RunConfig
from pipelines.errors import UsageProblem
from pipelines.familiarity import Familiarity
from pipelines.route_config import ByLabels, ByStrong, Classifier, Learned
from pipelines.route_curve import oracle_curve, random_curve, route_curve
from pipelines.route_features import features
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


@dataclass(frozen=True)
class _Data:
    """The sample in numbers, each of shape (rows, ...)."""

    texts: list[str]
    vectors: np.ndarray
    cheap: np.ndarray
    strong: np.ndarray

    @property
    def gains(self) -> np.ndarray:
        return self.strong - self.cheap

    def at(self, rows: np.ndarray) -> "_Data":
        texts = [self.texts[i] for i in rows]
        return _Data(texts, self.vectors[rows], self.cheap[rows], self.strong[rows])


def calibrate_route(config: RunConfig, say: Say, divert_stderr: bool = False) -> RouteCalibration:
    """Answer a sample with both tiers, fit, certify, and store the plan for runs to use.

    Raises:
        UsageProblem: the route is not one that learns, or the sample cannot tell anything.
    """
    route = config.route
    if not isinstance(route, Learned):
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
    found, fitted = _learn(plan, route, answered)
    stored = route_plans(config, route)
    stored.make()
    key = plan_key(config, route)
    arrays = fitted.arrays() if found.threshold is not None else {}
    model = route.model if isinstance(route, Classifier) else _BASELINE
    save_plan(stored, RoutePlan(key, model, found, arrays), _known(answered))
    return _told(plan, route, answered, found, fitted, summary.bill_usd, f"{stored.url}/{key}")


def _learn(plan: Plan, route: Learned, answered: Sequence[Answered]) -> tuple[Certificate, Fitted]:
    data, costs = _data(route, answered), _costs(answered)
    ours, theirs = _halves(route, len(answered))
    model = route.model if isinstance(route, Classifier) else _BASELINE
    fitted = _fit(route, model, data.at(ours))
    return _certify(plan, route, fitted, data, ours, theirs, costs), fitted


def _fit(route: Learned, model: str, data: _Data) -> Fitted:
    inputs = np.hstack([data.vectors, features(data.texts)])
    scorer = fit(model, inputs, data.gains, route.seed)
    guard = Familiarity.fit(data.vectors, route.unfamiliar) if route.unfamiliar else None
    return Fitted(scorer, guard)


def _certify(
    plan: Plan,
    route: Learned,
    fitted: Fitted,
    data: _Data,
    ours: np.ndarray,
    theirs: np.ndarray,
    costs: Costs,
) -> Certificate:
    known, held = data.at(ours), data.at(theirs)
    own = fitted.scores(known.texts, known.vectors)
    grid = threshold_grid(own[np.isfinite(own)])
    scores = fitted.scores(held.texts, held.vectors)
    ahead = max(plan.num_rows - len(data.texts), 1)
    return certify(scores, held.gains, grid, _floor(route), costs, ahead)


def _told(
    plan: Plan,
    route: Learned,
    answered: Sequence[Answered],
    certificate: Certificate,
    fitted: Fitted,
    bill_usd: float,
    stored: str,
) -> RouteCalibration:
    """The same numbers for a person: beside the baseline, chance and the best there is."""
    data, costs = _data(route, answered), _costs(answered)
    ours, theirs = _halves(route, len(answered))
    held = data.at(theirs)
    scores = fitted.scores(held.texts, held.vectors)
    name = route.policy if isinstance(route, Classifier) else _BASELINE
    curve = route_curve(scores, held.cheap, held.strong)
    policies = [Policy(name, curve.apgr, certificate.saving)]
    if name != _BASELINE:
        plain = _fit(route, _BASELINE, data.at(ours))
        baseline = route_curve(plain.scores(held.texts, held.vectors), held.cheap, held.strong)
        saving = _certify(plan, route, plain, data, ours, theirs, costs).saving
        policies.append(Policy(_BASELINE, baseline.apgr, saving))
    policies.append(Policy("random", random_curve(held.cheap, held.strong).apgr, None))
    policies.append(Policy("oracle", oracle_curve(held.cheap, held.strong).apgr, None))
    known = fitted.scores(data.at(ours).texts, data.at(ours).vectors)
    grid = threshold_grid(known[np.isfinite(known)])
    strong = float(held.strong.mean())
    kept, sent = (float(np.asarray(cost, np.float64)) for cost in (costs.kept, costs.sent))
    return RouteCalibration(
        rows=len(answered),
        policies=policies,
        certificate=certificate,
        quality=strong - certificate.loss,
        strong_quality=strong,
        larger=larger_samples(scores, held.gains, grid, _floor(route), costs, plan.num_rows),
        advice=advise(data.cheap, data.strong, sent / kept if kept else np.inf),
        floor=_floor(route),
        bill_usd=bill_usd,
        stored=stored,
    )


def _data(route: Learned, answered: Sequence[Answered]) -> _Data:
    texts = [prompt_of(Candidate(a.sampled.request, {})) for a in answered]
    distinct = sorted(set(texts))
    vectors = dict(zip(distinct, Embedder(route.embedding).embed(distinct), strict=True))
    quality = np.array([_quality(route.quality, a) for a in answered], np.float64)
    stacked = np.stack([vectors[text] for text in texts])
    return _Data(texts, stacked, quality[:, 0], quality[:, 1])


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


def _text(answer: Any) -> str | None:
    return answer["response"] if answer["status"] == "ok" else None


def _costs(answered: Sequence[Answered]) -> Costs:
    kept = float(np.mean([float(a.cheap["cost_usd"]) for a in answered]))
    sent = float(np.mean([float(a.strong["cost_usd"]) for a in answered]))
    if not sent:
        raise UsageProblem("tiers: the strong tier's answers cost nothing, so nothing can be saved")
    return Costs(kept, sent, sent)


def _halves(route: Learned, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """To fit on, and to certify on: never the same row, nor the same twice by chance of order."""
    order = np.random.default_rng(route.seed).permutation(rows)
    middle = rows // 2
    return np.sort(order[:middle]), np.sort(order[middle:])


def _floor(route: Learned) -> Floor:
    return Floor(route.floor.loss_points, route.floor.confidence)


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
