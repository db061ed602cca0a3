"""The endpoint as a Serve application: ingress, tiers, and what all replicas share."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pyarrow as pa
from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig
from ray.serve.handle import DeploymentHandle

from actors.cache_writer import CacheWriter
from actors.online_cache import OnlineCache
from actors.online_service import Service
from actors.response_cache import ResponseCache
from jobs.online_app import build_app
from jobs.online_operations import ReplicaOperations
from jobs.online_plan import OnlinePlan, policies
from jobs.online_tiers import RemoteTier, TierReplica
from jobs.shared_operations import RemoteOperations, SharedOperations
from pipelines.config_file import dump_config
from pipelines.keys import digest, model_revision
from pipelines.replicas import actor_options, cpu_engines, seqs
from pipelines.tier import Replicas, Tier, as_range

INGRESS, SHARED, TIER = "nightmill", "nightmill-shared", "nightmill-tier-"
"""Names of applications; a tier's begins so."""
_SHARED_AT_ONCE = 10_000
_INGRESS_AT_ONCE = 10_000
_INGRESS_QUEUE = 10_000


class Shared(SharedOperations):
    """Operations and the cache's one writer, in a deployment of one replica."""

    def __init__(self, plan: OnlinePlan) -> None:
        super().__init__(plan.config, plan.config.serve)
        cache = plan.config.response_cache
        self._writer: CacheWriter | None = None
        self._writing = asyncio.Lock()
        if cache is not None and cache.enabled:
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


@serve.ingress()
class Ingress:
    """One process that takes requests."""

    def __init__(self, plan: OnlinePlan, places: dict[str, str]) -> None:
        """Args:
        places: the application of each tier.
        """
        self._plan, self._shared = plan, serve.get_deployment_handle("shared", SHARED)
        self._tiers = {
            name: serve.get_deployment_handle("tier", place) for name, place in places.items()
        }

    def __serve_build_asgi_app__(self) -> FastAPI:
        plan, calls = self._plan, RemoteOperations(self._shared)
        cache = online_cache(plan, RemoteWriter(self._shared))
        tiers = {name: RemoteTier(handle) for name, handle in self._tiers.items()}
        # Without tenants there are no limits, and no need to ask for them twice a request.
        gate = calls if plan.config.serve.tenants is not None else None
        service = Service(policies(plan), tiers, room(plan), cache, gate)
        operations = ReplicaOperations(plan.config.serve, calls, service.status, service.gauges)
        service.observer = operations.observer
        running: list[Callable[[], Any]] = [operations.running]
        if cache is not None:
            running.append(_writing(cache))
        return build_app(
            service,
            plan.config.serve,
            operations.authenticate,
            operations.routers,
            operations.open_routers,
            running,
            tells_ids=False,
        )


def room(plan: OnlinePlan) -> dict[str, int]:
    """Requests that a tier's replicas can run, and those that may wait for them.

    Serve's own bound would also count those that are just being handed over.
    """
    queued = plan.config.serve.max_queued
    return {t.name: t.replica_range.max * seqs(t) + queued for t in plan.config.tiers}


def online_cache(plan: OnlinePlan, writer: Any) -> OnlineCache | None:
    config = plan.config.response_cache
    if config is None or not config.enabled:
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
    shared = _deployment(
        Shared, "shared", whole, Replicas(min=1, max=1), config.serve, _SHARED_AT_ONCE
    )
    places = {tier.name: _place(plan, tier) for tier in config.tiers}
    ingress = _deployment(
        Ingress, "ingress", whole, as_range(config.serve.replicas), config.serve, _INGRESS_AT_ONCE
    )
    return {
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
    deployment = _deployment(
        TierReplica, "tier", place, tier.replica_range, config.serve, seqs(tier)
    )
    options = {k: v for k, v in actor_options(tier).items() if v is not None}
    return deployment.options(ray_actor_options=options).bind(
        place,
        tier,
        plan.prices.tiers[tier.name],
        config.sampling.given(),
        cpu_engines(config.tiers),
    )


def _deployment(
    host: type, name: str, version: str, replicas: Replicas, config: Any, at_once: int
) -> Any:
    scale: Mapping[str, Any] = {"num_replicas": replicas.max}
    if replicas.min < replicas.max:
        scale = {
            "autoscaling_config": {
                "min_replicas": replicas.min,
                "max_replicas": replicas.max,
                "target_ongoing_requests": max(at_once / 2, 1),
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
        max_queued_requests=_INGRESS_QUEUE if host is Ingress else -1,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=config.retry_after_s),
        graceful_shutdown_timeout_s=config.drain_s,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=2.0,
        ray_actor_options={"num_cpus": 0},
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
