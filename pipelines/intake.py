"""Read, check and key in one pass: from a planned block to typed, checked, named rows."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from fsspec import AbstractFileSystem

from pipelines import columns as user_columns
from pipelines.blocks import Block
from pipelines.config import Columns
from pipelines.errors import RowProblem
from pipelines.keys import request_key, row_id
from pipelines.reading import BadLine, Row, read_parquet, read_rows
from pipelines.requests import NESTED_FIELDS, REQUEST_FIELDS, TEXT_FIELDS, Request, check
from pipelines.schema import TRAVELLING, empty_columns, patch

# Fields of an OpenAI-batch body that cannot change an answer, and model, which is the tier.
_IGNORED_BODY_FIELDS = {"user", "metadata", "store", "service_tier", "stream", "model", "priority"}
_TEXT_MEMBERS = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/embeddings": "input",
}
"""Of an OpenAI-batch body, by url: the member that holds the text."""
_CHAT, _EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"


@dataclass(frozen=True)
class Dialect:
    """How a row of this input is to be read."""

    columns: Columns
    format: str
    ignore_model: bool
    tiers: tuple[str, ...]
    defaults: Mapping[str, Any]
    keyed_by: tuple[str, ...]

    @property
    def openai_batch(self) -> bool:
        return self.format == "openai_batch"

    @property
    def id_column(self) -> str:
        return "custom_id" if self.openai_batch else self.columns.id

    def routing_values(self, row: Row) -> dict[str, Any]:
        """What routing will look at, beside the request itself."""
        return {name: row.get(name) for name in self.keyed_by} if isinstance(row, dict) else {}

    def request(self, row: Mapping[str, Any]) -> Request | RowProblem:
        """The checked request of one row."""
        if self.openai_batch:
            return self._batch_request(row)
        fields = {name: _plain(row[name]) for name in self.columns.sampling if name in row}
        if self.format == "csv":
            fields = {name: _from_cell(name, value) for name, value in fields.items()}
        for name in NESTED_FIELDS & fields.keys():
            fields[name] = _decoded(fields[name])
        messages = _decoded(_plain(row.get(self.columns.messages)))
        return check(row.get(self.columns.prompt), messages, fields)

    def _batch_request(self, row: Mapping[str, Any]) -> Request | RowProblem:
        body = _decoded(row.get("body"))
        if not isinstance(body, dict):
            return RowProblem("invalid_row", "body must be an object")
        url = row.get("url") or _CHAT
        text = _TEXT_MEMBERS.get(url)
        if text is None:
            return RowProblem("unsupported", f"url {url!r}: only {', '.join(_TEXT_MEMBERS)}")
        known = {text, *REQUEST_FIELDS, *_IGNORED_BODY_FIELDS}
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
        if url == _CHAT:
            return check(None, body.get("messages", ()), fields, tier)
        if url == _EMBEDDINGS:
            # It says that an embedding is wanted, for a tier that would answer with text to refuse.
            fields["encoding_format"] = fields.get("encoding_format") or "float"
        return check(body.get(text), None, fields, tier)


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
    checked = [_checked(row, unfit.get(i), dialect) for i, row in enumerate(rows)]
    table = with_travelling(table, block.name, names, rows, checked, dialect, policy)
    if block.file.format == "parquet":
        return table
    bad = [i for i, request in enumerate(checked) if isinstance(request, RowProblem)]
    return patch(table, bad, {"_raw": [_raw(rows[i]) for i in bad]})


def read_again(
    table: pa.Table, name: str, inputs: Sequence[str], dialect: Dialect, policy: bytes
) -> pa.Table:
    """Rows that were read before and failed, as `read_block` would make them.

    Args:
        table: the user's columns and `row_id`.
        name: the block that the rows now form.
        inputs: the rows as JSON, as `errors/` keeps them.
    """
    names = table["row_id"].to_pylist()
    user = table.drop_columns(["row_id"])
    if dialect.format == "parquet":
        rows: Sequence[Row] = _request_columns(user, dialect)
    else:
        rows = [_as_row(json.loads(text)) for text in inputs]
    checked = [_checked(row, None, dialect) for row in rows]
    table = with_travelling(user, name, names, rows, checked, dialect, policy)
    return patch(table, range(len(rows)), {"_raw": inputs})


def with_travelling(
    table: pa.Table,
    block: str,
    row_ids: Sequence[str],
    rows: Sequence[Row],
    checked: Sequence[Request | RowProblem],
    dialect: Dialect,
    policy: bytes,
) -> pa.Table:
    """Append the travelling columns of rows that have just been checked."""
    columns = empty_columns(len(rows))
    good = [request if isinstance(request, Request) else None for request in checked]
    problems = [request if isinstance(request, RowProblem) else None for request in checked]
    texts: dict[str, list[str | None]] = {
        "row_id": list(row_ids),
        "request_key": [
            None if r is None else request_key(r, policy, dialect.routing_values(row)).hex()
            for r, row in zip(good, rows, strict=True)
        ],
        "status": [None if p is None else "error" for p in problems],
        "error_kind": [None if p is None else p.kind for p in problems],
        "error": [None if p is None else storable(p.message) for p in problems],
        "_block": [block] * len(rows),
        "_request": [None if r is None else r.to_json() for r in good],
    }
    for name, values in texts.items():
        columns[name] = pa.array(values, pa.string())
    shareable = [r is not None and r.is_deterministic(dialect.defaults) for r in good]
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
        *dialect.keyed_by, *(("body", "url") if dialect.openai_batch else ()),
    }  # fmt: skip
    selected = table.select([n for n in table.column_names if n in wanted])
    try:
        rows: list[Row] = selected.to_pylist()
    except UnicodeDecodeError:
        rows = [_parquet_row(selected.slice(i, 1)) for i in range(selected.num_rows)]
    return rows


def _parquet_row(row: pa.Table) -> Row:
    try:
        return row.to_pylist()[0]
    except UnicodeDecodeError as error:
        return BadLine("", RowProblem("invalid_row", f"is no valid UTF-8 ({error})"))


def id_text(value: Any) -> str | None:
    """A row's own id, or None if it brings none that can be stored."""
    if value is None or value == "" or isinstance(value, dict | list):
        return None
    text = str(value)
    return text if text.isascii() or _is_storable(text) else None


def storable(text: str) -> str:
    """The text with what is no valid Unicode written out as escapes."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


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
        except (ValueError, RecursionError):
            return value
    return value


def _from_cell(name: str, value: Any) -> Any:
    """A CSV cell as the number or structure that its field needs; left alone if it is none."""
    if not isinstance(value, str):
        return value
    if name in TEXT_FIELDS:
        return _decoded(value)
    for read in (json.loads, float, lambda text: json.loads(text.lower())):
        try:
            return read(value)
        except (ValueError, RecursionError):
            continue
    return value
