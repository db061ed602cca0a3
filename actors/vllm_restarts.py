"""Starting a vLLM engine again after a death, and when not to any more."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from actors.vllm_core import last_words
from pipelines.errors import RunFailure

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)

_MAX_RESTARTS = 5
_RESTART_WAIT_S = 2.0
_FIRST_ROWS = 3


class Restarts:
    """Which deaths are a row's own, which the engine's.

    Args:
        start: starts the engine.
        ask: gives it a harmless request; raises `EngineDeadError` if it dies of that too.

    Attributes:
        last_words: what the dead engine had written.
    """

    def __init__(
        self, model: str, start: Callable[[], Awaitable[None]], ask: Callable[[], Awaitable[None]]
    ) -> None:
        self.last_words = ""
        self._model = model
        self._start, self._ask = start, ask
        self._count = 0
        self._lost_rows = 0
        self._has_answered = False

    def answered(self) -> None:
        self._has_answered = True
        self._count = 0

    async def after_death(self, dead: "AsyncLLM", alone: bool) -> None:
        """Start again, until it works: what the dead one held of the device may come free late.

        Args:
            alone: one row was there. It was that row, and neither how many ran nor the engine: a
                death that costs a row counts for no other limit. But an engine that dies of
                everything is not to use up all rows: one that has never answered is asked
                something harmless.

        Raises:
            RunFailure: the engine cannot be had, or has not worked from the beginning.
        """
        # Before it is shut down, which has words of its own.
        self.last_words = last_words()
        await asyncio.to_thread(dead.shutdown)
        await self._start_again()
        if not alone:
            return
        self._count = 0
        self._lost_rows += 1
        if self._lost_rows >= _FIRST_ROWS and not self._has_answered:
            await self._prove()

    async def _start_again(self) -> None:
        while self._count < _MAX_RESTARTS:
            self._count += 1
            try:
                await self._start()
                return
            # vLLM says no more than that its core did not come up.
            except Exception as error:
                self.last_words = last_words()
                logger.warning("%s did not start again: %s", self._model, error)
                await asyncio.sleep(_RESTART_WAIT_S * self._count)
        raise RunFailure(
            f"the engine of {self._model} died or did not start {self._count} times without an "
            f"answer between; its last words: {self.last_words}"
        )

    async def _prove(self) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self._ask()
        except EngineDeadError as error:
            raise RunFailure(
                f"the engine of {self._model} has answered nothing yet, died under each of "
                f"{self._lost_rows} rows that it had to itself, and then of a plain question; its "
                f"last words: {self.last_words}"
            ) from error
        self.answered()
