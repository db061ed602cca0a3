"""Many together, or one alone: how suspects of an engine's death are kept from the innocent."""

import asyncio
from types import TracebackType


class Turns:
    """A lock that many may share, or one may have for itself.

    Who wants to be alone goes first: newcomers wait until it has been. Lives on one event loop,
    where nothing happens between two awaits; sharing, which every request does, therefore costs
    no lock and, unless somebody wants to be alone, no wait.
    """

    def __init__(self) -> None:
        self._inside = 0
        self._waiting_alone = 0
        self._alone = False
        self._changed = asyncio.Event()

    def together(self) -> "_Turn":
        return _Turn(self, alone=False)

    def alone(self) -> "_Turn":
        return _Turn(self, alone=True)

    async def enter(self, alone: bool) -> None:
        self._waiting_alone += alone
        try:
            while self._alone or (self._inside if alone else self._waiting_alone):
                self._changed.clear()
                await self._changed.wait()
        finally:
            self._waiting_alone -= alone
        self._inside += 1
        self._alone = alone

    def leave(self) -> None:
        self._inside -= 1
        self._alone = False
        self._changed.set()


class _Turn:
    def __init__(self, turns: Turns, alone: bool) -> None:
        self._turns, self._is_alone = turns, alone

    async def __aenter__(self) -> None:
        await self._turns.enter(self._is_alone)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._turns.leave()
