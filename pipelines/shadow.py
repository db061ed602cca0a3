"""Checks in the shadow: some rows that a calibrated route left cheap are answered by both tiers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from pipelines.agreement import AGREEMENT
from pipelines.calibrated_config import ByLabels, ByStrong, Calibrated
from pipelines.cascade import Audit, Done, Given, Ladder, Next, build_ladder
from pipelines.requests import Request
from pipelines.route_config import Route

SHADOW = "shadow"

OUTCOME_COLUMNS = ["row_id", "status", "tier", "route_audit", "_turn"]
COMMITTED_COLUMNS = ["row_id", "status", "source", "tier", "route_audit"]


@dataclass(frozen=True)
class Outcomes:
    """What became of rows that a tier worked on, as a `RouteGuard` counts it.

    Attributes:
        rows, cheap: those that are routed now, and how many of them stay cheap.
        gains: of checks that are over, by row; their rows were counted when the check began.
    """

    rows: int
    cheap: int
    gains: dict[str, float]


def gains_by_audit(difference: float) -> dict[Audit, float]:
    """What the strong tier's answer is worth more, by `route_audit`.

    Args:
        difference: what it was worth in the sample where the two answers differed.
    """
    return {"worse": 1.0, "as_good": 0.0, "better": -1.0, "differs": difference}


def outcomes(
    rows: Sequence[Mapping[str, Any]], cheap: str, gains: Mapping[Audit, float]
) -> Outcomes:
    """Args:
    rows: `OUTCOME_COLUMNS` after the referee has ruled.
    cheap: the tier's name.
    gains: `gains_by_audit`.
    """
    done = [row for row in rows if row["status"] == "ok" and row["route_audit"] is None]
    stay = sum(row["tier"] == cheap for row in done)
    in_check = sum(row["_turn"] == SHADOW for row in rows)
    return Outcomes(len(done) + in_check, stay + in_check, _gains(rows, gains))


def committed_outcomes(
    rows: Sequence[Mapping[str, Any]], cheap: str, gains: Mapping[Audit, float]
) -> Outcomes:
    """The same of rows that an earlier start of the run has committed: `COMMITTED_COLUMNS`."""
    done = [row for row in rows if row["status"] == "ok" and row["source"] == "generated"]
    stayed = sum(row["tier"] == cheap or row["route_audit"] is not None for row in done)
    return Outcomes(len(done), stayed, _gains(done, gains))


def _gains(rows: Sequence[Mapping[str, Any]], gains: Mapping[Audit, float]) -> dict[str, float]:
    return {row["row_id"]: gains[row["route_audit"]] for row in rows if row["route_audit"]}


def ladder_of(route: Route, configured: Route) -> Ladder | None:
    """The ladder of a run.

    Args:
        route: as the run takes it.
        configured: as it was asked for.
    """
    ladder = build_ladder(route)
    if isinstance(configured, Calibrated) and configured.checked_share:
        return ShadowLadder(ladder, configured)
    return ladder


def is_checked(route: Calibrated, row_id: str) -> bool:
    """Whether a row that stays cheap is answered again: by lot, the same however often it comes."""
    seed = route.seed.to_bytes(8, "little", signed=True)
    lot = blake2b(row_id.encode(), digest_size=8, key=seed).digest()
    return int.from_bytes(lot, "little") < route.checked_share * 2**64


class ShadowLadder:
    """Takes what the route takes, and has a share of it answered again.

    A checked row gets the strong tier's answer, which it has paid for.

    Args:
        inner: of the route itself; None where its first answer is the last.
    """

    def __init__(self, inner: Ladder | None, route: Calibrated) -> None:
        assert isinstance(route.quality, ByLabels | ByStrong)
        self._inner, self._route = inner, route
        self._agree = AGREEMENT[route.quality.compare]
        self.label = route.quality.column if isinstance(route.quality, ByLabels) else None

    def first(self, request: Request) -> Next:
        if self._inner is None:
            return Next(self._route.cheap, 0)
        return self._inner.first(request)

    def is_last(self, step: int, turn: str) -> bool:
        return turn == SHADOW

    def step_of(self, tier: str, step: int) -> int:
        return self._inner.step_of(tier, step) if self._inner else step

    def after(self, given: Given) -> Next | Done:
        if given.turn == SHADOW:
            return self._compared(given)
        outcome = self._inner.after(given) if self._inner else Done("")
        stays_cheap = isinstance(outcome, Done) and given.tier == self._route.cheap
        answered = given.response is not None or given.parked is not None
        if stays_cheap and answered and is_checked(self._route, given.row_id):
            return Next(self._route.strong, 0, SHADOW, parks=True)
        return outcome

    def _compared(self, given: Given) -> Done:
        if given.response is None or given.parked is None:
            return Done("the check in the shadow found no answer", takes_parked=True)
        return Done("checked in the shadow", audit=self._audit(given, given.parked, given.response))

    def _audit(self, given: Given, cheap: str, strong: str) -> Audit:
        if given.label is None and self._agree(strong, cheap):
            return "as_good"
        if given.label is None:
            # Rows of another night have no label any more: either may be right, or none.
            return "worse" if self.label is None else "differs"
        is_right, should_be = self._agree(given.label, cheap), self._agree(given.label, strong)
        if is_right == should_be:
            return "as_good"
        return "better" if is_right else "worse"
