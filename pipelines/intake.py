"""Read, check and key in one pass: from a planned block to typed, checked, named rows."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipelines import columns as user_columns
from pipelines.config import Columns
from pipelines.errors import RowProblem, UsageProblem
from pipelines.keys import KEY_BYTES, digest, request_key, row_id
from pipelines.requests import REQUEST_FIELDS, Request, check
from pipelines.schema import TRAVELLING, empty_columns
from pipelines.sources import BadLine, Block, InputFile, Row, read_parquet, read_rows

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
    openai_batch: bool
    ignore_model: bool
    tiers: tuple[str, ...]
    defaults: Mapping[str, Any]

    @property
    def id_column(self) -> str:
        return "custom_id" if self.openai_batch else self.columns.id

    def request(self, row: Mapping[str, Any], text_cells: bool) -> Request | RowProblem:
        """The checked request of one row. `text_cells`: its values are CSV cells."""
        if self.openai_batch:
            return self._batch_request(row)
        fields = {name: _plain(row[name]) for name in REQUEST_FIELDS if name in row}
        if text_cells:
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


@dataclass(frozen=True)
class Scan:
    """What reading a block before the run tells: column types, and the ids' digests."""

    votes: dict[str, user_columns.Vote]
    ids: np.ndarray


def scan_block(block: Block, dialect: Dialect, fs: AbstractFileSystem) -> Scan:
    """Look at a block of a text file before anything is spent."""
    rows = [row for row in read_rows(block, fs) if isinstance(row, dict)]
    ids = _id_digests(rows, dialect.id_column)
    if block.file.format == "csv":
        # CSV cells are text, and text they stay: a guess could change what they say.
        return Scan({name: pa.string() for row in rows[:1] for name in row}, ids)
    return Scan(user_columns.votes(rows, dialect.columns), ids)


def scan_parquet_ids(file: InputFile, column: str, fs: AbstractFileSystem) -> np.ndarray:
    """Digests of the ids of a Parquet file that has an id column."""
    with fs.open(file.path, "rb") as source:
        batches = pq.ParquetFile(source).iter_batches(columns=[column])
        return np.concatenate(
            [_id_digests(batch.to_pylist(), column) for batch in batches] or [_no_ids()]
        )


def duplicates(digests: Iterable[np.ndarray]) -> np.ndarray:
    """The digests that occur more than once: shape (n,), dtype S17."""
    ordered = np.sort(np.concatenate([*digests, _no_ids()]))
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def rows_with_ids(
    block: Block, dialect: Dialect, wanted: np.ndarray, fs: AbstractFileSystem
) -> list[tuple[str, int]]:
    """(id, ordinal) of the block's rows whose id is among the digests, for an error message."""
    rows = _as_dicts(block, fs)
    found = []
    for offset, row in enumerate(rows):
        given = _id_text(row.get(dialect.id_column)) if isinstance(row, dict) else None
        if given is not None and np.isin(_padded(digest(given.encode())), wanted).item():
            found.append((given, block.first_row + offset))
    return found


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
    return _with_travelling(table, rows, unfit, block, dialect, policy)


def _with_travelling(
    table: pa.Table,
    rows: Sequence[Row],
    unfit: Mapping[int, str],
    block: Block,
    dialect: Dialect,
    policy: bytes,
) -> pa.Table:
    names: dict[str, list[Any]] = {
        name: [None] * len(rows)
        for name in ("row_id", "request_key", "status", "error_kind", "error", "_request", "_raw")
    }
    shareable = [False] * len(rows)
    text_cells = block.file.format == "csv"
    for i, row in enumerate(rows):
        given = row.get(dialect.id_column) if isinstance(row, dict) else None
        names["row_id"][i] = _id_text(given) or row_id(block.file.path, block.first_row + i)
        request = _checked(row, unfit.get(i), dialect, text_cells)
        if isinstance(request, Request):
            names["_request"][i] = request.to_json()
            names["request_key"][i] = request_key(request, policy).hex()
            shareable[i] = request.is_deterministic(dialect.defaults)
        else:
            names["status"][i] = "error"
            names["error_kind"][i], names["error"][i] = request.kind, request.message
            if block.file.format != "parquet":
                names["_raw"][i] = json.dumps(row.text if isinstance(row, BadLine) else row)
    columns = empty_columns(len(rows))
    for name, values in names.items():
        columns[name] = pa.array(values, pa.string())
    columns["_shareable"] = pa.array(shareable)
    columns["_block"] = pa.array([block.name] * len(rows), pa.string())
    for field in TRAVELLING:
        table = table.append_column(field, columns[field.name])
    return table


def _checked(
    row: Row, unfit: str | None, dialect: Dialect, text_cells: bool
) -> Request | RowProblem:
    if isinstance(row, BadLine):
        return row.problem
    request = dialect.request(row, text_cells)
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


def _as_dicts(block: Block, fs: AbstractFileSystem) -> list[Row]:
    if block.file.format == "parquet":
        return read_parquet(block, fs).to_pylist()
    return read_rows(block, fs)


def _id_text(value: Any) -> str | None:
    if value is None or isinstance(value, dict | list):
        return None
    text = str(value)
    return text if text.isascii() or _is_storable(text) else None


def _is_storable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _id_digests(rows: Iterable[Mapping[str, Any]], column: str) -> np.ndarray:
    texts = (_id_text(row.get(column)) for row in rows)
    found = [_padded(digest(text.encode())) for text in texts if text is not None]
    return np.array(found, dtype=_no_ids().dtype)


def _no_ids() -> np.ndarray:
    return np.empty(0, dtype=f"S{KEY_BYTES + 1}")


def _padded(key: bytes) -> bytes:
    """NumPy strips zero bytes from the end of strings; one more byte keeps them apart."""
    return key + b"\1"


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


def check_columns(schema: pa.Schema, dialect: Dialect) -> None:
    """Refuse an input whose columns cannot work.

    Raises:
        UsageProblem: no request column, or a column that results also have.
    """
    names = schema.names
    needed = (
        ["body"] if dialect.openai_batch else [dialect.columns.prompt, dialect.columns.messages]
    )
    if not set(needed) & set(names):
        raise UsageProblem(
            f"input: no column {' or '.join(needed)}; there are {', '.join(names) or 'none'}. "
            "To fix: set input.columns.prompt or input.columns.messages to one of them"
        )
    if clash := [name for name in names if name in TRAVELLING.names]:
        raise UsageProblem(
            f"input: columns {', '.join(clash)} have names that the results use; rename them"
        )
