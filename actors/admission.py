"""The door of an engine: rows wait here, and go in one by one as the engine can hold them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING

from pipelines.admission import (
    AdmissionLimit,
    LengthEstimates,
    Ticket,
    WaitingRooms,
    prefix_of,
)
from pipelines.requests import Request

if TYPE_CHECKING:
    from actors.engine import Answer

_WINDOW = 4
"""Waiting requests that are compared with each other, per request that the engine runs."""


class Admission:
    """Lets requests into an engine in the order of `WaitingRooms`.

    Lives on one event loop, where nothing happens between two awaits.

    Args:
        default_max_tokens: the limit of a request that states none.

    Attributes:
        in_order: of one priority, who came first goes first. Where requests never end to come, the
            order of a run would let a short one wait for all long ones that come after it.
    """

    def __init__(self, default_max_tokens: int | None) -> None:
        # Nobody goes in before the engine has told how many it holds.
        self.limit = AdmissionLimit(0)
        self.in_order = False
        self._rooms = WaitingRooms()
        self._lengths = LengthEstimates()
        self._default_max_tokens = default_max_tokens
        self._numbers = count()
        self._inside = 0
        self._again = 0
        self._changed = asyncio.Event()
        self._called = False

    def open(self, max_num_seqs: int) -> None:
        self.limit = AdmissionLimit(max_num_seqs)
        self._rooms.window = 1 if self.in_order else _WINDOW * max_num_seqs
        self._let_in_soon()

    @property
    def waiting(self) -> int:
        return len(self._rooms)

    @property
    def free(self) -> int:
        """Requests that could go in at once."""
        return max(min(self.limit.num_seqs, self.limit.handed) - self._inside - self.waiting, 0)

    async def enter(self, request: Request) -> "Admitted | Answer":
        """Wait for the request's turn; or for its answer, if the ticket went elsewhere."""
        prefix, limit = prefix_of(request), self._max_tokens(request)
        least = request.sampling.get("min_tokens", 0)
        expected = self._lengths.expected(prefix, limit, least)
        admitted: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        ticket = Ticket(expected, next(self._numbers), prefix, request, admitted)
        self._rooms.add(ticket)
        self._let_in_soon()
        try:
            answer = await admitted
        except asyncio.CancelledError:
            # Not when its turn comes, which a later priority may wait for as long as it likes.
            self._rooms.discard(ticket)
            # It may have been let in while the news that nobody waits was on its way.
            if admitted.done() and not admitted.cancelled() and admitted.result() is None:
                self.leave()
            raise
        return Admitted(self, prefix, limit) if answer is None else answer

    def leave(self) -> None:
        self._inside -= 1
        self._let_in()

    @asynccontextmanager
    async def again(self) -> AsyncIterator[None]:
        """To be held by who is inside and runs once more after a death: so many at once as the
        limit now says, because it may have been their number that the engine died of."""
        while self._again >= self.limit.num_seqs:
            self._changed.clear()
            await self._changed.wait()
        self._again += 1
        try:
            yield
        finally:
            self._again -= 1
            self._changed.set()

    def answered(self, prefix: bytes, max_tokens: int | None, completion_tokens: int) -> None:
        self._lengths.seen(prefix, max_tokens, completion_tokens)
        self.limit.answered()

    def lend_half(self) -> list[Ticket]:
        """Half of those that wait, to be answered elsewhere; `bring_back` those that are not."""
        return self._rooms.pop_half()

    def bring_back(self, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            # Who gave up meanwhile does not wait any more.
            if not ticket.admitted.done():
                self._rooms.add(ticket)
        self._let_in_soon()

    def _max_tokens(self, request: Request) -> int | None:
        limit: int | None = request.sampling.get("max_tokens", self._default_max_tokens)
        return limit

    def _let_in_soon(self) -> None:
        """Once all rows of the block that is coming in stand in the room to be compared."""
        if not self._called:
            self._called = True
            asyncio.get_running_loop().call_soon(self._let_in)

    def _let_in(self) -> None:
        self._called = False
        while len(self._rooms) and self._inside < self.limit.places(self._rooms.priority):
            ticket = self._rooms.pop()
            if not ticket.admitted.done():
                self._inside += 1
                ticket.admitted.set_result(None)


class Admitted:
    """A request's stay in the engine."""

    def __init__(self, admission: Admission, prefix: bytes, max_tokens: int | None) -> None:
        self._admission, self._prefix, self._max_tokens = admission, prefix, max_tokens

    def answered(self, completion_tokens: int) -> None:
        self._admission.answered(self._prefix, self._max_tokens, completion_tokens)

    def __enter__(self) -> "Admitted":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._admission.leave()
