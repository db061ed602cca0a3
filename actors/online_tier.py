"""A tier as the online service calls it, wherever its engine lives."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Protocol

from actors.api_client import read_key
from actors.engine import GIVEN_UP, Answer, Engine, Say
from actors.generator import Generator, answered
from actors.online_request import Unreachable
from pipelines.api_tier import API
from pipelines.errors import RowProblem, RunFailure
from pipelines.ledger import Replica
from pipelines.prices import HourRate, TokenRate
from pipelines.requests import Request
from pipelines.tier import Tier


class Overloaded(Exception):
    """More requests wait for a tier than may."""


class TierGone(Unreachable):
    """The replica that worked on a request is no more, or no more good."""


logger = logging.getLogger(__name__)

_REFUSED = RowProblem("unavailable", "the tier's provider refuses; the endpoint's log says what")


class TierCalls(Protocol):
    """A tier's replicas, wherever they are."""

    async def turn(self, request: Request, name: str, say: Say | None) -> dict[str, Any]:
        """What the tier makes of a request: columns of its row, with `_work`.

        Raises: Overloaded, TierGone.
        """
        ...

    async def give_up(self, name: str) -> bool:
        """End a turn early: it then comes back with what it has used. False if nobody knows it."""
        ...


class OnlineTier:
    """One replica: the batch's `Generator`, asked for one row at a time.

    Attributes:
        failure: why it can answer nothing any more; None while it can.
    """

    def __init__(
        self,
        name: str,
        tier: Tier,
        engine: Engine,
        rate: TokenRate | HourRate,
        defaults: Mapping[str, Any],
    ) -> None:
        self.failure: RunFailure | None = None
        self._engine, self._tier, self._key = engine, tier, _key_of(tier)
        engine.admission.in_order = True
        self._turns: dict[str, tuple[Request, asyncio.Future[list[Answer | None]]]] = {}
        self._meter = _Standing()
        self._generator = Generator(
            name=name,
            tier=tier,
            engine=engine,
            rate=rate,
            meter=self._meter,
            attempt_id=name,
            defaults=defaults,
            metered=False,
        )

    async def start(self) -> None:
        """Load the model."""
        await self._generator.start()

    async def turn(self, request: Request, name: str, say: Say | None) -> dict[str, Any]:
        if self.failure is not None:
            raise self.failure
        work = asyncio.ensure_future(self._generator.answers([request], say))
        self._turns[name] = request, work
        try:
            # Not for its result: to be given up is not to be cancelled.
            await asyncio.wait({work})
        finally:
            work.cancel()
            if self._turns.get(name) == (request, work):
                del self._turns[name]
        if work.cancelled():
            return {**answered(Answer(problem=GIVEN_UP), self._engine.model), "_work": []}
        try:
            (answer,) = work.result()
        except RunFailure as failure:
            if self._key is None or self._key != _key_of(self._tier):
                self.failure = failure
                raise
            # A service that refuses this key, or a prompt, will refuse the next replica too.
            logger.error("%s", failure)
            answer = Answer(problem=_REFUSED)
        told = answered(answer, self._engine.model)
        return {**told, "_work": self._generator.work(answer)}

    async def give_up(self, name: str) -> bool:
        if name not in self._turns:
            return False
        request, work = self._turns[name]
        if not self._engine.give_up(request):
            work.cancel()
        return True

    def standing(self) -> Replica | None:
        """The replica's life so far."""
        self._generator.report()
        return self._meter.replica

    async def stop(self) -> None:
        await self._engine.stop()


def _key_of(tier: Tier) -> str | None:
    """What an API tier is let in by, as it is now; None for an engine of our own."""
    return (read_key(tier.engine) or "") if isinstance(tier.engine, API) else None


class _Standing:
    """A meter that grants everything and remembers the last report."""

    replica: Replica | None = None

    async def reserve(self, name: str, nusd: int) -> Any:
        return "granted"

    def settle(self, name: str, reserved_nusd: int, spent_nusd: int) -> None:
        pass

    def report_replica(self, name: str, replica: Replica) -> None:
        self.replica = replica
