"""The few lines that put plain classes into Ray Data's stages; `jobs/remote.py` has the others."""

import asyncio
import os
import threading
import time
import uuid
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import pyarrow as pa
import ray

from actors.claims import ShardCalls, claim_rows
from actors.engine import build_engine
from actors.exchange import Trader
from actors.generator import Generator
from actors.hardware import hardware
from actors.known_answers import KnownAnswers
from actors.learned_policy import policy_of
from actors.recall import recall_rows
from actors.referee import Referee
from actors.response_cache import ResponseCache
from actors.router import Router
from jobs.rate_limits import shared_limits
from jobs.remote import Guarded, RemoteMarket, RemoteMeter
from pipelines.blocks import Block
from pipelines.cache_admission import admissible
from pipelines.commit import blocks_of, commit_block
from pipelines.config import ResponseCacheConfig, Storage
from pipelines.errors import RunFailure, UsageProblem
from pipelines.intake import Dialect, read_block
from pipelines.leftovers import is_leftover, read_leftover
from pipelines.ordering import is_ordered, read_ordered, with_sort_keys, write_ordered
from pipelines.prices import PriceList
from pipelines.pricing import price_rows
from pipelines.replicas import fitted
from pipelines.route_config import Route
from pipelines.route_plan import RoutePlan, known_answers
from pipelines.shadow import ladder_of
from pipelines.storage import Directory, open_filesystem
from pipelines.tier import Tier
from pipelines.tuning import TuningPlan
from pipelines.waiting import rows_for_tier

_REPORT_EVERY_S = 1.0


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
        table = self.read(block)
        if not self._shards:
            return table
        return claim_rows(table, len(self._shards), lambda calls: ask_shards(self._shards, calls))

    def read(self, block: Block) -> pa.Table:
        if is_ordered(block):
            return read_ordered(block, _directory(*self._output))
        if is_leftover(block):
            output = _directory(*self._output)
            return read_leftover(block, output, self._dialect, self._policy)
        fs = _filesystem(*self._source)
        return read_block(block, self._dialect, self._schema, self._policy, fs)

    def read_for_sorting(self, block: Block, hands: int) -> pa.Table:
        return with_sort_keys(self.read(block), self._dialect.defaults, hands)


class OrderedWriter:
    """Keeps sorted blocks; called inside Ray Data's write tasks."""

    def __init__(self, output: tuple[str, Storage]) -> None:
        self._output = output

    def __call__(self, number: int, table: pa.Table) -> None:
        if table.num_rows:
            write_ordered(_directory(*self._output), number, table)


def ask_shards(shards: list[Any], calls: ShardCalls) -> dict[int, bytes]:
    """Put every shard's question at once and wait for all replies."""
    asked = [shards[s].claim.remote(keys, rows) for s, (keys, rows) in calls.items()]
    return dict(zip(calls, ray.get(asked), strict=True))


class RouterHost:
    """Exact recall and route in one actor of the router pool: neither is worth a process of its
    own. Where rows are recalled by similarity too, a stage before this one does both.
    """

    def __init__(
        self,
        route: Route,
        configured: Route,
        response_cache: ResponseCacheConfig | None,
        storage: Storage,
        meter: Any,
        plan: RoutePlan | None,
        plans: str | None,
        keyed_by: tuple[str, ...],
        guard: Guarded | None,
    ) -> None:
        self._guard = guard
        warn = RemoteMeter(meter).warn
        self._cache = ResponseCache(response_cache, storage, warn) if response_cache else None
        self._known: KnownAnswers | None = None
        if plan is not None and plans is not None:
            answers = known_answers(_directory(plans, storage), plan.key)
            self._known = KnownAnswers(answers, keyed_by)
        self._router = Router(policy_of(route, configured, plan))

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._cache is not None:
            table = recall_rows(table, self._cache)
        if self._known is not None:
            table = self._known.recall(table)
        if self._guard is not None and self._guard.is_in_danger():
            return self._router.route(table, self._guard.closed)
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
        exchange: Any | None,
        plans: list[TuningPlan],
        cpu_engines: int,
        route: Route,
        configured: Route,
        guard: Guarded | None,
    ) -> None:
        tier = fitted(tier, cpu_engines, len(os.sched_getaffinity(0)))
        # Only here it is known what the engine runs on.
        plan = next((p for p in plans if p.subject.hardware == hardware()), None)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        name = uuid.uuid4().hex
        run = attempt_id.rpartition(".")[0]
        limits = shared_limits(tier.engine)
        engine = build_engine(tier, defaults, plan.engine_args if plan else None, limits, run)
        self._meter = RemoteMeter(meter)
        self._generator = Generator(
            name=name,
            tier=tier,
            engine=engine,
            rate=prices.tiers[tier.name],
            meter=self._meter,
            attempt_id=attempt_id,
            defaults=defaults,
            metered=metered,
            plan=plan.key if plan else "",
        )
        self._referee = Referee(tier, ladder_of(route, configured))
        self._guard = guard
        self._trader: Trader | None = None
        if exchange is not None:
            market = RemoteMarket(exchange)
            self._trader = Trader(name, engine, market, self._generator.report)
            asyncio.run_coroutine_threadsafe(self._trader.trade(), self._loop)
        # A busy loop must not keep anybody from knowing what the replica costs.
        threading.Thread(target=self._report_regularly, daemon=True).start()

    def _report_regularly(self) -> None:
        while True:
            self._generator.report()
            time.sleep(_REPORT_EVERY_S)

    def __call__(self, table: pa.Table) -> pa.Table:
        try:
            return asyncio.run_coroutine_threadsafe(self._generated(table), self._loop).result()
        except (RunFailure, UsageProblem) as failure:
            # What Ray makes of it is a page of tracebacks.
            self._meter.fail(str(failure))
            raise

    async def _generated(self, table: pa.Table) -> pa.Table:
        if self._trader is None or not rows_for_tier(table, self._generator.tier.name):
            return await self._answered(table)
        async with self._trader.in_hand():
            return await self._answered(table)

    async def _answered(self, table: pa.Table) -> pa.Table:
        """Turn after turn, as long as rows are this tier's: it may grade what it then answers."""
        while at := rows_for_tier(table, self._generator.tier.name):
            table = self._referee.rule(await self._generator.generate(table), at)
            if self._guard is not None:
                self._guard.report(table, at)
        return table


class Commit:
    """Prices a block and writes it; called inside Ray Data's write tasks."""

    def __init__(
        self,
        output: tuple[str, Storage],
        prices: PriceList,
        run_id: str,
        meter: Any,
        cache_writer: Any | None,
        tenant: str | None,
    ) -> None:
        self._output, self._prices, self._run_id = output, prices, run_id
        self._meter, self._cache_writer, self._tenant = meter, cache_writer, tenant

    def __call__(self, table: pa.Table) -> None:
        directory = _directory(*self._output)
        for name, rows in blocks_of(table):
            priced = price_rows(rows, self._prices, self._run_id)
            counts = commit_block(directory, name, priced)
            self._meter.count.remote(counts.as_dict())
            if self._cache_writer is not None:
                entries, questions = admissible(priced, datetime.now(UTC), self._tenant)
                if entries.num_rows:
                    self._cache_writer.append.remote(entries, questions)


@lru_cache(maxsize=4)
def _filesystem(url: str, storage: Storage) -> Any:
    return open_filesystem(url, storage)[0]


@lru_cache(maxsize=4)
def _directory(url: str, storage: Storage) -> Directory:
    return Directory(url, storage)
