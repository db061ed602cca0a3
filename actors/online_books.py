"""The books of an ingress process: what a request may cost at most, and what it did cost."""

import asyncio
import logging
import time
from collections.abc import Collection, Coroutine
from typing import Any, TypeVar

from actors.flights import Leaving
from actors.online_policies import Policies
from actors.online_request import (
    Asked,
    Gate,
    Observer,
    Refused,
    Reservation,
    Seen,
    Unreachable,
)
from pipelines.refusal import Refusal

logger = logging.getLogger(__name__)
T = TypeVar("T")


_TRIES = 9
_AGAIN_S = 0.2
"""Before the second try, and twice as long before each further one."""
_ADMIT_S = 10.0
_SETTLE_S = 1.0
"""For the gate's word: one that starts anew keeps who asks waiting."""


class Books:
    """Lives on one event loop.

    Args:
        tiers: names of those that may work on a request.
        gate: limits of tenants; None where there are no tenants.
    """

    def __init__(
        self,
        policies: Policies,
        tiers: Collection[str],
        gate: Gate | None,
        observer: Observer | None,
    ) -> None:
        self._policies, self._tiers, self._gate = policies, tiers, gate
        self.observer = observer
        self._open: set[asyncio.Task[Any]] = set()

    async def admit(self, asked: Asked) -> Reservation:
        """Reserve what a request can cost at most.

        Raises: Refused, Unreachable.
        """
        most = Reservation(
            asked.row["row_id"], *self._policies.worst(asked.row["_parsed"], self._tiers)
        )
        if self._gate is None:
            return most
        asking = self.surely(self._gate.admit(asked.tenant, most))
        try:
            async with asyncio.timeout(_ADMIT_S):
                refusal = await asyncio.shield(asking)
        except BaseException as error:
            # What it reserves is given back when the word comes.
            self.surely(self._given_back(asking, asked.tenant, most))
            if isinstance(error, TimeoutError):
                raise Unreachable from error
            raise
        if refusal is not None:
            self.refused(refusal.code, asked.tenant)
            raise Refused(refusal)
        return most

    def refused(self, reason: str, tenant: str | None) -> None:
        if self.observer is not None:
            self.observer.refused(reason, tenant)

    async def close(self, asked: Asked, most: Reservation, leaving: Leaving) -> None:
        """Put what a request has cost on its tenant's account, and tell the observer.

        An answer that is there does not wait for the account for long, and is not lost with it.
        """
        now = time.monotonic()
        row = asked.row = await leaving.taken(asked.row)
        price = asked.price = self._policies.price(row)
        used = sum(w["prompt_tokens"] + w["completion_tokens"] for w in row["_work"] or ())
        if self.observer is not None:
            first = None if asked.first is None else asked.first - asked.began
            seen = Seen(
                asked.request_id, asked.tenant, asked.endpoint, asked.stream,
                {**row, "_work": price.work}, price, first, now - asked.began, not leaving.ended,
            )  # fmt: skip
            self.observer.finished(seen, asked.traceparent)
        if self._gate is not None:
            settling = self.surely(self._settle(asked.tenant, most, used, price.cost_nusd))
            await asyncio.wait({settling}, timeout=_SETTLE_S)

    async def settled(self) -> None:
        """Until all of who has left is in the books."""
        while self._open:
            await asyncio.wait(self._open)

    def surely(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Work that goes on to its end, whoever stops waiting for it."""
        task = asyncio.ensure_future(work)
        # The loop alone would not keep it.
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        return task

    async def _given_back(
        self, asking: "asyncio.Future[Refusal | None]", tenant: str | None, most: Reservation
    ) -> None:
        await asyncio.wait({asking})
        if asking.cancelled() or asking.exception() is not None or asking.result() is None:
            await self._settle(tenant, most, 0, 0)

    async def _settle(
        self, tenant: str | None, most: Reservation, tokens: int, cost_nusd: int
    ) -> None:
        assert self._gate is not None
        for tried in range(_TRIES):
            await asyncio.sleep(_AGAIN_S * 2 ** (tried - 1) if tried else 0)
            try:
                await self._gate.settle(tenant, most, tokens, cost_nusd)
                return
            # Whatever is wrong with the gate is not wrong with this request.
            except Exception as error:
                logger.warning("%s: a cost could not be settled: %s", tenant, error)
        logger.error("%s: %s tokens, $%.9f are on no account", tenant, tokens, cost_nusd / 1e9)
