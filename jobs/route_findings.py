"""What a route's calibration found, in numbers and for people."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from actors.route_fit import Certified, Judged
from pipelines.certify import Certificate, Floor
from pipelines.route_curve import oracle_curve, random_curve
from pipelines.sample_size import Enough, Prospect
from pipelines.worth import Advice


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
        strong_quality: of the strong tier alone, on the rows of the test; of 1.
        larger: samples of twice and four times the rows.
        enough: why the sample has not all the rows that it might have.
        stored: where runs will find it.
        budget_usd: what the route may spend; None where it has a floor.
    """

    rows: int
    policies: list[Policy]
    certificate: Certificate
    strong_quality: float
    larger: list[Prospect]
    enough: str | None
    advice: Advice
    floor: Floor
    bill_usd: float
    stored: str
    budget_usd: float | None = None

    @property
    def quality(self) -> float:
        """Expected of routing, on the rows of the test; of 1."""
        return self.strong_quality - self.certificate.loss

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "quality": self.quality}


def findings(
    judged: Judged,
    found: Mapping[str, Certified],
    floor: Floor,
    advice: Advice,
    larger: list[Prospect],
    enough: Enough | None,
    bill_usd: float,
    stored: str,
) -> RouteCalibration:
    """The same numbers for a person: beside the baseline, chance and the best there is.

    Args:
        found: by policy, the chosen one first.
    """
    _, held = judged.halves()
    policies = [Policy(n, f.curve.apgr, f.certificate.saving) for n, f in found.items()]
    policies.append(Policy("random", random_curve(held.cheap, held.strong).apgr, None))
    policies.append(Policy("oracle", oracle_curve(held.cheap, held.strong).apgr, None))
    return RouteCalibration(
        rows=len(judged.texts),
        policies=policies,
        certificate=next(iter(found.values())).certificate,
        strong_quality=float(held.strong.mean()),
        larger=larger,
        enough=enough.reason if enough else None,
        advice=advice,
        floor=floor,
        bill_usd=bill_usd,
        stored=stored,
    )


def print_route_calibration(found: RouteCalibration, console: Console) -> None:
    """What was learned, in tables."""
    if found.enough is not None:
        console.print(f"sampled no more than {found.rows:,} rows: {found.enough}", highlight=False)
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
        f"{100 * p.certificate.saving:.1f} % with {p.rows:,} rows"
        f" ({'would pay' if p.pays else 'would not pay'})"
        for p in found.larger
    )
    console.print(f"a larger sample would probably certify {projected}", highlight=False)
    console.print(f"bill: ${found.bill_usd:.6f}; stored: {found.stored}", highlight=False)


def _verdict(found: RouteCalibration) -> str:
    certificate, floor = found.certificate, found.floor
    if found.budget_usd is not None:
        return (
            f"for ${found.budget_usd:g} {100 * certificate.share_cheap:.1f} % of rows stay cheap; "
            f"quality {100 * found.quality:.1f} of the strong tier's "
            f"{100 * found.strong_quality:.1f}, at most {100 * certificate.loss_upper:.2f} points "
            f"less at {100 * floor.confidence:g} % confidence"
        )
    promise = f"{floor.loss_points:g} points at {100 * floor.confidence:g} % confidence"
    if certificate.threshold is None:
        return (
            f"nothing that saves can be certified within {promise}: every row goes to the strong "
            "tier"
        )
    return (
        f"certified within {promise}: {100 * certificate.saving:.1f} % saved, "
        f"{100 * certificate.share_cheap:.1f} % of rows stay cheap; quality "
        f"{100 * found.quality:.1f} of the strong tier's {100 * found.strong_quality:.1f}, "
        f"at most {100 * certificate.loss_upper:.2f} points less"
    )
