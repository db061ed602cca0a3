"""What one process saw of its requests, told to metrics, log and traces."""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from actors.online_metrics import Gauges
from actors.request_log import RequestLog
from actors.tracing import Tracing
from pipelines.served import Finished, Refused, Served, served

logger = logging.getLogger(__name__)

_REPORT_EVERY_S = 0.5
_KEPT = 100_000
"""Events that wait for metrics which cannot be reached; those above are lost to them."""


class MetricsCalls(Protocol):
    """An `OnlineMetrics`, wherever it is."""

    def observe(
        self, process: str, events: Sequence[Served | Refused], gauges: Gauges
    ) -> Awaitable[None]: ...

    def render(self) -> Awaitable[bytes]: ...

    def totals(self, tenant: str | None) -> Awaitable[dict[str, Any]]: ...


class Observer:
    """Takes what ended and what was refused; never keeps a request waiting, never fails one.

    Lives on one event loop, on which `report_regularly` runs.

    Args:
        gauges: what this process holds now.
    """

    def __init__(
        self,
        metrics: MetricsCalls,
        gauges: Callable[[], Gauges] = dict,
        log: RequestLog | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._metrics, self._gauges = metrics, gauges
        self._log, self._tracing = log, tracing
        self._process = uuid.uuid4().hex
        self._events: list[Served | Refused] = []

    def finished(self, seen: Finished, traceparent: str | None = None) -> None:
        told = served(seen)
        self._note(told)
        if self._log is not None:
            self._log.served(told, seen.row)
        if self._tracing is not None:
            self._tracing.served(told, traceparent)

    def refused(self, reason: str, tenant: str | None) -> None:
        told = Refused(reason, tenant)
        self._note(told)
        if self._log is not None:
            self._log.refused(told)

    async def report(self) -> None:
        """Hand over what was not yet; after a failure it is tried again with the next."""
        events, self._events = self._events, []
        try:
            await self._metrics.observe(self._process, events, self._gauges())
        # Whatever is wrong with the metrics is not wrong with requests.
        except Exception as error:
            self._events = [*events, *self._events][:_KEPT]
            logger.warning("metrics could not be reported: %s", error)

    async def report_regularly(self) -> None:
        """Until cancelled; then once more."""
        try:
            while True:
                await asyncio.sleep(_REPORT_EVERY_S)
                await self.report()
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await self.report()

    async def render(self) -> bytes:
        """All processes' metrics, with everything this one has seen."""
        await self.report()
        return await self._metrics.render()

    async def totals(self, tenant: str | None) -> dict[str, Any]:
        await self.report()
        return await self._metrics.totals(tenant)

    def _note(self, event: Served | Refused) -> None:
        if len(self._events) < _KEPT:
            self._events.append(event)
