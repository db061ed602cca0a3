"""The life of a row online: check, key, claim, recall, route, generate, price."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from actors.engine import Say
from actors.flights import Flight, Flights
from actors.online_cache import OnlineCache
from actors.online_request import Asked, Gate, Observer, Refused, Row, Seen
from actors.online_tier import Overloaded, TierCalls, TierGone
from actors.referee import Referee
from actors.router import Router
from pipelines.cache_admission import is_admissible
from pipelines.cascade import CUT_SHORT
from pipelines.errors import RowProblem
from pipelines.intake import Dialect
from pipelines.keys import request_key
from pipelines.prices import PriceList
from pipelines.pricing import Price, price_row
from pipelines.refusal import Refusal
from pipelines.requests import Request
from pipelines.routing import Candidate
from pipelines.schema import TRAVELLING
from pipelines.worst_case import worst_nusd, worst_tokens

T = TypeVar("T")

_TRIES = 5
"""Replicas that a request may lose before it is the request that is given up."""
_AGAIN_S = 0.2
"""Before the second try, and twice as long before each further one: until it is known that a
replica is gone, the next try may meet the same one."""


@dataclass(frozen=True)
class Policies:
    """What decides about rows; the same that a run of this configuration would go by.

    Attributes:
        policy: `policy_digest`.
        tenant: the column that a request's tenant stands in.
        most_tokens: what a request that states no limit gets at most.
    """

    dialect: Dialect
    policy: bytes
    prices: PriceList
    router: Router
    referees: Mapping[str, Referee]
    tenant: str
    most_tokens: int


class Service:
    """One ingress process. Lives on one event loop.

    Args:
        room: requests that this process lets a tier work on or wait for, at most.
        cache: None where the configuration has none.
    """

    def __init__(
        self,
        policies: Policies,
        tiers: Mapping[str, TierCalls],
        room: Mapping[str, int],
        cache: OnlineCache | None,
        gate: Gate | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._policies, self._tiers, self._cache = policies, tiers, cache
        self._room = room
        self.gate, self.observer = gate, observer
        self._flights = Flights()
        self._at: dict[str, int] = dict.fromkeys(tiers, 0)
        self._closing: set[asyncio.Task[Any]] = set()

    @property
    def tiers(self) -> list[str]:
        return list(self._tiers)

    def gauges(self) -> Mapping[str, Mapping[str, int]]:
        """What this process holds now."""
        return {"num_requests_running": dict(self._at)}

    async def status(self) -> dict[str, Any]:
        """The tiers, and what each works on for this process."""
        return {"ready": True, "tiers": dict(self._at)}

    def read(self, url: str, body: Mapping[str, Any], tenant: str | None) -> Row | RowProblem:
        """The row that a request's body makes: checked and keyed."""
        request = self._policies.dialect.request({"url": url, "body": body})
        if isinstance(request, RowProblem):
            return request
        metadata = body.get("metadata")
        told = metadata if isinstance(metadata, dict) else {}
        given = {**told, self._policies.tenant: tenant}
        # Nothing else of what a client may call by any name comes near the columns of a row.
        keyed = {name: given.get(name) for name in self._policies.dialect.keyed_by}
        values = {**keyed, self._policies.tenant: tenant}
        key = request_key(request, self._policies.policy, keyed).hex()
        return {
            **dict.fromkeys(TRAVELLING.names),
            "row_id": uuid.uuid4().hex,
            "request_key": key,
            "url": url,
            "_request": request.to_json(),
            "_shareable": request.is_deterministic(self._policies.dialect.defaults),
            "_values": values,
        }

    @asynccontextmanager
    async def under_way(self, asked: Asked) -> AsyncIterator[Flight]:
        """The request's work, from admission to its books; leaving early gives it up.

        Raises: Refused, Overloaded, TierGone.
        """
        tokens, nusd = self._worst(asked.row)
        await self._admit(asked, tokens, nusd)
        shared = asked.row["_shareable"]
        key = asked.row["request_key"] if shared else asked.row["row_id"]
        leaves = _Leaves()
        try:
            async with self._flights.aboard(
                key, lambda flight: self._answered(asked, flight), asked.row
            ) as flight:
                try:
                    yield flight
                finally:
                    leaves = _Leaves(flight, flight.done)
        finally:
            # Also for who hung up: what is reserved must not stay so, and the books must be told.
            closing = self._surely(self._close(asked, tokens, nusd, leaves))
            if leaves.ended:
                await asyncio.shield(closing)

    async def settled(self) -> None:
        """Until the books know all of who has left."""
        if self._closing:
            await asyncio.wait(self._closing)

    def price(self, row: Mapping[str, Any]) -> Price:
        return price_row(row, self._policies.prices)

    async def _admit(self, asked: Asked, tokens: int, nusd: int) -> None:
        if self.gate is None:
            return
        asking = self._surely(self.gate.admit(asked.tenant, tokens, nusd))
        try:
            refusal = await asyncio.shield(asking)
        except asyncio.CancelledError:
            # Nobody waits for the answer any more; what it reserves is given back when it comes.
            self._surely(self._given_back(asking, asked, tokens, nusd))
            raise
        if refusal is not None:
            self.refused(refusal.code, asked.tenant)
            raise Refused(refusal)

    async def _given_back(
        self, asking: "asyncio.Future[Refusal | None]", asked: Asked, tokens: int, nusd: int
    ) -> None:
        if self.gate is not None and await asking is None:
            await self.gate.settle(asked.tenant, 0, 0, nusd, tokens)

    def _surely(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Work that goes on to its end, whoever stops waiting for it."""
        task = asyncio.ensure_future(work)
        # The loop alone would not keep it.
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task

    def refused(self, reason: str, tenant: str | None) -> None:
        if self.observer is not None:
            self.observer.refused(reason, tenant)

    async def _close(self, asked: Asked, tokens: int, nusd: int, leaves: "_Leaves") -> None:
        row = asked.row = await leaves.taken(asked.row)
        price = asked.price = self.price(row)
        used = sum(w["prompt_tokens"] + w["completion_tokens"] for w in row["_work"] or ())
        if self.gate is not None:
            await self.gate.settle(asked.tenant, used, price.cost_nusd, nusd, tokens)
        if self.observer is not None:
            now = time.monotonic()
            first = None if asked.first is None else asked.first - asked.began
            seen = Seen(
                asked.request_id, asked.tenant, asked.endpoint, asked.stream,
                {**row, "_work": price.work}, price, first, now - asked.began, not leaves.ended,
            )  # fmt: skip
            self.observer.finished(seen, asked.traceparent)

    def _worst(self, row: Row) -> tuple[int, int]:
        """Tokens and nano-dollars that a request cannot exceed, whichever tiers work on it."""
        request, most = Request.from_json(row["_request"]), self._policies.most_tokens
        defaults = self._policies.dialect.defaults
        names = [request.tier] if request.tier else list(self._tiers)
        rates = [self._policies.prices.tiers[name] for name in names]
        tokens = sum(worst_tokens(request, defaults, most))
        return tokens, sum(worst_nusd(request, defaults, rate, most) for rate in rates)

    async def _answered(self, asked: Asked, flight: Flight) -> Row:
        row = asked.row
        if self._cache is not None:
            row = await self._cache.recall(row)
        if row["status"] is None:
            request = Request.from_json(row["_request"])
            (place,) = self._policies.router.places([Candidate(request, row["_values"])])
            flight.progress = row = {**row, **place}
        while row["status"] is None:
            row = await self._worked_on(asked, row, flight)
        if self._cache is not None and is_admissible(row) and not self._is_cut_here(row):
            self._cache.remember(row)
            self._cache.keep(row)
        flight.progress = row
        return row

    async def _worked_on(self, asked: Asked, row: Row, flight: Flight) -> Row:
        """The row after one tier's turn and what its referee makes of it."""
        tier = row["tier"]
        referee = self._policies.referees[tier]
        request = self._bounded(Request.from_json(row["_asked"] or row["_request"]))
        heard = flight.say if asked.stream and referee.may_stream(row) else None
        told = await self._turn(tier, request, heard, flight)
        # What was paid is paid, also by who has hung up.
        flight.progress = row = {**row, **told, "_work": [*(row["_work"] or ()), *told["_work"]]}
        if flight.given_up:
            raise asyncio.CancelledError
        return referee.ruling(row) or row

    async def _turn(self, tier: str, request: Request, say: Say | None, flight: Flight) -> Row:
        if self._at[tier] >= self._room[tier]:
            raise Overloaded
        self._at[tier] += 1
        said: list[bool] = []
        calls, name = self._tiers[tier], uuid.uuid4().hex

        async def stop() -> None:
            if not await calls.give_up(name):
                flight.cancel()

        flight.stop = lambda: self._surely(stop())

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

    def _is_cut_here(self, row: Row) -> bool:
        """Whether it ends where the endpoint's own limit is, which its key does not tell."""
        request = Request.from_json(row["_request"])
        return row["finish_reason"] == CUT_SHORT and self._bounded(request) is not request

    def _bounded(self, request: Request) -> Request:
        """Nobody gets more than the endpoint gives to who asks for no limit."""
        fields = {**self._policies.dialect.defaults, **request.sampling}
        if fields.get("max_tokens") is not None or "encoding_format" in fields:
            return request
        return replace(
            request, sampling={**request.sampling, "max_tokens": self._policies.most_tokens}
        )


@dataclass(frozen=True)
class _Leaves:
    """Somebody who leaves a flight, if there was one, at its end or before."""

    flight: Flight | None = None
    ended: bool = False

    async def taken(self, own: Row) -> Row:
        """Their row with what they have to pay; who leaves others behind pays nothing."""
        if self.flight is None:
            return own
        if not self.ended:
            if self.flight.waiters:
                return own
            await self.flight.over()
        return _taken(own, self.flight.progress, self.flight.pays())


def _taken(own: Row, led: Row, pays: bool) -> Row:
    """A waiter's row when it leaves: one pays for the work, to the others it is a duplicate."""
    if pays:
        return {**led, "row_id": own["row_id"]}
    mine = {name: own[name] for name in ("row_id", "url", "_values")}
    source = "duplicate" if led["status"] == "ok" else None
    return {**led, **mine, "source": source, "attempts": 0, "_work": None}
