"""Plain classes that live in actors of their own, as stages see them."""

from collections.abc import Awaitable, Sequence
from typing import Any

import pyarrow as pa
import ray

from actors.engine import Answer
from actors.exchange import Loan
from actors.meter import Grant
from pipelines.calibrated_config import Calibrated
from pipelines.ledger import Replica
from pipelines.route_guard import Standing
from pipelines.routing import FixedPolicy
from pipelines.shadow import (
    COMMITTED_COLUMNS,
    OUTCOME_COLUMNS,
    Outcomes,
    committed_outcomes,
    gains_by_audit,
    outcomes,
)


class RemoteMeter:
    """A `RunMeter` in an actor, as a generator sees it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def reserve(self, name: str, nusd: int) -> Awaitable[Grant]:
        grant: Awaitable[Grant] = self._actor.reserve.remote(name, nusd)
        return grant

    def settle(self, name: str, reserved_nusd: int, spent_nusd: int) -> None:
        if reserved_nusd or spent_nusd:
            self._actor.settle.remote(name, reserved_nusd, spent_nusd)

    def report_replica(self, name: str, replica: Replica) -> None:
        self._actor.report_replica.remote(name, replica)

    def warn(self, message: str) -> None:
        self._actor.warn.remote(message)

    def fail(self, message: str) -> None:
        """Waits: the driver asks for it as soon as it hears that something failed."""
        ray.get(self._actor.fail.remote(message))


class Guarded:
    """A `RouteGuard` in an actor, as stages see it."""

    def __init__(self, actor: Any, route: Calibrated, difference: float) -> None:
        self._actor = actor
        self._cheap, self._gains = route.cheap, gains_by_audit(difference)
        self.closed = FixedPolicy(route.strong, "the floor is in danger")

    def standing(self) -> Standing:
        standing: Standing = ray.get(self._actor.standing.remote())
        return standing

    def is_in_danger(self) -> bool:
        return self.standing().in_danger

    def report(self, table: pa.Table, at: Sequence[int]) -> None:
        """Tell what became of rows that a tier has just worked on."""
        rows = table.select(OUTCOME_COLUMNS).take(at).to_pylist()
        self._tell(outcomes(rows, self._cheap, self._gains))

    def recall(self, committed: pa.Table) -> None:
        """Tell what an earlier start of the run found, by a part of its rows."""
        rows = committed.select(COMMITTED_COLUMNS).to_pylist()
        self._tell(committed_outcomes(rows, self._cheap, self._gains))

    def _tell(self, seen: Outcomes) -> None:
        self._actor.routed.remote(seen.rows, seen.cheap)
        if seen.gains:
            self._actor.checked.remote(seen.gains)


class RemoteMarket:
    """An `Exchange` in an actor, as a trader sees it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def borrow(self, name: str) -> Loan | None:
        loan: Loan | None = await self._actor.borrow.remote(name)
        return loan

    async def is_wanted(self, name: str, waiting: int) -> bool:
        wanted: bool = await self._actor.is_wanted.remote(name, waiting)
        return wanted

    async def others_wait(self, name: str) -> bool:
        wait: bool = await self._actor.others_wait.remote(name)
        return wait

    async def lend(self, name: str, requests: list[str]) -> list[Answer] | None:
        answers: list[Answer] | None = await self._actor.lend.remote(name, requests)
        return answers

    async def repay(self, name: str, loan: int, answers: list[Answer] | None) -> None:
        await self._actor.repay.remote(name, loan, answers)

    async def give_back(self, loan: int) -> None:
        await self._actor.give_back.remote(loan)
