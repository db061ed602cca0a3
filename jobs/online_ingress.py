"""The endpoint as Serve applications: door, ingress, tiers, and what all replicas share."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pyarrow as pa
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from actors.cache_writer import CacheWriter
from actors.online_cache import OnlineCache
from actors.online_service import Service
from actors.response_cache import ResponseCache
from jobs.online_app import build_app
from jobs.online_door import Door, Front
from jobs.online_operations import ReplicaOperations
from jobs.online_plan import OnlinePlan, policies
from jobs.online_tiers import RemoteTier, TierReplica
from jobs.shared_operations import RemoteOperations, SharedOperations
from pipelines.config_file import dump_config
from pipelines.keys import digest, model_revision
from pipelines.replicas import actor_options, cpu_engines, seqs
from pipelines.tier import Replicas, Tier

DOOR, INGRESS, SHARED, TIER = (
    "nightmill-door", "nightmill", "nightmill-shared", "nightmill-tier-",
)  # fmt: skip
"""Names of applications; a tier's begins so."""
_AT_ONCE = 10_000
_LAST_WORDS_S = 10.0
_LOOK_EVERY_S = 1.0
_ON_THE_HEAD = {"node:__internal_head__": 0.001}
_STRAIGHT = {
    "runtime_env": {
        "env_vars": {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}
    }
}
"""Serve's own threads would take every call twice from one event loop to another."""


class Shared(SharedOperations):
    """Operations and the cache's one writer, in a deployment of one replica."""

    def __init__(self, plan: OnlinePlan) -> None:
        super().__init__(plan.config, plan.config.serve)
        cache = plan.config.cache_in_use
        self._writer: CacheWriter | None = None
        self._writing = asyncio.Lock()
        if cache is not None:
            self._writer = CacheWriter(cache, plan.config.storage, _warn, "")
        self.run_batches("auto")

    async def append(self, entries: pa.Table, questions: pa.Table | None) -> None:
        if self._writer is not None:
            async with self._writing:
                await asyncio.to_thread(self._writer.append, entries, questions)
                await asyncio.to_thread(self._writer.flush)

    def __del__(self) -> None:
        self.stop()


class RemoteWriter:
    """The cache's writer in the shared deployment."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def append(self, entries: pa.Table, questions: pa.Table | None) -> None:
        await self._handle.append.remote(entries, questions)


class Ingress:
    """One process that takes requests, on the door's socket."""

    async def __init__(self, plan: OnlinePlan, places: dict[str, str]) -> None:  # type: ignore[misc]
        """Args:
        places: the application of each tier.
        """
        self._plan, self._shared = plan, serve.get_deployment_handle("shared", SHARED)
        self._places, self._looked, self._ready = places, -math.inf, False
        self._looking = asyncio.Lock()
        self._tiers = {
            name: serve.get_deployment_handle("tier", place) for name, place in places.items()
        }
        door = await serve.get_deployment_handle("door", DOOR).path.remote()
        self._front = Front(self._app(), door, plan.config.serve.drain_s)
        await self._front.start()

    def check_health(self) -> None:
        self._front.check()

    async def __del__(self) -> None:
        await self._front.stop()

    def _app(self) -> FastAPI:
        plan, calls = self._plan, RemoteOperations(self._shared)
        cache = online_cache(plan, RemoteWriter(self._shared))
        tiers = {name: RemoteTier(handle) for name, handle in self._tiers.items()}
        # Without tenants there are no limits, and no need to ask for them twice a request.
        gate = calls if plan.config.serve.tenants is not None else None
        service = Service(
            policies(plan), tiers, slots(plan), plan.config.serve.max_queued, cache, gate
        )

        async def status() -> dict[str, Any]:
            return {**service.status(), "ready": await self._is_ready()}

        operations = ReplicaOperations(plan.config.serve, calls, status, service.gauges)
        service.books.observer = operations.observer
        running: list[Callable[[], Any]] = [operations.running]
        if cache is not None:
            running.append(_writing(cache))
        return build_app(
            service,
            plan.config.serve,
            status,
            operations.authenticate,
            operations.routers,
            operations.open_routers,
            running,
        )

    async def _is_ready(self) -> bool:
        """Whether all tiers answer. Anybody may ask, so it is looked up once a second at most."""
        async with self._looking:
            if time.monotonic() - self._looked >= _LOOK_EVERY_S:
                self._ready = await asyncio.to_thread(self._answers)
                self._looked = time.monotonic()
        return self._ready

    def _answers(self) -> bool:
        try:
            found = serve.status().applications
        except RayError:
            return False
        for tier in self._plan.config.tiers:
            place = found.get(self._places[tier.name])
            deployment = place.deployments.get("tier") if place else None
            states = deployment.replica_states if deployment else {}
            # One that has scaled to nothing starts when it is asked.
            if tier.replica_range.min and not states.get("RUNNING"):
                return False
        return True


def slots(plan: OnlinePlan) -> dict[str, int]:
    """Requests that a tier's replicas can run.

    Serve's own bound would also count those that are just being handed over.
    """
    return {t.name: t.replica_range.max * seqs(t) for t in plan.config.tiers}


def online_cache(plan: OnlinePlan, writer: Any) -> OnlineCache | None:
    config = plan.config.cache_in_use
    if config is None:
        return None
    cache = ResponseCache(config, plan.config.storage, _warn)
    return OnlineCache(cache, writer, plan.tenant, lambda _: None)


def applications(plan: OnlinePlan) -> dict[str, serve.Application]:
    """All applications of an endpoint by name, in the order in which they must start.

    Each tier is one of its own, named after all that can change its answers: while a new
    configuration takes over, requests that the old one let in still find the tiers that they were
    keyed for, and a tier that stays as it was loads no model again.
    """
    config = plan.config
    whole = digest(dump_config(config).encode()).hex()
    one, on_head = Replicas(min=1, max=1), {"resources": _ON_THE_HEAD}
    address = f"{config.serve.host}:{config.serve.port}"
    door = _deployment(Door, "door", address, one, config.serve, _AT_ONCE, on_head)
    shared = _deployment(Shared, "shared", whole, one, config.serve, _AT_ONCE)
    places = {tier.name: _place(plan, tier) for tier in config.tiers}
    fronts = Replicas(min=config.serve.replicas, max=config.serve.replicas)
    ingress = _deployment(
        Ingress, "ingress", whole, fronts, config.serve, _AT_ONCE, {**on_head, **_STRAIGHT}
    )
    return {
        DOOR: door.bind(config.serve.host, config.serve.port),
        **{places[tier.name]: _tier(plan, tier, places[tier.name]) for tier in config.tiers},
        SHARED: shared.bind(plan),
        INGRESS: ingress.bind(plan, places),
    }


def _place(plan: OnlinePlan, tier: Tier) -> str:
    """The name of the application of a tier."""
    config = plan.config
    told = (
        tier, config.sampling.given(), plan.prices.tiers[tier.name], model_revision(tier),
        cpu_engines(config.tiers), config.serve.drain_s, config.serve.idle_s,
    )  # fmt: skip
    return f"{TIER}{tier.name}-{digest(repr(told).encode()).hex()[:12]}"


def _tier(plan: OnlinePlan, tier: Tier, place: str) -> serve.Application:
    config = plan.config
    options = {k: v for k, v in actor_options(tier).items() if v is not None}
    deployment = _deployment(
        TierReplica,
        "tier",
        place,
        tier.replica_range,
        config.serve,
        # What waits for an engine waits inside of it, which takes the next one the moment that it
        # can; Serve would offer it again and again, at intervals that grow to a second. A half more
        # for those who have paid for another tier's answer already.
        seqs(tier) + config.serve.max_queued * 3 // 2,
        {**options, **_STRAIGHT},
        busy=seqs(tier) / 2,
    )
    return deployment.bind(
        place,
        tier,
        plan.prices.tiers[tier.name],
        config.sampling.given(),
        cpu_engines(config.tiers),
    )


def _deployment(
    host: type,
    name: str,
    version: str,
    replicas: Replicas,
    config: Any,
    at_once: int,
    options: Mapping[str, Any] | None = None,
    busy: float = 1.0,
) -> Any:
    """Args:
    busy: requests on their way in a replica, on average, from which on there should be more.
    """
    scale: Mapping[str, Any] = {"num_replicas": replicas.max}
    if replicas.min < replicas.max:
        scale = {
            "autoscaling_config": {
                "min_replicas": replicas.min,
                "max_replicas": replicas.max,
                "target_ongoing_requests": max(busy, 1),
                "upscale_delay_s": 1.0,
                "downscale_delay_s": config.idle_s,
                "metrics_interval_s": 1.0,
                "look_back_period_s": 5.0,
            }
        }
    deployment = serve.deployment(
        host,
        name=name,
        max_ongoing_requests=at_once,
        # The ingress drains for as long itself, and then still says its last words.
        graceful_shutdown_timeout_s=config.drain_s + _LAST_WORDS_S,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=2.0,
        ray_actor_options={"num_cpus": 0, **(options or {})},
        **scale,
    )
    # Only so does Serve see that nothing of a deployment has changed.
    return deployment.options(version=version, _internal=True)


def _writing(cache: OnlineCache) -> Callable[[], Any]:
    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        task = asyncio.create_task(cache.write_regularly())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    return running


def _warn(message: str) -> None:
    import logging

    logging.getLogger("nightmill").warning(message)
