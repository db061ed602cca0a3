"""The life of a row online: check, key, claim, recall, route, generate, price."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from actors.engine import Say
from actors.flights import Flight, Flights, Leaving
from actors.online_books import Books
from actors.online_cache import OnlineCache
from actors.online_policies import Policies
from actors.online_request import Asked, Gate, Observer, Row
from actors.online_tier import Overloaded, TierCalls, TierGone
from pipelines.batch_api import metadata_columns
from pipelines.cache_admission import is_admissible
from pipelines.errors import RowProblem
from pipelines.keys import request_key
from pipelines.requests import Request
from pipelines.routing import Candidate
from pipelines.schema import TRAVELLING

logger = logging.getLogger(__name__)

_TRIES = 5
"""Replicas that a request may lose before it is the request that is given up."""
_AGAIN_S = 0.2
"""Before the second try, and twice as long before each further one: until it is known that a
replica is gone, the next try may meet the same one."""


class Service:
    """One ingress process. Lives on one event loop.

    Args:
        slots: requests that a tier can work on at once.
        queued: those above that this process lets wait for a tier, at most.
        cache: None where the configuration has none.
    """

    def __init__(
        self,
        policies: Policies,
        tiers: Mapping[str, TierCalls],
        slots: Mapping[str, int],
        queued: int,
        cache: OnlineCache | None,
        gate: Gate | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._policies, self._tiers, self._cache = policies, tiers, cache
        self._slots, self._queued = slots, queued
        self.books = Books(policies, list(tiers), gate, observer)
        self._flights = Flights()
        self._at: dict[str, int] = dict.fromkeys(tiers, 0)

    @property
    def tiers(self) -> list[str]:
        return list(self._tiers)

    def gauges(self) -> Mapping[str, Mapping[str, int]]:
        """What this process holds now; it knows of no other's, so several of them may have more
        waiting than they say."""
        running = {name: min(at, self._slots[name]) for name, at in self._at.items()}
        waiting = {name: at - running[name] for name, at in self._at.items()}
        return {"num_requests_running": running, "num_requests_waiting": waiting}

    def status(self) -> dict[str, Any]:
        """The tiers, and what each works on for this process."""
        return {"tiers": dict(self._at)}

    def read(self, url: str, body: Mapping[str, Any], tenant: str | None) -> Row | RowProblem:
        """The row that a request's body makes: checked and keyed."""
        request = self._policies.dialect.request({"url": url, "body": body})
        if isinstance(request, RowProblem):
            return request
        # Nothing else of what a client may call by any name comes near the columns of a row.
        names = self._policies.dialect.keyed_by
        values = {**metadata_columns(body, names), self._policies.tenant: tenant}
        keyed = {name: values[name] for name in names}
        key = request_key(request, self._policies.policy, keyed).hex()
        return {
            **dict.fromkeys(TRAVELLING.names),
            "row_id": uuid.uuid4().hex,
            "request_key": key,
            "url": url,
            "_request": request.to_json(),
            "_shareable": request.is_deterministic(self._policies.dialect.defaults),
            "_values": values,
            # Parsing it anew for every step is what a request costs most here.
            "_parsed": request,
        }

    @asynccontextmanager
    async def under_way(self, asked: Asked) -> AsyncIterator[Flight]:
        """The request's work, from admission to its books; leaving early gives it up.

        Raises: Refused, Unreachable, Overloaded.
        """
        reserved = await self.books.admit(asked)
        shared = asked.row["_shareable"]
        # Who would wait less must not wait as long as who would wait more.
        key = f"{asked.row['request_key' if shared else 'row_id']}/{asked.priority}"
        leaving = Leaving()
        try:
            async with self._flights.aboard(
                key, lambda flight: self._answered(asked, flight), asked.row
            ) as flight:
                try:
                    yield flight
                finally:
                    leaving = Leaving(flight, flight.done)
        finally:
            # Also for who hung up: what is reserved must not stay so, and the books must be told.
            closing = self.books.surely(self.books.close(asked, reserved, leaving))
            if leaving.ended:
                await asyncio.shield(closing)

    async def _answered(self, asked: Asked, flight: Flight) -> Row:
        row = asked.row
        if self._cache is not None:
            row = await self._cache.recall(row)
        if row["status"] is None:
            (place,) = self._policies.router.places([Candidate(row["_parsed"], row["_values"])])
            flight.progress = row = {**row, **place}
        while row["status"] is None:
            row = await self._worked_on(asked, row, flight)
        cut_here = self._policies.cut_here(row["_parsed"], row["finish_reason"])
        if self._cache is not None and is_admissible(row) and not cut_here:
            self._cache.remember(row)
            self._cache.keep(row)
        flight.progress = row
        return row

    async def _worked_on(self, asked: Asked, row: Row, flight: Flight) -> Row:
        """The row after one tier's turn and what its referee makes of it."""
        tier = row["tier"]
        referee = self._policies.referees[tier]
        asks = Request.from_json(row["_asked"]) if row["_asked"] else row["_parsed"]
        request = replace(
            self._policies.bounded(asks), priority=asked.priority, cache_salt=asked.tenant
        )
        heard = flight.say if asked.stream and referee.may_stream(row) else None
        if self._is_full(tier, asked.priority, paid=bool(row["_work"])):
            raise Overloaded
        told = await self._turn(tier, request, heard, flight)
        # What was paid is paid, also by who has hung up.
        flight.progress = row = {**row, **told, "_work": [*(row["_work"] or ()), *told["_work"]]}
        row = referee.ruling(row) or row
        if flight.given_up and row["status"] is None:
            raise asyncio.CancelledError
        return row

    def _is_full(self, tier: str, priority: int, paid: bool) -> bool:
        """The second half of the queue is for those of the first priority. Who has paid for one
        tier's answer is turned away at the next only when half as many more wait."""
        queued = self._queued // 2 if priority else self._queued
        return self._at[tier] >= self._slots[tier] + queued + (queued // 2 if paid else 0)

    async def _turn(self, tier: str, request: Request, say: Say | None, flight: Flight) -> Row:
        self._at[tier] += 1
        said: list[bool] = []
        calls, name = self._tiers[tier], uuid.uuid4().hex

        async def stop() -> None:
            try:
                is_known = await calls.give_up(name)
            # Whatever is wrong with the tier, nobody waits for it.
            except Exception as error:
                logger.warning("%s: a request could not be given up: %s", tier, error)
                is_known = False
            if not is_known:
                flight.cancel()

        flight.stop = lambda: self.books.surely(stop())

        def heard(piece: Any) -> None:
            said.append(True)
            assert say is not None
            say(piece)

        try:
            for tried in range(_TRIES):
                try:
                    return await calls.turn(request, name, heard if say else None)
                except TierGone:
                    if said or flight.given_up or tried == _TRIES - 1:
                        raise
                    await asyncio.sleep(_AGAIN_S * 2**tried)
            raise AssertionError
        finally:
            flight.stop = None
            self._at[tier] -= 1
