"""What an ingress replica has of operations: who asks, what is told, routes beside the API."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import APIRouter

from actors.observer import Observer
from actors.online_metrics import Gauges
from actors.request_log import RequestLog
from actors.tenancy import Tenants
from actors.tracing import Tracing
from jobs.batches_api import batches_router
from jobs.files_api import files_router
from jobs.online_auth import Authenticate, authenticate_with
from jobs.online_watching import Health, page_router, watching_router
from jobs.shared_operations import SharedCalls
from pipelines.config import Storage
from pipelines.operations import Operations
from pipelines.storage import Directory


class ReplicaOperations:
    """One replica's part, to be handed to the app's factory.

    Attributes:
        authenticate: the dependency of every route but the open ones.
        gate: a tenant's limits, shared by all replicas.
        observer: is told of every request that ended or was refused.
        routers: need a key.
        open_routers: need none.
    """

    def __init__(
        self,
        operations: Operations,
        shared: SharedCalls,
        health: Health,
        gauges: Callable[[], Gauges] = dict,
    ) -> None:
        """Raises: UsageProblem naming the key."""
        folder = Path(operations.data_dir).expanduser().absolute()
        tenants = Tenants(operations.tenants) if operations.tenants is not None else None
        log = RequestLog(folder / "requests", operations.log_text)
        endpoint = operations.otlp_endpoint
        self._tracing = Tracing(endpoint) if endpoint is not None else None
        self.gate = shared
        self.observer = Observer(shared, gauges, log, self._tracing)
        self.authenticate: Authenticate = authenticate_with(tenants)
        data = Directory(str(folder), Storage())
        self.routers: list[APIRouter] = [
            watching_router(self.observer, health),
            files_router(data, operations.max_file_bytes),
            batches_router(data),
        ]
        self.open_routers: list[APIRouter] = [page_router()]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While the replica serves: what it saw is reported, and at the end the rest of it."""
        reporting = asyncio.create_task(self.observer.report_regularly())
        try:
            yield
        finally:
            reporting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reporting
            if self._tracing is not None:
                await asyncio.to_thread(self._tracing.close)
