"""Requests on their way: who asks the same at the same time shares one of them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from actors.engine import Piece

Row = dict[str, Any]
Work = Callable[["Flight"], Awaitable[Row]]
_PATIENCE_S = 3600.0
"""For an answer that nobody waits for: a provider's is paid for when it comes."""


class TooLate(Exception):
    """The next piece did not come in time."""


class Flight:
    """One request's work, done for as long as anybody waits for it.

    Attributes:
        pieces: of the answer, as far as they were said.
        progress: the row as it stands.
        stop: ends early what is being paid for; None while nothing is.
        given_up: nobody waits any more; what is being paid for still tells what it has used.
    """

    def __init__(self, work: Work, progress: Row) -> None:
        self.progress = progress
        self.pieces: list[Piece] = []
        self.stop: Callable[[], object] | None = None
        self.given_up = False
        self.waiters = 0
        self._changed = asyncio.Event()
        self._paid = False
        self._task = asyncio.ensure_future(work(self))
        self._task.add_done_callback(self._ended)

    async def row(self) -> Row:
        """The row when it is done. Raises what its work raised."""
        return await asyncio.shield(self._task)

    async def said(self, until: float) -> AsyncIterator[Piece]:
        """The pieces from the first on, until there are no more.

        Args:
            until: by the loop's clock.

        Raises: TooLate when it is past that.
        """
        at = 0
        while True:
            while at < len(self.pieces):
                yield self.pieces[at]
                at += 1
            if self._task.done():
                return
            self._changed.clear()
            try:
                async with asyncio.timeout_at(until):
                    await self._changed.wait()
            except TimeoutError:
                raise TooLate from None

    def pays(self) -> bool:
        """Whether who asks is the one that pays for the work: the first to leave with it."""
        paid, self._paid = self._paid, True
        return not paid

    def give_up(self) -> None:
        self.given_up = True
        if self.stop is None:
            self._task.cancel()
        else:
            self.stop()
            patience = asyncio.get_running_loop().call_later(_PATIENCE_S, self._task.cancel)
            # It would keep what has ended in memory for as long.
            self._task.add_done_callback(lambda _: patience.cancel())

    def cancel(self) -> None:
        self._task.cancel()

    async def over(self) -> None:
        """Until its work has ended, however."""
        await asyncio.wait({self._task})

    @property
    def done(self) -> bool:
        return self._task.done()

    def say(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self._changed.set()

    def _ended(self, task: "asyncio.Future[Row]") -> None:
        self._changed.set()
        if self.given_up and not task.cancelled():
            # Nobody is there any more to hear what went wrong.
            task.exception()


class Flights:
    """The flights of one process. Lives on one event loop."""

    def __init__(self) -> None:
        self._by_key: dict[str, Flight] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    @asynccontextmanager
    async def aboard(self, key: str, work: Work, row: Row) -> AsyncIterator[Flight]:
        """The flight of a key; it is given up when its last waiter leaves."""
        flight = self._by_key.get(key)
        if flight is None or flight.done:
            flight = self._by_key[key] = Flight(work, row)
        flight.waiters += 1
        try:
            yield flight
        finally:
            flight.waiters -= 1
            if not flight.waiters:
                if not flight.done:
                    flight.give_up()
                if self._by_key.get(key) is flight:
                    del self._by_key[key]


@dataclass(frozen=True)
class Leaving:
    """Somebody who leaves a flight, at its end or before; if there was one."""

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
        led = self.flight.progress
        mine = {name: own[name] for name in ("row_id", "url", "_values")}
        if self.flight.pays():
            return {**led, **mine}
        source = "duplicate" if led["status"] == "ok" else None
        return {**led, **mine, "source": source, "attempts": 0, "_work": None}
