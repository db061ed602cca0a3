"""The whole app of an endpoint with tenants, over real HTTP in this process: all but Ray Serve."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import openai
import pyarrow as pa
from conftest import tier
from fastapi import FastAPI
from test_operations import served

from actors.cache_writer import CacheWriter
from actors.engine import ScriptedEngine
from actors.online_service import Service
from actors.online_tier import OnlineTier
from actors.tenancy import change_tenants
from jobs.online_app import build_app
from jobs.online_ingress import online_cache, slots
from jobs.online_operations import ReplicaOperations
from jobs.online_plan import OnlinePlan, plan_endpoint, policies
from jobs.shared_operations import SharedOperations
from pipelines.config import RunConfig
from pipelines.tenants import Tenant, TenantFile, new_key


@dataclass(frozen=True)
class Whole:
    """An endpoint that runs, and the keys of its tenants by name."""

    app: FastAPI
    address: str
    keys: dict[str, str]
    config: RunConfig

    def headers(self, tenant: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[tenant]}"}

    def client(self, tenant: str) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.address}/v1", api_key=self.keys[tenant], max_retries=0
        )


class _Writer:
    """The cache's one writer, where everything is one process."""

    def __init__(self, plan: OnlinePlan) -> None:
        assert plan.config.response_cache is not None
        self._writer = CacheWriter(plan.config.response_cache, plan.config.storage, print, "")

    async def append(self, entries: pa.Table, questions: pa.Table | None) -> None:
        await asyncio.to_thread(self._writer.append, entries, questions)
        await asyncio.to_thread(self._writer.flush)


@contextmanager
def whole_app(folder: Path, tenants: dict[str, Tenant], **engine: Any) -> Iterator[Whole]:
    """One scripted tier, a response cache, files and batches, all in `folder`."""
    keys = {}
    for name, tenant in tenants.items():
        keys[name], entry = new_key(datetime.now(UTC))
        tenants[name] = tenant.model_copy(update={"keys": (entry,)})
    file = folder / "tenants.yaml"
    change_tenants(file, lambda _: TenantFile(tenants=tenants))
    raw = {
        "input": {"path": "-"},
        "output": {"path": str(folder / "out")},
        "tiers": [tier("only", **engine)],
        "route": {"policy": "fixed", "tier": "only"},
        "response_cache": {"path": str(folder / "cache")},
        "sampling": {"temperature": 0.0},
        "serve": {"tenants": str(file), "data_dir": str(folder / "data")},
    }
    plan = plan_endpoint(RunConfig.model_validate(raw), date(2026, 11, 26))
    app = _app(plan)
    with served(app) as address:
        yield Whole(app, address, keys, plan.config)


def _app(plan: OnlinePlan) -> FastAPI:
    config = plan.config
    (only,) = config.tiers
    engine = ScriptedEngine(only.engine)  # type: ignore[arg-type]
    own = OnlineTier("only", only, engine, plan.prices.tiers["only"], {})
    shared = SharedOperations(config, config.serve)
    cache = online_cache(plan, _Writer(plan))
    assert cache is not None
    service = Service(
        policies(plan), {"only": own}, slots(plan), config.serve.max_queued, cache, shared
    )

    async def health() -> dict[str, Any]:
        return {**service.status(), "ready": True}

    operations = ReplicaOperations(config.serve, shared, health, service.gauges)
    service.books.observer = operations.observer

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        await own.start()
        writing = asyncio.create_task(cache.write_regularly())
        yield
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)

    return build_app(
        service,
        config.serve,
        health,
        operations.authenticate,
        operations.routers,
        operations.open_routers,
        [operations.running, running],
    )
