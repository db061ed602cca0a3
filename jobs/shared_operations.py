"""What all ingress replicas of an endpoint share: limits, metrics and the batches' runner."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from actors.online_metrics import Gauges, OnlineMetrics
from actors.online_request import Reservation, Unreachable
from actors.spending import Spending
from actors.tenancy import Tenants
from actors.tenant_limits import TenantGate
from jobs.batch_runner import BatchRunner
from pipelines.config import RunConfig
from pipelines.config_file import load_config
from pipelines.errors import UsageProblem
from pipelines.operations import Operations
from pipelines.refusal import Refusal
from pipelines.served import Refused, Served
from pipelines.storage import Directory


class SharedCalls(Protocol):
    """A `SharedOperations`, wherever it is."""

    async def admit(self, tenant: str | None, most: Reservation) -> Refusal | None: ...

    async def settle(
        self, tenant: str | None, most: Reservation, tokens: int, cost_nusd: int
    ) -> None: ...

    async def observe(
        self, process: str, events: Sequence[Served | Refused], gauges: Gauges
    ) -> None: ...

    async def render(self) -> bytes: ...

    async def totals(self, tenant: str | None) -> dict[str, Any]: ...


class SharedOperations:
    """One for an endpoint, in a process that all replicas can call.

    `data_dir` is a folder of the machine that this runs on, or of all machines: the batches' jobs
    read it wherever they run.
    """

    def __init__(self, config: RunConfig, operations: Operations) -> None:
        """Raises: UsageProblem naming the key."""
        self.metrics = OnlineMetrics()
        self.gate: TenantGate | None = None
        folder = Path(operations.data_dir).expanduser().absolute()
        if operations.tenants is not None:
            spending = Spending(folder / "spending.sqlite")
            self.gate = TenantGate(Tenants(operations.tenants).limits, spending)
        batches = config
        if operations.batch_config is not None:
            batches = load_config(operations.batch_config)
        data = Directory(str(folder), config.storage)
        self._runner = BatchRunner(data, batches, self.gate, operations.batch_jobs)
        self._thread: threading.Thread | None = None

    def run_batches(self, ray_address: str | None = None) -> None:
        """Take up batches from now on, in a thread.

        Args:
            ray_address: the cluster that their jobs join; without one each starts its own.
        """
        if ray_address is not None:
            os.environ["RAY_ADDRESS"] = ray_address
        self._thread = threading.Thread(target=self._runner.run_until_stopped, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the batches' jobs; the batches stay open for the next."""
        self._runner.stop()
        if self._thread is not None:
            self._thread.join()

    async def admit(self, tenant: str | None, most: Reservation) -> Refusal | None:
        return await self.gate.admit(tenant, most) if self.gate else None

    async def settle(
        self, tenant: str | None, most: Reservation, tokens: int, cost_nusd: int
    ) -> None:
        if self.gate is not None:
            await self.gate.settle(tenant, most, tokens, cost_nusd)

    async def observe(
        self, process: str, events: Sequence[Served | Refused], gauges: Gauges
    ) -> None:
        await self.metrics.observe(process, events, gauges)

    async def render(self) -> bytes:
        return await self.metrics.render()

    async def totals(self, tenant: str | None) -> dict[str, Any]:
        return await self.metrics.totals(tenant)


class RemoteOperations:
    """A `SharedOperations` in an actor or a deployment, as a replica sees it."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def admit(self, tenant: str | None, most: Reservation) -> Refusal | None:
        from ray.exceptions import RayActorError

        try:
            refusal: Refusal | None = await self._handle.admit.remote(tenant, most)
        except RayActorError as error:
            raise Unreachable from error
        return refusal

    async def settle(
        self, tenant: str | None, most: Reservation, tokens: int, cost_nusd: int
    ) -> None:
        await self._handle.settle.remote(tenant, most, tokens, cost_nusd)

    async def observe(
        self, process: str, events: Sequence[Served | Refused], gauges: Gauges
    ) -> None:
        await self._handle.observe.remote(process, events, gauges)

    async def render(self) -> bytes:
        text: bytes = await self._handle.render.remote()
        return text

    async def totals(self, tenant: str | None) -> dict[str, Any]:
        totals: dict[str, Any] = await self._handle.totals.remote(tenant)
        return totals


def check_operations(operations: Operations) -> None:
    """Raises: UsageProblem for what would keep an endpoint from starting, naming the key."""
    if operations.tenants is not None:
        try:
            Tenants(operations.tenants)
        except UsageProblem as problem:
            raise UsageProblem(f"serve.tenants: {problem}") from problem
    if "://" in operations.data_dir:
        raise UsageProblem(
            f"serve.data_dir: {operations.data_dir}: must be a folder; spending and the log of "
            "requests are written line by line"
        )
    _check_writable(Path(operations.data_dir).expanduser().absolute())
    if operations.batch_config is not None:
        try:
            load_config(operations.batch_config)
        except UsageProblem as problem:
            raise UsageProblem(f"serve.batch_config: {problem}") from problem


def _check_writable(folder: Path) -> None:
    """Looks only: an endpoint that turns to another folder must not find out by ending there."""
    found = next(path for path in (folder, *folder.parents) if path.exists())
    if not found.is_dir():
        raise UsageProblem(f"serve.data_dir: {found} is a file; name a folder")
    if not os.access(found, os.W_OK | os.X_OK):
        raise UsageProblem(f"serve.data_dir: {found} cannot be written; give this user the right")
