"""The settle step: followers get their leader's answer, and the books are closed."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.commit import BILL_PARTS, FOLLOWERS, STATE, Kind, write_done, write_left
from pipelines.keys import canonical_json, digest
from pipelines.ledger import Committed, bill_table
from pipelines.prices import PriceList
from pipelines.pricing import price_rows
from pipelines.schema import BEYOND_TEXT, BILL, RESULT, nano_dollars, patch
from pipelines.storage import Directory

_ANSWER = (
    "status", "response", "finish_reason", "tier", "model", "route_score", "route_reason",
    "escalations", "prompt_tokens", "cached_prompt_tokens", "completion_tokens", "error_kind",
    "error", "fallback_from", *BEYOND_TEXT.names,
)  # fmt: skip
_HIT = ("similarity", "cache_entry", "cache_rule", "cache_group")
"""What an answer has besides if it came out of the response cache."""
_BILL_DRAFT = f"{STATE}/bill.draft"
_SETTLED: dict[Kind, str] = {kind: f"{STATE}/settled-{kind}" for kind in FOLLOWERS}
_FOLLOWERS_AT_ONCE = 100_000
"""Bounds the memory of settling one partition."""


class Partitions:
    """How one settling divides its keys.

    Each partition is settled alone and leaves one part, named after the settling and the
    partition: the same followers make the same names, so that settling again after a kill
    replaces what was there.
    """

    def __init__(self, directory: Directory, kind: Kind) -> None:
        self.kind = kind
        self.parts = directory.parts(FOLLOWERS[kind])
        rows = sum(directory.num_rows(path) for path in self.parts)
        self.count = max(-(-rows // _FOLLOWERS_AT_ONCE), 1)
        self._name = digest(canonical_json([self.parts, rows])).hex()[:12]

    def part(self, partition: int) -> str:
        """The block name of what one partition leaves."""
        return f"settled-{self._name}-{self.kind}-{partition}"


def follower_partitions(directory: Directory, paths: list[str], count: int) -> list[pa.Table]:
    """The followers of these parts by partition of the key that they follow."""
    table = pa.concat_tables([directory.read_table(path) for path in paths])
    return _partitioned(table, followed_keys(table), count)


def followed_keys(followers: pa.Table) -> pa.ChunkedArray:
    """The request keys of the rows that lead these."""
    return pc.coalesce(followers["cache_entry"], followers["request_key"])


def leader_partitions(
    directory: Directory, paths: list[str], followed: np.ndarray, count: int
) -> list[pa.Table]:
    """The answers in these parts that somebody follows, by partition of their key.

    Args:
        followed: `key_numbers` of all followers, sorted.
    """
    schema = pa.schema([RESULT.field(name) for name in ("request_key", *_ANSWER, *_HIT)])
    found = [schema.empty_table()]
    for path in paths:
        table = directory.read_table(path, ["request_key", "source", *_ANSWER, *_HIT])
        leading = pc.invert(pc.fill_null(pc.equal(table["source"], "duplicate"), False))
        table = _without_audits(table.filter(leading)).select(schema.names)
        numbers = key_numbers(table["request_key"])
        at = np.minimum(np.searchsorted(followed, numbers), len(followed) - 1)
        found.append(table.filter(pa.array(followed[at] == numbers)))
    leaders = pa.concat_tables(found)
    return _partitioned(leaders, leaders["request_key"], count)


def settle_partition(
    directory: Directory,
    name: str,
    followers: list[pa.Table],
    leaders: list[pa.Table],
    prices: PriceList,
    run_id: str,
) -> None:
    """Write the followers of one partition with their leader's answer.

    One that repeats a failed row gets its error. One that is only similar to a row without a
    complete answer might fare better: it is left to be answered itself.
    """
    waiting = pa.concat_tables(followers)
    if not waiting.num_rows:
        return
    # A key that failed and was answered later has two leaders; the answer counts.
    answers = pa.concat_tables(leaders).sort_by([("status", "descending")])
    alone = _without_answer(waiting, answers)
    write_left(directory, name, waiting.filter(alone))
    waiting = waiting.filter(pc.invert(alone))
    write_done(directory, name, price_rows(_answered(waiting, answers), prices, run_id))


def forget_followers(directory: Directory, kind: Kind) -> None:
    """To be called when every partition is settled; the mark goes before the parts."""
    directory.write(_SETTLED[kind], b"")
    drop_settled(directory)


def drop_settled(directory: Directory) -> None:
    """Finish a `forget_followers` that a kill interrupted."""
    for kind, mark in _SETTLED.items():
        if directory.exists(mark):
            directory.remove(FOLLOWERS[kind])
            directory.remove(mark)


def key_numbers(keys: pa.ChunkedArray) -> np.ndarray:
    """The first 8 bytes of each request key as a number; 0 for a row without one."""
    keys = pc.fill_null(pc.utf8_slice_codeunits(keys, 0, 16), "0" * 16)
    raw = bytes.fromhex("".join(keys.to_pylist()))
    return np.frombuffer(raw, dtype=">u8").astype(np.uint64)


def write_bill(directory: Directory, overheads: list[dict[str, Any]]) -> dict[str, int]:
    """Join the parts of the bill and the overheads into `bill.parquet`.

    Returns its totals in nano-dollars, by kind of line.
    """
    totals: Counter[str] = Counter()
    with (
        directory.fs.open(directory.path(_BILL_DRAFT), "wb") as sink,
        pq.ParquetWriter(sink, BILL, compression="zstd") as writer,
    ):
        for table in chain(_tables(directory, BILL_PARTS), [bill_table(overheads)]):
            if table.num_rows:
                writer.write_table(table)
                by_kind = table.group_by("kind").aggregate([("cost_nusd", "sum")])
                for line in by_kind.to_pylist():
                    totals[line["kind"]] += line["cost_nusd_sum"]
    directory.fs.mv(directory.path(_BILL_DRAFT), directory.path("bill.parquet"))
    return dict(totals)


def committed_time(directory: Directory) -> dict[tuple[str, str], Committed]:
    """What committed rows took of their replicas, by (start of the run, tier)."""
    time: Counter[tuple[str, str]] = Counter()
    cost: Counter[tuple[str, str]] = Counter()
    rows: Counter[tuple[str, str]] = Counter()
    requests: Counter[tuple[str, str]] = Counter()
    for table in _tables(directory, BILL_PARTS):
        grouped = table.group_by(["attempt_id", "tier", "kind"]).aggregate(
            [("engine_ns", "sum"), ("cost_nusd", "sum"), ([], "count_all")]
        )
        for row in grouped.to_pylist():
            if row["attempt_id"] is not None:
                key = (row["attempt_id"], row["tier"])
                time[key] += row["engine_ns_sum"]
                cost[key] += row["cost_nusd_sum"]
                rows[key] += row["cost_nusd_sum"] if row["kind"] == "row" else 0
                requests[key] += row["count_all"]
    return {key: Committed(time[key], cost[key], rows[key], requests[key]) for key in time}


def count_rows(directory: Directory) -> dict[str, Any]:
    """The totals of all committed rows: counts, tokens, and money in nano-dollars."""
    totals: Counter[str] = Counter()
    by_source: Counter[str] = Counter()
    by_error: Counter[str] = Counter()
    by_tier: dict[str, Counter[str]] = defaultdict(Counter)
    wanted = [
        "status", "source", "tier", "error_kind", "prompt_tokens", "cached_prompt_tokens",
        "completion_tokens", "cost_usd", "baseline_cost_usd", "escalations", "fallback_from",
    ]  # fmt: skip
    for table in _tables(directory, "rows", wanted):
        ok = pc.equal(table["status"], "ok")
        totals["rows"] += table.num_rows
        totals["ok"] += _count(ok)
        totals["errors"] += table.num_rows - _count(ok)
        totals["rows_cost_nusd"] += int(nano_dollars(table["cost_usd"]).sum())
        totals["baseline_nusd"] += int(nano_dollars(table["baseline_cost_usd"]).sum())
        by_source.update(_value_counts(table.filter(ok)["source"]))
        by_error.update(_value_counts(table["error_kind"]))
        generated = table.filter(pc.fill_null(pc.equal(table["source"], "generated"), False))
        for name in ("prompt_tokens", "cached_prompt_tokens", "completion_tokens"):
            totals[name] += pc.sum(generated[name]).as_py() or 0
        for tier, rows in _value_counts(generated["tier"]).items():
            mine = generated.filter(pc.equal(generated["tier"], tier))
            by_tier[tier]["rows"] += rows
            for name in ("prompt_tokens", "completion_tokens"):
                by_tier[tier][name] += pc.sum(mine[name]).as_py() or 0
        totals["escalated"] += _count(pc.greater(generated["escalations"], 0))
        totals["fallbacks"] += _count(pc.is_valid(generated["fallback_from"]))
    # Tiers pay for what they did, also where the answer came from another. What checks of rows
    # and lost attempts cost are lines of their own.
    for (_, tier), done in committed_time(directory).items():
        by_tier[tier]["cost_nusd"] += done.row_nusd
    return {
        **totals,
        "by_source": dict(by_source),
        "by_error": dict(by_error),
        "by_tier": {tier: dict(counts) for tier, counts in by_tier.items()},
    }


def _without_answer(followers: pa.Table, leaders: pa.Table) -> pa.ChunkedArray:
    """Those that follow a similar row without an answer, or with one that was cut short."""
    complete = pc.and_(
        pc.equal(leaders["status"], "ok"), pc.equal(leaders["finish_reason"], "stop")
    )
    keys = leaders.filter(complete)["request_key"].combine_chunks()
    led = pc.is_in(followed_keys(followers), value_set=keys)
    return pc.and_(pc.is_valid(followers["cache_entry"]), pc.invert(led))


def _without_audits(leaders: pa.Table) -> pa.Table:
    """A row that was only compared with an entry hands on its own answer, not that entry."""
    served = pc.fill_null(pc.match_substring(leaders["source"], "cache"), False)
    for name in _HIT:
        column = pc.if_else(served, leaders[name], pa.scalar(None, leaders[name].type))
        leaders = leaders.set_column(leaders.column_names.index(name), name, column)
    return leaders


def _partitioned(table: pa.Table, keys: pa.ChunkedArray, count: int) -> list[pa.Table]:
    partition = key_numbers(keys) % np.uint64(count)
    return [table.filter(pa.array(partition == np.uint64(i))) for i in range(count)]


def _answered(followers: pa.Table, leaders: pa.Table) -> pa.Table:
    """Followers with their leader's answer; one whose leader left none is an error row."""
    at = pc.index_in(followed_keys(followers), value_set=leaders["request_key"].combine_chunks())
    similar = pc.is_valid(followers["cache_entry"])
    values: dict[str, Any] = {name: leaders[name].take(at) for name in _ANSWER}
    for name in _HIT:
        values[name] = pc.if_else(similar, followers[name], leaders[name].take(at))
    values["source"] = pc.if_else(similar, "cache_semantic", "duplicate")
    lost = pc.is_null(at)
    values["status"] = pc.if_else(lost, "error", values["status"])
    values["error_kind"] = pc.if_else(lost, "lost_leader", values["error_kind"])
    values["error"] = pc.if_else(
        lost, "the row that it duplicates left no answer; retry it", values["error"]
    )
    values = {n: v.combine_chunks() if isinstance(v, pa.ChunkedArray) else v
              for n, v in values.items()}  # fmt: skip
    values["attempts"] = [0] * followers.num_rows
    return patch(followers, range(followers.num_rows), values)


def _tables(
    directory: Directory, folder: str, columns: list[str] | None = None
) -> Iterator[pa.Table]:
    for name in directory.parts(folder):
        yield directory.read_table(name, columns)


def _count(mask: pa.ChunkedArray) -> int:
    return int(pc.sum(mask).as_py() or 0)


def _value_counts(column: pa.ChunkedArray) -> Mapping[str, int]:
    counted = pc.value_counts(column.drop_null())
    return {entry["values"]: entry["counts"] for entry in counted.to_pylist()}
