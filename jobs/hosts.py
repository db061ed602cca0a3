"""The few lines that put plain classes into Ray actors: all the Ray that stages know."""

import asyncio
import os
import threading
import time
import uuid
from collections.abc import Awaitable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import pyarrow as pa
import ray

from actors.claims import ShardCalls, claim_rows
from actors.engine import build_engine
from actors.generator import Generator
from actors.meter import Grant
from actors.recall import admissible, recall_rows
from actors.response_cache import ResponseCache
from actors.router import Router
from pipelines.commit import blocks_of, commit_block
from pipelines.config import ResponseCacheConfig, Route, Storage, Tier
from pipelines.intake import Dialect, read_block
from pipelines.ledger import Replica
from pipelines.leftovers import is_leftover, read_leftover
from pipelines.prices import PriceList
from pipelines.pricing import price_rows
from pipelines.replicas import fitted
from pipelines.sources import Block
from pipelines.storage import Directory, open_filesystem

_REPORT_EVERY_S = 1.0


class RemoteMeter:
    """A `RunMeter` in an actor, as a generator sees it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def reserve(self, name: str, nusd: int) -> Awaitable[Grant]:
        grant: Awaitable[Grant] = self._actor.reserve.remote(name, nusd)
        return grant

    def settle(self, name: str, reserved_nusd: int, spent_nusd: int) -> None:
        if reserved_nusd or spent_nusd:
            self._actor.settle.remote(name, reserved_nusd, spent_nusd)

    def report_replica(self, name: str, replica: Replica) -> None:
        self._actor.report_replica.remote(name, replica)

    def warn(self, message: str) -> None:
        self._actor.warn.remote(message)


class Intake:
    """Reads a block and claims its keys; called inside Ray Data's read tasks."""

    def __init__(
        self,
        dialect: Dialect,
        schema: pa.Schema,
        policy: bytes,
        source: tuple[str, Storage],
        output: tuple[str, Storage],
        shards: list[Any],
    ) -> None:
        self._dialect, self._schema, self._policy = dialect, schema, policy
        self._source, self._output = source, output
        self._shards = shards

    def __call__(self, block: Block) -> pa.Table:
        if is_leftover(block):
            output = _directory(*self._output)
            table = read_leftover(block, output, self._dialect, self._policy)
        else:
            fs = _filesystem(*self._source)
            table = read_block(block, self._dialect, self._schema, self._policy, fs)
        if not self._shards:
            return table
        return claim_rows(table, len(self._shards), lambda calls: ask_shards(self._shards, calls))


def ask_shards(shards: list[Any], calls: ShardCalls) -> dict[int, bytes]:
    """Put every shard's question at once and wait for all replies."""
    asked = [shards[s].claim.remote(keys, rows) for s, (keys, rows) in calls.items()]
    return dict(zip(calls, ray.get(asked), strict=True))


class RouterHost:
    """Recall and route in one actor of the router pool: neither is worth a process of its own."""

    def __init__(
        self,
        route: Route,
        response_cache: ResponseCacheConfig | None,
        storage: Storage,
        meter: Any,
    ) -> None:
        warn = RemoteMeter(meter).warn
        self._cache = ResponseCache(response_cache, storage, warn) if response_cache else None
        self._router = Router(route)

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._cache is not None:
            table = recall_rows(table, self._cache)
        return self._router.route(table)


class EngineHost:
    """`Generator` in a Ray Data actor, on an event loop of its own.

    Ray Data calls from several threads, a block in each. The loop never waits for them, so
    that a slow reader downstream takes no token from the engine.
    """

    def __init__(
        self,
        tier: Tier,
        defaults: dict[str, Any],
        prices: PriceList,
        meter: Any,
        attempt_id: str,
        metered: bool,
        cpu_engines: int,
    ) -> None:
        tier = fitted(tier, cpu_engines, len(os.sched_getaffinity(0)))
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._generator = Generator(
            name=uuid.uuid4().hex,
            tier=tier,
            engine=build_engine(tier, defaults),
            rate=prices.tiers[tier.name],
            meter=RemoteMeter(meter),
            attempt_id=attempt_id,
            default_max_tokens=defaults.get("max_tokens"),
            metered=metered,
        )
        # Loading a model blocks the loop; its time must be known all the same.
        threading.Thread(target=self._report_regularly, daemon=True).start()

    def _report_regularly(self) -> None:
        while True:
            self._generator.report()
            time.sleep(_REPORT_EVERY_S)

    def __call__(self, table: pa.Table) -> pa.Table:
        work = self._generator.generate(table)
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class Commit:
    """Prices a block and writes it; called inside Ray Data's write tasks."""

    def __init__(
        self,
        output: tuple[str, Storage],
        prices: PriceList,
        run_id: str,
        meter: Any,
        cache_writer: Any | None,
    ) -> None:
        self._output, self._prices, self._run_id = output, prices, run_id
        self._meter, self._cache_writer = meter, cache_writer

    def __call__(self, table: pa.Table) -> None:
        directory = _directory(*self._output)
        for name, rows in blocks_of(table):
            priced = price_rows(rows, self._prices, self._run_id)
            counts = commit_block(directory, name, priced)
            self._meter.count.remote(counts.as_dict())
            if self._cache_writer is not None:
                entries = admissible(priced, datetime.now(UTC))
                if entries.num_rows:
                    self._cache_writer.append.remote(entries)


@lru_cache(maxsize=4)
def _filesystem(url: str, storage: Storage) -> Any:
    return open_filesystem(url, storage)[0]


@lru_cache(maxsize=4)
def _directory(url: str, storage: Storage) -> Directory:
    return Directory(url, storage)
