"""The write step: a block's rows become durable together, under the block's own name.

Everything a block leaves is written before its part in `rows/`, which is the mark that the
block is done. Writing a block twice replaces all that it left, so that a task which Ray runs
again adds nothing twice; what a killed start left without the mark is swept away by the next.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.schema import BILL, ERRORS, WORK, result_table, user_columns
from pipelines.storage import Directory

STATE = ".nightmill"
Kind = Literal["similar", "equal"]
FOLLOWERS: dict[Kind, str] = {"similar": f"{STATE}/similar", "equal": f"{STATE}/followers"}
"""Rows that wait for another's answer, by what they share with it, in the order in which they are
settled: a row may repeat one that itself follows a similar one.
"""
PENDING = f"{STATE}/pending"
BILL_PARTS = f"{STATE}/bill"
_NO_WORK = {
    "prompt_tokens": 0, "completion_tokens": 0, "engine_ns": 0, "attempt_id": None, "cost_nusd": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """What one committed block held."""

    rows: int
    ok: int
    errors: int
    followers: int
    pending: int
    cached: int

    def as_dict(self) -> dict[str, int]:
        return dict(vars(self))


def part(folder: str, block: str) -> str:
    return f"{folder}/part-{block}.parquet"


def committed_blocks(directory: Directory) -> set[str]:
    """Names of the blocks whose part in `rows/` exists."""
    return {block_of(path) for path in directory.parts("rows")}


def commit_block(directory: Directory, block: str, table: pa.Table) -> Counts:
    """Write one priced block.

    Followers and pending rows go to the run's own state: the first wait for their leader's
    answer, the second to be taken up again.
    """
    following = pc.fill_null(pc.equal(table["source"], "duplicate"), False)
    similar = pc.and_(following, pc.is_valid(table["cache_entry"]))
    pending = pc.fill_null(pc.equal(table["status"], "pending"), False)
    done = table.filter(pc.invert(pc.or_(following, pending)))
    followers, left = table.filter(following), table.filter(pending)
    equal = pc.and_(following, pc.invert(similar))
    _replace(directory, part(FOLLOWERS["similar"], block), table.filter(similar))
    _replace(directory, part(FOLLOWERS["equal"], block), table.filter(equal))
    write_left(directory, block, left)
    write_done(directory, block, done)
    ok = int(pc.sum(pc.equal(done["status"], "ok")).as_py() or 0)
    cached = int(pc.sum(pc.match_substring(done["source"], "cache")).as_py() or 0)
    return Counts(done.num_rows, ok, done.num_rows - ok, followers.num_rows, left.num_rows, cached)


def write_left(directory: Directory, name: str, left: pa.Table) -> None:
    """Write rows that are to be taken up again; before those of the block that are done."""
    _replace(directory, part(PENDING, name), left)


def write_done(directory: Directory, name: str, done: pa.Table) -> None:
    """Write finished rows with their errors and their lines of the bill; `rows/` comes last."""
    failed = done.filter(pc.equal(done["status"], "error"))
    _replace(directory, part("errors", name), _errors(failed))
    _replace(directory, part(BILL_PARTS, name), _bill_lines(done))
    directory.write_table(part("rows", name), result_table(done))


def waiting_rows(directory: Directory) -> int:
    """Rows of committed blocks that wait for another's answer."""
    done = committed_blocks(directory)
    parts = [path for folder in FOLLOWERS.values() for path in directory.parts(folder)]
    return sum(directory.num_rows(path) for path in parts if block_of(path) in done)


def sweep(directory: Directory) -> None:
    """Remove what a killed start left of blocks that it did not finish."""
    done = committed_blocks(directory)
    for folder in ("errors", BILL_PARTS, *FOLLOWERS.values(), PENDING):
        for path in directory.parts(folder):
            if block_of(path) not in done:
                directory.remove(path)


def block_of(path: str) -> str:
    """The block that a part belongs to: the inverse of `part`."""
    return path.rsplit("/part-", 1)[1].removesuffix(".parquet")


def _replace(directory: Directory, path: str, table: pa.Table) -> None:
    if table.num_rows:
        directory.write_table(path, table)
    else:
        directory.remove(path)


def _errors(failed: pa.Table) -> pa.Table:
    user = user_columns(failed)
    inputs = [
        raw if raw is not None else _as_json(user.slice(i, 1))
        for i, raw in enumerate(failed["_raw"].to_pylist())
    ]
    columns: dict[str, Any] = {name: failed[name] for name in ERRORS.names if name != "input"}
    columns["attempts"] = pc.fill_null(columns["attempts"], 0)
    columns["input"] = pa.array(inputs, pa.string())
    return pa.table(columns).select(ERRORS.names).cast(ERRORS)


def _as_json(row: pa.Table) -> str:
    values = {}
    for name in row.column_names:
        try:
            values[name] = row[name][0].as_py()
        # A value that Arrow holds and Python does not: broken UTF-8, a date of the year 30,000.
        except (ValueError, OverflowError) as error:
            values[name] = f"unreadable: {error}"
    return json.dumps(values, default=str)


def _bill_lines(done: pa.Table) -> pa.Table:
    """One line for each tier that worked on a row; one of nothing for a row without any."""
    work = done["_work"].combine_chunks()
    worked = pc.fill_null(pc.greater(pc.list_value_length(work), 0), False)
    paid = _lines(done["row_id"].take(pc.list_parent_indices(work)), pc.list_flatten(work))
    unpaid = done.filter(pc.invert(worked))
    nothing = pa.array([_NO_WORK] * unpaid.num_rows, WORK)
    free = _lines(unpaid["row_id"], nothing).set_column(
        BILL.names.index("tier"), BILL.field("tier"), unpaid["tier"]
    )
    return pa.concat_tables([paid, free])


def _lines(row_ids: pa.ChunkedArray, work: pa.StructArray) -> pa.Table:
    """A line of the bill for each piece of work."""
    ns = pc.struct_field(work, "engine_ns")
    tokens = [pc.struct_field(work, f"{kind}_tokens") for kind in ("prompt", "completion")]
    columns = {
        "kind": pa.array(["row"] * len(work), pa.string()),
        "row_id": row_ids,
        "tier": pc.struct_field(work, "tier"),
        "seconds": pc.divide(ns.cast(pa.float64()), 1e9),
        "tokens": pc.add(*tokens),
        "cost_nusd": pc.struct_field(work, "cost_nusd"),
        "attempt_id": pc.struct_field(work, "attempt_id"),
        "engine_ns": ns,
    }
    return pa.table(columns).cast(BILL)


def blocks_of(table: pa.Table) -> Sequence[tuple[str, pa.Table]]:
    """The table, cut where the block changes: the chain keeps blocks whole, Ray may join them."""
    names = table["_block"].to_pylist()
    starts = [i for i in range(len(names)) if i == 0 or names[i] != names[i - 1]]
    ends = np.append(starts[1:], len(names))
    return [(names[a], table.slice(a, int(b) - a)) for a, b in zip(starts, ends, strict=True)]
