"""The settle step: followers get their leader's answer, and the books are closed."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.commit import BILL_PARTS, FOLLOWERS, STATE, write_done
from pipelines.ledger import Committed, bill_table
from pipelines.prices import PriceList
from pipelines.pricing import price_rows
from pipelines.schema import BILL, RESULT, nano_dollars, patch
from pipelines.storage import Directory

_ANSWER = (
    "status", "response", "finish_reason", "tier", "model", "route_score", "route_reason",
    "escalations", "prompt_tokens", "cached_prompt_tokens", "completion_tokens", "similarity",
    "error_kind", "error",
)  # fmt: skip
_BILL_DRAFT = f"{STATE}/bill.draft"
_LEADERS_AT_ONCE = 100_000
"""Bounds the memory of settling: more followed leaders are settled in several passes."""


def plan_passes(directory: Directory) -> list[np.ndarray]:
    """The followed keys, cut into what one pass settles: sorted arrays of dtype S32."""
    parts = directory.parts(FOLLOWERS)
    if not parts:
        return []
    columns = [_keys(directory.read_table(name, ["request_key"])) for name in parts]
    followed = np.unique(np.concatenate(columns))
    return np.array_split(followed, -(-len(followed) // _LEADERS_AT_ONCE))


def settle_pass(
    directory: Directory, number: int, keys: np.ndarray, prices: PriceList, run_id: str
) -> None:
    """Write the followers of these keys with their leader's answer, or their leader's error.

    Passes share nothing and may run beside each other. Each is safe to repeat: a part is
    named after its block and the pass.
    """
    leaders = _leaders(directory, keys)
    for name in directory.parts(FOLLOWERS):
        followers = _having(directory.read_table(name), keys)
        if followers.num_rows:
            block = name.removeprefix(f"{FOLLOWERS}/part-").removesuffix(".parquet")
            answered = price_rows(_answered(followers, leaders), prices, run_id)
            write_done(directory, f"{block}.followers{number}", answered)


def forget_followers(directory: Directory) -> None:
    """To be called when every pass is done."""
    directory.remove(FOLLOWERS)


def write_bill(directory: Directory, overheads: list[dict[str, Any]]) -> int:
    """Join the parts of the bill and the overheads into `bill.parquet`; returns its total.

    The total is in nano-dollars.
    """
    total = 0
    with (
        directory.fs.open(directory.path(_BILL_DRAFT), "wb") as sink,
        pq.ParquetWriter(sink, BILL, compression="zstd") as writer,
    ):
        for table in chain(_tables(directory, BILL_PARTS), [bill_table(overheads)]):
            if table.num_rows:
                writer.write_table(table)
                total += int(pc.sum(table["cost_nusd"]).as_py())
    directory.fs.mv(directory.path(_BILL_DRAFT), directory.path("bill.parquet"))
    return total


def committed_time(directory: Directory) -> dict[tuple[str, str], Committed]:
    """What committed rows took of their replicas, by (start of the run, tier)."""
    time: Counter[tuple[str, str]] = Counter()
    cost: Counter[tuple[str, str]] = Counter()
    for table in _tables(directory, BILL_PARTS):
        grouped = table.group_by(["attempt_id", "tier"]).aggregate(
            [("engine_ns", "sum"), ("cost_nusd", "sum")]
        )
        for row in grouped.to_pylist():
            if row["attempt_id"] is not None:
                key = (row["attempt_id"], row["tier"])
                time[key] += row["engine_ns_sum"]
                cost[key] += row["cost_nusd_sum"]
    return {key: Committed(time[key], cost[key]) for key in time}


def count_rows(directory: Directory) -> dict[str, Any]:
    """The totals of all committed rows: counts, tokens, and money in nano-dollars."""
    totals: Counter[str] = Counter()
    by_source: Counter[str] = Counter()
    by_error: Counter[str] = Counter()
    by_tier: dict[str, Counter[str]] = defaultdict(Counter)
    wanted = [
        "status", "source", "tier", "error_kind", "prompt_tokens", "cached_prompt_tokens",
        "completion_tokens", "cost_usd", "baseline_cost_usd", "attempts",
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
            by_tier[tier]["cost_nusd"] += int(nano_dollars(mine["cost_usd"]).sum())
            for name in ("prompt_tokens", "completion_tokens"):
                by_tier[tier][name] += pc.sum(mine[name]).as_py() or 0
    return {
        **totals,
        "by_source": dict(by_source),
        "by_error": dict(by_error),
        "by_tier": {tier: dict(counts) for tier, counts in by_tier.items()},
    }


def _leaders(directory: Directory, keys: np.ndarray) -> pa.Table:
    """The answers of these keys, one row each, ordered by key."""
    columns = ["request_key", "source", *_ANSWER]
    found = []
    for table in _tables(directory, "rows", columns):
        leading = pc.invert(pc.fill_null(pc.equal(table["source"], "duplicate"), False))
        found.append(_having(table.filter(leading), keys))
    schema = pa.schema([RESULT.field(name) for name in columns])
    leaders = pa.concat_tables(found) if found else schema.empty_table()
    # A key that failed and was answered later has two; the answer counts.
    leaders = leaders.sort_by([("status", "descending")])
    _, first = np.unique(_keys(leaders), return_index=True)
    return leaders.take(pa.array(first)).select(["request_key", *_ANSWER])


def _answered(followers: pa.Table, leaders: pa.Table) -> pa.Table:
    """Followers with their leader's answer; one whose leader left none is an error row."""
    at = pc.index_in(followers["request_key"], value_set=leaders["request_key"].combine_chunks())
    values: dict[str, Any] = {name: leaders[name].take(at).combine_chunks() for name in _ANSWER}
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


def _having(table: pa.Table, keys: np.ndarray) -> pa.Table:
    """The rows whose request key is among sorted `keys`."""
    own = _keys(table)
    at = np.minimum(np.searchsorted(keys, own), len(keys) - 1)
    return table.filter(pa.array(keys[at] == own))


def _keys(table: pa.Table) -> np.ndarray:
    """Request keys as byte strings; hexadecimal text holds no zero byte to lose."""
    column = pc.fill_null(table["request_key"], "")
    return np.array(column.to_pylist(), dtype="S32")


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
