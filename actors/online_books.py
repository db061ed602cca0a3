"""The books of an ingress process: what a request may cost at most, and what it did cost."""

import asyncio
import logging
import time
from collections.abc import Collection, Coroutine
from typing import Any, TypeVar

from actors.flights import Leaving
from actors.online_policies import Policies
from actors.online_request import Asked, Gate, Observer, Refused, Seen
from pipelines.refusal import Refusal

logger = logging.getLogger(__name__)
T = TypeVar("T")
Reserved = tuple[int, int]
"""Tokens and nano-dollars."""

_TRIES = 9
_AGAIN_S = 0.2
"""Before the second try, and twice as long before each further one."""


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

    async def admit(self, asked: Asked) -> Reserved:
        """Reserve what a request can cost at most.

        Raises: Refused, Unreachable.
        """
        tokens, nusd = self._policies.worst(asked.row["_parsed"], self._tiers)
        if self._gate is None:
            return tokens, nusd
        asking = self.surely(self._gate.admit(asked.tenant, tokens, nusd))
        try:
            refusal = await asyncio.shield(asking)
        except asyncio.CancelledError:
            # Nobody waits for the answer any more; what it reserves is given back when it comes.
            self.surely(self._given_back(asking, asked.tenant, (tokens, nusd)))
            raise
        if refusal is not None:
            self.refused(refusal.code, asked.tenant)
            raise Refused(refusal)
        return tokens, nusd

    def refused(self, reason: str, tenant: str | None) -> None:
        if self.observer is not None:
            self.observer.refused(reason, tenant)

    async def close(self, asked: Asked, reserved: Reserved, leaving: Leaving) -> None:
        """Put what a request has cost on its tenant's account, and tell the observer.

        Returns once the account was told, or could not be at the first try: an answer that is
        there is not lost with the account.
        """
        row = asked.row = await leaving.taken(asked.row)
        price = asked.price = self._policies.price(row)
        used = sum(w["prompt_tokens"] + w["completion_tokens"] for w in row["_work"] or ())
        if self.observer is not None:
            now = time.monotonic()
            first = None if asked.first is None else asked.first - asked.began
            seen = Seen(
                asked.request_id, asked.tenant, asked.endpoint, asked.stream,
                {**row, "_work": price.work}, price, first, now - asked.began, not leaving.ended,
            )  # fmt: skip
            self.observer.finished(seen, asked.traceparent)
        if self._gate is not None and not await self._settle(
            asked.tenant, used, price.cost_nusd, reserved
        ):
            self.surely(self._settle_yet(asked.tenant, used, price.cost_nusd, reserved))

    async def settled(self) -> None:
        """Until all of who has left is in the books."""
        if self._open:
            await asyncio.wait(self._open)

    def surely(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Work that goes on to its end, whoever stops waiting for it."""
        task = asyncio.ensure_future(work)
        # The loop alone would not keep it.
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        return task

    async def _given_back(
        self, asking: "asyncio.Future[Refusal | None]", tenant: str | None, reserved: Reserved
    ) -> None:
        if await asking is None:
            await self._settle_yet(tenant, 0, 0, reserved)

    async def _settle(
        self, tenant: str | None, tokens: int, cost_nusd: int, reserved: Reserved
    ) -> bool:
        assert self._gate is not None
        try:
            await self._gate.settle(tenant, tokens, cost_nusd, reserved[1], reserved[0])
        # Whatever is wrong with the gate is not wrong with this request.
        except Exception as error:
            logger.warning("%s: a cost could not be settled: %s", tenant, error)
            return False
        return True

    async def _settle_yet(
        self, tenant: str | None, tokens: int, cost_nusd: int, reserved: Reserved
    ) -> None:
        for tried in range(_TRIES):
            await asyncio.sleep(_AGAIN_S * 2**tried if tried else 0)
            if await self._settle(tenant, tokens, cost_nusd, reserved):
                return
        logger.error("%s: %s tokens, $%.9f are on no account", tenant, tokens, cost_nusd / 1e9)
