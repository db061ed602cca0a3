"""Read, check and key in one pass: from a planned block to typed, checked, named rows."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from fsspec import AbstractFileSystem

from pipelines import columns as user_columns
from pipelines.config import Columns
from pipelines.errors import RowProblem
from pipelines.keys import request_key, row_id
from pipelines.requests import REQUEST_FIELDS, Request, check
from pipelines.schema import TRAVELLING, empty_columns
from pipelines.sources import BadLine, Block, Row, read_parquet, read_rows

# Fields of an OpenAI-batch body that cannot change an answer.
_IGNORED_BODY_FIELDS = {"user", "metadata", "store", "service_tier", "stream", "model"}
_NUMBERS = {
    field: int if field in {"max_tokens", "max_completion_tokens", "min_tokens"} else float
    for field in REQUEST_FIELDS
    if field not in {"stop", "response_format", "tools", "tool_choice"}
}


@dataclass(frozen=True)
class Dialect:
    """How a row of this input is to be read."""

    columns: Columns
    format: str
    ignore_model: bool
    tiers: tuple[str, ...]
    defaults: Mapping[str, Any]

    @property
    def openai_batch(self) -> bool:
        return self.format == "openai_batch"

    @property
    def id_column(self) -> str:
        return "custom_id" if self.openai_batch else self.columns.id

    def request(self, row: Mapping[str, Any]) -> Request | RowProblem:
        """The checked request of one row."""
        if self.openai_batch:
            return self._batch_request(row)
        fields = {name: _plain(row[name]) for name in self.columns.sampling if name in row}
        if self.format == "csv":
            fields = {name: _from_cell(name, value) for name, value in fields.items()}
        messages = _decoded(_plain(row.get(self.columns.messages)))
        return check(row.get(self.columns.prompt), messages, fields)

    def _batch_request(self, row: Mapping[str, Any]) -> Request | RowProblem:
        body = _decoded(row.get("body"))
        if not isinstance(body, dict):
            return RowProblem("invalid_row", "body must be an object")
        url = row.get("url")
        if url not in (None, "/v1/chat/completions", "/v1/completions"):
            return RowProblem("unsupported", f"url {url!r}: only chat and completions are answered")
        known = {"messages", "prompt", *REQUEST_FIELDS, *_IGNORED_BODY_FIELDS}
        if unknown := sorted(body.keys() - known):
            return RowProblem("unsupported", f"body.{unknown[0]} is not supported")
        model = body.get("model")
        if model is not None and model not in ("auto", *self.tiers) and not self.ignore_model:
            return RowProblem(
                "invalid_request",
                f"body.model {model!r} is no tier; use auto or one of {list(self.tiers)}, "
                "or set input.ignore_model: true to route every row",
            )
        fields = {name: body[name] for name in REQUEST_FIELDS if name in body}
        tier = model if model in self.tiers else None
        return check(body.get("prompt"), body.get("messages"), fields, tier)


def read_block(
    block: Block, dialect: Dialect, schema: pa.Schema, policy: bytes, fs: AbstractFileSystem
) -> pa.Table:
    """The block's rows with the user's columns as `schema`, then the travelling columns.

    A bad row has `status` error with its reason; every other row has a request and its key.
    """
    if block.file.format == "parquet":
        table = _cast(read_parquet(block, fs), schema)
        rows: Sequence[Row] = _request_columns(table, dialect)
        unfit: dict[int, str] = {}
    else:
        rows = read_rows(block, fs)
        table, unfit = _typed(rows, schema)
    names = [
        (isinstance(row, dict) and id_text(row.get(dialect.id_column)))
        or row_id(block.file.path, block.first_row + i)
        for i, row in enumerate(rows)
    ]
    raws = None if block.file.format == "parquet" else [_raw(row) for row in rows]
    requests = [_checked(row, unfit.get(i), dialect) for i, row in enumerate(rows)]
    return with_travelling(table, block.name, names, requests, raws, dialect.defaults, policy)


def read_again(
    table: pa.Table, name: str, inputs: Sequence[str], dialect: Dialect, policy: bytes
) -> pa.Table:
    """Rows that were read before and failed, as `read_block` would make them.

    Args:
        table: the user's columns and `row_id`.
        name: the block that the rows now form.
        inputs: the rows as JSON, as `errors/` keeps them.
    """
    rows = [json.loads(text) for text in inputs]
    requests = [_checked(_as_row(row), None, dialect) for row in rows]
    names = table["row_id"].to_pylist()
    user = table.drop_columns(["row_id"])
    return with_travelling(user, name, names, requests, inputs, dialect.defaults, policy)


def with_travelling(
    table: pa.Table,
    block: str,
    row_ids: Sequence[str],
    requests: Sequence[Request | RowProblem],
    raws: Sequence[str] | None,
    defaults: Mapping[str, Any],
    policy: bytes,
) -> pa.Table:
    """Append the travelling columns of rows that have just been checked.

    Args:
        raws: the rows as JSON, kept for those that are bad; None if `table` holds them whole.
    """
    columns = empty_columns(len(requests))
    good = [request if isinstance(request, Request) else None for request in requests]
    problems = [request if isinstance(request, RowProblem) else None for request in requests]
    texts: dict[str, list[str | None]] = {
        "row_id": list(row_ids),
        "request_key": [None if r is None else request_key(r, policy).hex() for r in good],
        "status": [None if p is None else "error" for p in problems],
        "error_kind": [None if p is None else p.kind for p in problems],
        "error": [None if p is None else p.message for p in problems],
        "_block": [block] * len(requests),
        "_request": [None if r is None else r.to_json() for r in good],
    }
    if raws is not None:
        kept = zip(problems, raws, strict=True)
        texts["_raw"] = [None if p is None else raw for p, raw in kept]
    for name, values in texts.items():
        columns[name] = pa.array(values, pa.string())
    shareable = [r is not None and r.is_deterministic(defaults) for r in good]
    columns["_shareable"] = pa.array(shareable, pa.bool_())
    for field in TRAVELLING:
        table = table.append_column(field, columns[field.name])
    return table


def _raw(row: Row) -> str:
    return json.dumps(row.text if isinstance(row, BadLine) else row)


def _as_row(value: Any) -> Row:
    """The inverse of `_raw`."""
    if isinstance(value, dict):
        return value
    return BadLine(str(value), RowProblem("invalid_row", "the line is no JSON object"))


def _checked(row: Row, unfit: str | None, dialect: Dialect) -> Request | RowProblem:
    if isinstance(row, BadLine):
        return row.problem
    request = dialect.request(row)
    if isinstance(request, Request) and unfit is not None:
        return RowProblem("invalid_row", f"column {unfit}: the value cannot be stored as text")
    return request


def _typed(rows: Sequence[Row], schema: pa.Schema) -> tuple[pa.Table, dict[int, str]]:
    """The user's columns of text rows, and which rows hold a value that no column can."""
    unfit: dict[int, str] = {}
    arrays = []
    for field in schema:
        values = [row.get(field.name) if isinstance(row, dict) else None for row in rows]
        array, bad = user_columns.fill(field, values)
        unfit.update((i, field.name) for i in bad)
        arrays.append(array)
    if not arrays:
        return pa.table({"_": pa.nulls(len(rows))}).drop_columns(["_"]), unfit
    return pa.Table.from_arrays(arrays, schema=schema), unfit


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Files of one input may order their columns differently or lack some."""
    arrays = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _request_columns(table: pa.Table, dialect: Dialect) -> list[Row]:
    wanted = {
        dialect.id_column, dialect.columns.prompt, dialect.columns.messages, *REQUEST_FIELDS,
        *(("body", "url") if dialect.openai_batch else ()),
    }  # fmt: skip
    return table.select([n for n in table.column_names if n in wanted]).to_pylist()


def id_text(value: Any) -> str | None:
    """A row's own id, or None if it brings none that can be stored."""
    if value is None or value == "" or isinstance(value, dict | list):
        return None
    text = str(value)
    return text if text.isascii() or _is_storable(text) else None


def _is_storable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _plain(value: Any) -> Any:
    """A value without what Parquet adds to it: NaN for null, null members of structs."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value


def _decoded(value: Any) -> Any:
    """JSON text in place of a nested value, as CSV and flat Parquet files hold it."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _from_cell(name: str, value: Any) -> Any:
    """A CSV cell as the number or structure that its field needs; left alone if it is none."""
    if not isinstance(value, str):
        return value
    if name in _NUMBERS:
        try:
            return _NUMBERS[name](value)
        except ValueError:
            return value
    return _decoded(value)
