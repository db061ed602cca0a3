"""The main job: plan, stream, settle, and account for one run."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import ray

from actors.claims import ClaimShard, claim_committed
from actors.meter import RunMeter, Snapshot
from jobs import hosts
from jobs.cluster import connect
from jobs.placement import beside_driver
from jobs.preflight import Plan, check_writable, plan_run
from jobs.route_spending import calibration_lines
from jobs.run_cache import RunCache
from jobs.run_report import REPORT, write_report
from jobs.run_stages import RunStages
from jobs.run_state import Lock, RunIdentity, load_replicas, open_run, save_replicas
from jobs.settling import settle
from jobs.summary import Summary, load_summary, remove_summary, summarize
from jobs.watching import Watch, watched
from pipelines.blocks import Block
from pipelines.chain import run_chain, run_sort
from pipelines.commit import committed_blocks, sweep
from pipelines.config import RunConfig
from pipelines.errors import RunFailure, UsageProblem
from pipelines.ledger import batch_lines, overhead_lines
from pipelines.leftovers import (
    failed_blocks,
    forget_taken_up,
    pending_blocks,
    retire_failed,
)
from pipelines.openai_batch import write_openai_batch
from pipelines.ordering import SORT_KEYS, order_once, ordered_blocks
from pipelines.prices import nano_dollars
from pipelines.settle import committed_time, drop_settled, write_bill
from pipelines.storage import Directory

OnStart = Callable[[int], None]


def run(
    config: RunConfig,
    watch: Watch | None = None,
    on_start: OnStart | None = None,
    divert_stderr: bool = False,
    retry: bool = False,
) -> Summary:
    """Answer every row of the input and account for it; goes on where an earlier start ended.

    Args:
        watch: called twice a second with the running totals.
        on_start: called once with the rows that are left.
        divert_stderr: send what libraries print to a log file.
        retry: answer the rows in `errors/` once more, with whatever the configuration now says.

    Raises:
        UsageProblem: the run cannot start; nothing was spent.
        RunFailure: it started and could not finish; what is committed stays.
    """
    plan = plan_run(config, datetime.now(UTC).date())
    directory = check_writable(config)
    with Lock(directory).held():
        identity = open_run(directory, plan, retry)
        drop_settled(directory)
        sweep(directory)
        retire_failed(directory)
        if config.input.order == "whole":
            connect(divert_stderr)
            order_once(directory, lambda: _sort(plan))
        blocks = remaining_blocks(directory, plan)
        finished = load_summary(directory)
        if retry:
            if blocks or finished is None or finished.pending:
                raise UsageProblem(f"{config.output.path}: the run is not finished; run it first")
            blocks = failed_blocks(directory)
        if not blocks and finished is not None and not finished.pending:
            if not directory.exists(REPORT):
                # The start that ended the run did not live to write it.
                write_report(directory, finished)
            return finished
        # From here to the end of the run there is no summary to mistake for its own.
        directory.remove(REPORT)
        remove_summary(directory)
        if on_start:
            on_start(sum(block.num_rows for block in blocks))
        logs = connect(divert_stderr)
        return _Run(plan, directory, identity, watch, logs).finish(blocks)


def remaining_blocks(directory: Directory, plan: Plan) -> list[Block]:
    """The blocks without a committed part, and those a budget left over."""
    done = committed_blocks(directory)
    planned = ordered_blocks(directory, _hands(plan)) or plan.blocks
    return [b for b in planned if b.name not in done] + pending_blocks(directory)


def spent_before(directory: Directory, plan: Plan) -> int:
    """Nano-dollars that earlier starts of this run cost: its budget is one.

    Not what they left of a provider's batches, where this start takes that up and counts it.
    """
    committed, starts = committed_time(directory), load_replicas(directory)
    lines = overhead_lines(starts, committed, plan.prices.tiers)
    lines += calibration_lines(directory)
    taken_up = {t.name for t in plan.config.tiers if getattr(t.engine, "mode", "") == "batch"}
    lines += [x for x in batch_lines(starts, committed) if x["tier"] not in taken_up]
    return sum(c.cost_nusd for c in committed.values()) + sum(x["cost_nusd"] for x in lines)


def _hands(plan: Plan) -> int:
    return max(tier.replica_range.max for tier in plan.config.tiers)


def _sort(plan: Plan) -> None:
    config = plan.config
    output = (config.output.path, config.storage)
    source = (config.input.path, config.storage)
    intake = hosts.Intake(plan.dialect, plan.schema, plan.policy, source, output, [])
    writer = hosts.OrderedWriter(output)
    read = partial(intake.read_for_sorting, hands=_hands(plan))
    run_sort(plan.blocks, read, SORT_KEYS, writer)


class _Run:
    """One start of a run: its actors, its chain, its accounts."""

    def __init__(
        self,
        plan: Plan,
        directory: Directory,
        identity: RunIdentity,
        watch: Watch | None,
        logs: Path,
    ) -> None:
        self._plan, self._config = plan, plan.config
        self._directory, self._identity = directory, identity
        self._watch = watch
        self._started = time.time()
        self._logs = logs
        self._meter = beside_driver(RunMeter).remote(
            plan.prices, self._budget_nusd(), spent_before(directory, plan)
        )
        self._shards = self._start_shards()
        self._cache = RunCache(plan, directory, identity.run_id, self._meter)
        self._stages = RunStages(plan, identity, self._meter, self._cache)
        self._stages.recall(directory)

    def finish(self, blocks: list[Block]) -> Summary:
        try:
            return self._finish(blocks)
        except ray.exceptions.RayError as error:
            raise RunFailure(
                f"{self._told() or _reason(error)}\nWhat is committed stays; run the same command "
                f"again to go on. Logs: {self._logs}"
            ) from error

    def _told(self) -> str | None:
        """What ended the run, in the words of who found out, if anybody did."""
        try:
            snapshot: Snapshot = ray.get(self._meter.snapshot.remote())
        except ray.exceptions.RayError:
            return None
        return snapshot.failure

    def _finish(self, blocks: list[Block]) -> Summary:
        with watched(self._meter, self._save, self._watch):
            if blocks:
                self._stream(blocks)
            self._answer_forsaken()
        self._cache.close()
        snapshot: Snapshot = ray.get(self._meter.snapshot.remote())
        self._save(snapshot)
        retire_failed(self._directory)
        forget_taken_up(self._directory)
        if not snapshot.closed:
            settle(self._directory, "equal", self._plan.prices, self._identity.run_id)
        groups = self._cache.finish()
        starts, committed = load_replicas(self._directory), committed_time(self._directory)
        overheads = [
            *overhead_lines(starts, committed, self._plan.prices.tiers),
            *batch_lines(starts, committed),
            *calibration_lines(self._directory),
        ]
        bill = write_bill(self._directory, overheads)
        if self._config.output.openai_batch and self._plan.dialect.openai_batch:
            write_openai_batch(self._directory)
        summary = summarize(
            directory=self._directory,
            identity=self._identity,
            plan=self._plan,
            bill=bill,
            wall_s=time.time() - self._started,
            start_s=(snapshot.first_commit_at or time.time()) - self._started,
            logs=str(self._logs),
            claimed=self._claimed(),
            cache_groups=groups,
            standing=self._stages.standing(),
            warnings=snapshot.warnings,
        )
        write_report(self._directory, summary)
        return summary

    def _answer_forsaken(self) -> None:
        """Settle who follows a similar row, and answer those whose leader has no full answer."""
        if ray.get(self._meter.snapshot.remote()).closed:
            return
        settle(self._directory, "similar", self._plan.prices, self._identity.run_id)
        if forsaken := pending_blocks(self._directory):
            self._stream(forsaken, similar=False)

    def _save(self, snapshot: Snapshot) -> None:
        save_replicas(self._directory, self._identity.attempt_id, snapshot.replicas)

    def _stream(self, blocks: list[Block], similar: bool = True) -> None:
        """Answer blocks.

        Args:
            similar: whether their rows may follow, or be served as, similar ones.
        """
        config, output = self._config, (self._config.output.path, self._config.storage)
        intake = hosts.Intake(
            self._plan.dialect,
            self._plan.schema,
            self._plan.policy,
            (config.input.path, config.storage),
            output,
            self._shards,
        )
        commit = hosts.Commit(
            output,
            self._plan.prices,
            self._identity.run_id,
            self._meter,
            self._cache.writer,
            config.input.columns.tenant,
        )
        run_chain(blocks, intake, self._stages.build(blocks, similar), commit)

    def _start_shards(self) -> list[Any]:
        if not self._config.dedup:
            return []
        actor = beside_driver(ClaimShard)
        shards = [actor.remote() for _ in range(self._config.claim_shards)]
        for name in self._directory.parts("rows"):
            table = self._directory.read_table(name, ["row_id", "request_key", "source", "status"])
            claim_committed(table, len(shards), lambda calls: hosts.ask_shards(shards, calls))
        return shards

    def _claimed(self) -> tuple[int, int]:
        sizes = ray.get([shard.size.remote() for shard in self._shards])
        return sum(keys for keys, _ in sizes), sum(held for _, held in sizes)

    def _budget_nusd(self) -> int | None:
        budget = self._config.budget_usd
        return None if budget is None else nano_dollars(budget)


def _reason(error: ray.exceptions.RayError) -> str:
    """The remote cause's own words; its long traceback is in the logs."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else ''}"
