"""The Arrow schemas of everything that leaves a run, and the columns that travel inside it."""

from collections.abc import Mapping, Sequence
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MONEY = pa.decimal128(18, 9)
"""US dollars to the nano-dollar, up to a billion dollars a row."""

BEYOND_TEXT = pa.schema(
    [
        # What the model thought before its answer, where a tier has a parser for that.
        ("reasoning", pa.string()),
        # JSON in OpenAI's format, as are all choices of a row that asked for several, and the
        # logprobs, which have another name because an input's column may ask for them by theirs.
        ("tool_calls", pa.string()),
        ("choices", pa.string()),
        ("token_logprobs", pa.string()),
        ("embedding", pa.list_(pa.float32())),
        # JSON: label -> probability.
        ("scores", pa.string()),
    ]
)
"""What an answer may hold beside its text."""

RESULT = pa.schema(
    [
        ("row_id", pa.string()),
        ("request_key", pa.string()),
        ("status", pa.string()),
        ("response", pa.string()),
        ("finish_reason", pa.string()),
        ("source", pa.string()),
        ("similarity", pa.float32()),
        ("tier", pa.string()),
        ("model", pa.string()),
        ("route_score", pa.float32()),
        ("route_reason", pa.string()),
        ("escalations", pa.int32()),
        ("prompt_tokens", pa.int64()),
        ("cached_prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("cost_usd", MONEY),
        ("baseline_cost_usd", MONEY),
        ("attempts", pa.int32()),
        ("ttft_s", pa.float64()),
        ("e2e_s", pa.float64()),
        ("error_kind", pa.string()),
        ("error", pa.string()),
        ("price_version", pa.string()),
        ("run_id", pa.string()),
        ("draft_tokens", pa.int64()),
        ("accepted_tokens", pa.int64()),
        # The cached entry that a row was served, or audited against; by what rule, and in which
        # group of rows its wrong hits are counted; and how an audit ended: agree or differ.
        ("cache_entry", pa.string()),
        ("cache_rule", pa.string()),
        ("cache_group", pa.string()),
        ("cache_audit", pa.string()),
        # The tier that should have answered and could not be reached.
        ("fallback_from", pa.string()),
        # How the cheap tier's answer compares with the strong one's: worse, as_good, better.
        ("route_audit", pa.string()),
        *BEYOND_TEXT,
    ]
)
"""The contract's columns of `rows/`; the user's own columns stand before them."""

WORK = pa.struct(
    [
        ("tier", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("cached_prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        # The row's share of the replica's time.
        ("engine_ns", pa.int64()),
        # Which start of the run it was.
        ("attempt_id", pa.string()),
        # Null until the row is priced.
        ("cost_nusd", pa.int64()),
    ]
)
"""What one tier did for a row: a line of the bill."""

INTERNAL = pa.schema(
    [
        # The unit of commit this row belongs to; names its part files.
        ("_block", pa.string()),
        # The checked request as JSON; null for a row that is none.
        ("_request", pa.string()),
        # Whether one answer may serve every row with its key: a second would be the same.
        ("_shareable", pa.bool_()),
        # The row as it was read, as JSON, where the typed columns could not hold it.
        ("_raw", pa.string()),
        # All that tiers did for this row: what it pays.
        ("_work", pa.list_(WORK)),
        # Where a row stands that several tiers work on: the step of its ladder, what is asked of
        # the next tier (an answer, a grade, a check), the request that is put in place of its own,
        # and the answer that waits for a verdict.
        ("_step", pa.int32()),
        ("_turn", pa.string()),
        ("_asked", pa.string()),
        ("_parked", pa.string()),
        # What the response cache finds an answer by: its context and its question's embedding,
        # in half precision.
        ("_scope", pa.binary()),
        ("_vector", pa.binary()),
        # The answer that a row would have been served, had it not been chosen for an audit.
        ("_cached", pa.string()),
    ]
)
"""Columns that stages hand to each other and that no result file shows."""

TRAVELLING = pa.schema([*RESULT, *INTERNAL])

ERRORS = pa.schema(
    [
        ("row_id", pa.string()),
        ("error_kind", pa.string()),
        ("error", pa.string()),
        ("attempts", pa.int32()),
        ("tier", pa.string()),
        ("input", pa.string()),
        ("run_id", pa.string()),
    ]
)
"""`errors/`: what failed, why, and the row's input as JSON, which `retry` reads."""

BILL = pa.schema(
    [
        ("kind", pa.string()),
        ("row_id", pa.string()),
        ("tier", pa.string()),
        ("seconds", pa.float64()),
        ("tokens", pa.int64()),
        ("cost_nusd", pa.int64()),
        ("attempt_id", pa.string()),
        ("engine_ns", pa.int64()),
    ]
)
"""The ledger: `kind` is row, or the name of an overhead whose `row_id` is null."""


def empty_columns(rows: int) -> dict[str, pa.Array]:
    """The travelling columns of `rows` new rows, all null."""
    return {field.name: pa.nulls(rows, field.type) for field in TRAVELLING}


def user_columns(table: pa.Table) -> pa.Table:
    """The table without the columns that are ours."""
    return table.drop_columns([n for n in TRAVELLING.names if n in table.column_names])


def result_table(table: pa.Table) -> pa.Table:
    """The table as it is written to `rows/`."""
    return table.drop_columns([n for n in INTERNAL.names if n in table.column_names])


def without_views(schema: pa.Schema) -> pa.Schema:
    """The schema with plain strings and binaries for views, which Arrow cannot filter yet."""
    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    return pa.schema([pa.field(f.name, plain.get(f.type, f.type)) for f in schema])


def patch(table: pa.Table, at: Sequence[int], values: Mapping[str, Sequence[object]]) -> pa.Table:
    """A table with new values in some rows of some travelling columns.

    Args:
        at: positions of the changed rows, ascending.
        values: column -> one value per position.
    """
    if not len(at):
        return table
    everywhere = len(at) == table.num_rows
    mask = np.zeros(table.num_rows, dtype=bool)
    mask[np.asarray(at)] = True
    for name, new in values.items():
        field = TRAVELLING.field(name)
        column = new if isinstance(new, pa.Array) else pa.array(new, field.type)
        if not everywhere:
            column = _replaced(table[name].combine_chunks(), mask, column)
        table = table.set_column(table.column_names.index(name), field, column)
    return table


def rows_at(table: pa.Table, at: Sequence[int]) -> pa.Table:
    """The rows at these positions, of which there may be none: Arrow cannot tell what an empty list
    is a list of."""
    return table.take(pa.array(at, pa.int64()))


def _replaced(old: pa.Array, mask: np.ndarray, new: pa.Array) -> pa.Array:
    if not pa.types.is_nested(old.type):
        return pc.replace_with_mask(old, pa.array(mask), new)
    # Arrow replaces no lists.
    places = np.arange(len(old))
    places[mask] = len(old) + np.arange(len(new))
    return pa.concat_arrays([old, new]).take(pa.array(places))


def money(nano_dollars: Sequence[int | None]) -> pa.Array:
    """Nano-dollar integers as an exact decimal column of US dollars."""
    known = np.array([value is not None for value in nano_dollars], dtype=bool)
    low = np.array([value or 0 for value in nano_dollars], dtype=np.int64)
    words = np.empty((len(low), 2), dtype=np.int64)
    words[:, 0] = low
    words[:, 1] = low >> 63
    validity = pa.py_buffer(np.packbits(known, bitorder="little").tobytes())
    return pa.Array.from_buffers(MONEY, len(low), [validity, pa.py_buffer(words.tobytes())])


def nano_dollars(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """The inverse of `money`, with nulls as 0: int64 of shape (rows,)."""
    filled = pc.fill_null(column, pa.scalar(Decimal(0), MONEY))
    if isinstance(filled, pa.ChunkedArray):
        filled = filled.combine_chunks()
    words = np.frombuffer(filled.buffers()[1], dtype=np.int64).reshape(-1, 2)
    return words[filled.offset : filled.offset + len(filled), 0]
