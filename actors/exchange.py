"""How replicas of a tier even out their work: who has room answers rows that wait elsewhere.

Ray Data gives whole blocks to replicas and cannot know how long they will take. Without this a
run would end with one replica working off its queue while the others, still paid for, wait.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from actors.engine import Answer, Engine
from pipelines.requests import Request

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.1
_PATIENCE_S = 1.0
_SILENT_S = 30.0
"""A borrower that was not heard of for so long is dead; the lender answers the rows itself."""
_ROOM_WORTH_FILLING = 1 / 8


@dataclass(frozen=True)
class Loan:
    """Rows of one replica that another answers; `requests` are JSON."""

    number: int
    requests: list[str]


class Market(Protocol):
    """What a trader sees of an `Exchange`, wherever that lives."""

    async def borrow(self, name: str) -> Loan | None: ...

    async def is_wanted(self, name: str, waiting: int) -> bool: ...

    async def others_wait(self, name: str) -> bool: ...

    async def lend(self, name: str, requests: list[str]) -> list[Answer] | None: ...

    async def repay(self, name: str, loan: int, answers: list[Answer] | None) -> None: ...

    async def give_back(self, loan: int) -> None: ...


class Exchange:
    """Brings replicas with room together with those that hold a queue. Lives on one loop."""

    def __init__(self) -> None:
        self._hungry: dict[str, asyncio.Future[Loan]] = {}
        self._queues: dict[str, tuple[int, float]] = {}
        self._repaid: dict[int, asyncio.Future[list[Answer] | None]] = {}
        self._heard: dict[str, float] = {}
        self._numbers = count()

    async def borrow(self, name: str) -> Loan | None:
        """Wait a moment for rows from another replica."""
        loan: asyncio.Future[Loan] = asyncio.get_running_loop().create_future()
        self._hungry[name] = loan
        try:
            return await asyncio.wait_for(loan, _PATIENCE_S)
        except TimeoutError:
            return None
        finally:
            self._hungry.pop(name, None)

    async def is_wanted(self, name: str, waiting: int) -> bool:
        """Whether any replica but this one, where so many rows wait, has room."""
        self._queues[name] = waiting, time.monotonic()
        return any(other != name for other in self._hungry)

    async def others_wait(self, name: str) -> bool:
        """Whether any replica but this one was just now heard to have rows to lend."""
        now = time.monotonic()
        return any(
            waiting > 1 and now - heard < 5 * _PATIENCE_S
            for other, (waiting, heard) in self._queues.items()
            if other != name
        )

    async def lend(self, name: str, requests: list[str]) -> list[Answer] | None:
        """The rows' answers, in order; None if nobody wants them or the borrower died."""
        borrower = next((other for other in self._hungry if other != name), None)
        if borrower is None:
            return None
        loan = Loan(next(self._numbers), requests)
        repaid = self._repaid[loan.number] = asyncio.get_running_loop().create_future()
        self._heard[borrower] = time.monotonic()
        self._hungry.pop(borrower).set_result(loan)
        try:
            while time.monotonic() - self._heard[borrower] < _SILENT_S:
                done, _ = await asyncio.wait([repaid], timeout=_PATIENCE_S)
                if done:
                    return repaid.result()
            return None
        finally:
            del self._repaid[loan.number]

    async def repay(self, name: str, loan: int, answers: list[Answer] | None) -> None:
        """The answers of a loan, or that its borrower lives and works on them."""
        self._heard[name] = time.monotonic()
        if answers is not None:
            self._settle(loan, answers)

    async def give_back(self, loan: int) -> None:
        """The borrower cannot answer these rows."""
        self._settle(loan, None)

    def _settle(self, loan: int, answers: list[Answer] | None) -> None:
        if loan in self._repaid and not self._repaid[loan].done():
            self._repaid[loan].set_result(answers)


class Trader:
    """One replica's side: borrows when it has room, lends when others have.

    Args:
        name: tells this replica from all others of the run.
        report: called when a loan is worked off, before it is repaid.
    """

    def __init__(
        self, name: str, engine: Engine, market: Market, report: Callable[[], None]
    ) -> None:
        self._name, self._engine, self._market, self._report = name, engine, market, report
        self._tasks: set[asyncio.Task[None]] = set()
        self._blocks = self._borrowed = 0
        self._broken = False

    async def trade(self) -> None:
        """Trade until cancelled. Without its exchange a replica works for itself."""
        await asyncio.gather(self._repeat(self._borrow), self._repeat(self._lend))

    async def _repeat(self, turn: Callable[[], Awaitable[None]]) -> None:
        while True:
            pause = _LOOK_EVERY_S
            try:
                await turn()
            # The market may be an actor on a machine that is gone.
            except Exception as error:
                logger.warning("no exchange with other replicas: %s", error)
                pause = _SILENT_S
            await asyncio.sleep(pause)

    async def _borrow(self) -> None:
        admission = self._engine.admission
        if self._broken or admission.free <= _ROOM_WORTH_FILLING * admission.limit.num_seqs:
            return
        loan = await self._market.borrow(self._name)
        if loan is not None:
            self._borrowed += 1
            self._start(self._work_off(loan))

    async def _lend(self) -> None:
        waiting = self._engine.admission.waiting
        if await self._market.is_wanted(self._name, waiting) and waiting > 1:
            self._start(self._have_answered())

    @asynccontextmanager
    async def in_hand(self) -> AsyncIterator[None]:
        """To be held while the replica has a block, and until nobody needs its help.

        Ray Data ends a replica that has no block when there is no more to give, also one that
        works on rows of others: its last block keeps it.
        """
        self._blocks += 1
        try:
            yield
            while self._blocks == 1 and (self._borrowed or await self._others_wait()):
                await asyncio.sleep(_LOOK_EVERY_S)
        finally:
            self._blocks -= 1

    async def _others_wait(self) -> bool:
        if self._broken or not self._engine.admission.limit.handed:
            return False
        try:
            return await self._market.others_wait(self._name)
        except Exception as error:
            logger.warning("no exchange with other replicas: %s", error)
            return False

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work_off(self, loan: Loan) -> None:
        rows = [Request.from_json(text) for text in loan.requests]
        work = asyncio.gather(*(self._engine.answer(row) for row in rows))
        try:
            while not (await asyncio.wait([work], timeout=_PATIENCE_S))[0]:
                await self._market.repay(self._name, loan.number, None)
            answers = work.result()
            self._report()
            await self._market.repay(self._name, loan.number, answers)
        # An engine raises only when it cannot be used at all.
        except Exception as error:
            logger.warning("borrowed rows go back: %s", error)
            self._broken = True
            with suppress(Exception):
                await self._market.give_back(loan.number)
        finally:
            self._borrowed -= 1

    async def _have_answered(self) -> None:
        tickets = self._engine.admission.lend_half()
        answers = None
        try:
            answers = await self._market.lend(
                self._name, [ticket.request.to_json() for ticket in tickets]
            )
        # Whatever befell the exchange: rows that nobody answers are this replica's own.
        except Exception as error:
            logger.warning("rows could not be lent: %s", error)
        if answers is None:
            self._engine.admission.bring_back(tickets)
            return
        for ticket, answer in zip(tickets, answers, strict=True):
            if not ticket.admitted.done():
                ticket.admitted.set_result(answer)
