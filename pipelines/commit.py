"""The write step: a block's rows become durable together, under the block's own name.

Everything a block leaves is written before its part in `rows/`, which is the mark that the
block is done. Writing a block twice replaces it by itself, so that a task which Ray runs
again, or a run that is started again, adds nothing twice.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.schema import BILL, ERRORS, nano_dollars, result_table, user_columns
from pipelines.storage import Directory

STATE = ".nightmill"
FOLLOWERS = f"{STATE}/followers"
PENDING = f"{STATE}/pending"
BILL_PARTS = f"{STATE}/bill"


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
    return {
        name.removeprefix("rows/part-").removesuffix(".parquet") for name in directory.parts("rows")
    }


def commit_block(directory: Directory, block: str, table: pa.Table) -> Counts:
    """Write one priced block.

    Followers and pending rows go to the run's own state: the first wait for their leader's
    answer, the second for a bigger budget.
    """
    following = pc.fill_null(pc.equal(table["source"], "duplicate"), False)
    pending = pc.fill_null(pc.equal(table["status"], "pending"), False)
    done = table.filter(pc.invert(pc.or_(following, pending)))
    followers, left = table.filter(following), table.filter(pending)
    if followers.num_rows:
        directory.write_table(part(FOLLOWERS, block), followers)
    if left.num_rows:
        directory.write_table(part(PENDING, block), left)
    write_done(directory, block, done)
    ok = int(pc.sum(pc.equal(done["status"], "ok")).as_py() or 0)
    cached = int(pc.sum(pc.match_substring(done["source"], "cache")).as_py() or 0)
    return Counts(done.num_rows, ok, done.num_rows - ok, followers.num_rows, left.num_rows, cached)


def write_done(directory: Directory, name: str, done: pa.Table) -> None:
    """Write finished rows with their errors and their lines of the bill; `rows/` comes last."""
    failed = done.filter(pc.equal(done["status"], "error"))
    if failed.num_rows:
        directory.write_table(part("errors", name), _errors(failed))
    if done.num_rows:
        directory.write_table(part(BILL_PARTS, name), _bill_lines(done))
    directory.write_table(part("rows", name), result_table(done))


def _errors(failed: pa.Table) -> pa.Table:
    raw = failed["_raw"].to_pylist()
    rows = user_columns(failed).to_pylist() or [{}] * failed.num_rows
    inputs = [
        given if given is not None else json.dumps(row, default=str)
        for given, row in zip(raw, rows, strict=True)
    ]
    names = [name for name in ERRORS.names if name != "input"]
    columns: dict[str, Any] = {name: failed[name] for name in names}
    return pa.table({**columns, "input": inputs}).select(ERRORS.names).cast(ERRORS)


def _bill_lines(done: pa.Table) -> pa.Table:
    tokens = pc.add(
        pc.fill_null(done["prompt_tokens"], 0), pc.fill_null(done["completion_tokens"], 0)
    )
    generated = pc.is_valid(done["_engine_ns"])
    ns = pc.fill_null(done["_engine_ns"], 0)
    return pa.table(
        {
            "kind": ["row"] * done.num_rows,
            "row_id": done["row_id"],
            "tier": done["tier"],
            "seconds": pc.divide(ns.cast(pa.float64()), 1e9),
            # Tokens of rows that nobody generated were paid for elsewhere.
            "tokens": pc.if_else(generated, tokens, 0),
            "cost_nusd": nano_dollars(done["cost_usd"]),
            "attempt_id": done["_attempt_id"],
            "engine_ns": ns,
        },
    ).cast(BILL)


def blocks_of(table: pa.Table) -> Sequence[tuple[str, pa.Table]]:
    """The table, cut where the block changes: the chain keeps blocks whole, Ray may join them."""
    names = table["_block"].to_pylist()
    starts = [i for i in range(len(names)) if i == 0 or names[i] != names[i - 1]]
    ends = np.append(starts[1:], len(names))
    return [(names[a], table.slice(a, int(b) - a)) for a, b in zip(starts, ends, strict=True)]
