"""The user's columns: inferring their types over a whole text input, and filling them.

A column's type must be known before the first block flows, because every part has the same
schema. Where values agree on no Arrow type the column is carried as JSON text, which loses
nothing.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa

from pipelines.config import Columns
from pipelines.errors import RowProblem
from pipelines.requests import check

JSON_TEXT = {b"nightmill": b"json"}
_JSON_FIELD_TYPE = "json"
Vote: TypeAlias = Any
"""An Arrow type, or `_JSON_FIELD_TYPE`."""
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_FIELD_TYPES: Mapping[str, Vote] = {
    "stop": pa.string(),
    "logprobs": pa.int64(),
    "response_format": _JSON_FIELD_TYPE,
    "tools": _JSON_FIELD_TYPE,
    "tool_choice": _JSON_FIELD_TYPE,
    **dict.fromkeys(
        ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty"), pa.float64()
    ),
    "repetition_penalty": pa.float64(),
}


def votes(rows: Sequence[Mapping[str, Any]], columns: Columns) -> dict[str, Vote]:
    """The type that these rows suggest for each of their columns.

    A request column takes the type that valid rows need: one malformed row must not turn the
    prompts of all others into JSON text.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _vote(name, rows, columns) for name in names}


def merge(votes_seen: Iterable[Mapping[str, Vote]]) -> pa.Schema:
    """The schema that holds all blocks, columns in order of first appearance."""
    merged: dict[str, Vote] = {}
    for vote in votes_seen:
        for name, kind in vote.items():
            merged[name] = _unified(merged[name], kind) if name in merged else kind
    return pa.schema([_field(name, kind) for name, kind in merged.items()])


def fill(field: pa.Field, values: Sequence[Any]) -> tuple[pa.Array, list[int]]:
    """A column of these values, and the positions of those that it cannot hold (null there)."""
    if field.metadata == JSON_TEXT:
        values = [None if value is None else json.dumps(value) for value in values]
    try:
        return pa.array(values, field.type), []
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError):
        pass
    kept: list[Any] = []
    for value in values:
        try:
            pa.array([value], field.type)
            kept.append(value)
        except (pa.ArrowException, UnicodeError, OverflowError, TypeError):
            kept.append(None)
    bad = [i for i, value in enumerate(kept) if value is None and values[i] is not None]
    return pa.array(kept, field.type), bad


def _vote(name: str, rows: Sequence[Mapping[str, Any]], columns: Columns) -> Vote:
    values = [row[name] for row in rows if row.get(name) is not None]
    if name == columns.prompt:
        return pa.string()
    if name == columns.messages:
        return _messages_vote(values)
    if name in columns.sampling:
        expected = _FIELD_TYPES.get(name, pa.int64())
        return _sampling_vote(name, values, expected)
    return _inferred(values)


def _messages_vote(values: Sequence[Any]) -> Vote:
    unusual = (v for v in values if not _is_plain_chat(v))
    if any(not isinstance(v, str) and _is_valid(messages=v) for v in unusual):
        return _JSON_FIELD_TYPE
    return _MESSAGES


def _is_plain_chat(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(turn, dict)
        and turn.keys() == {"role", "content"}
        and isinstance(turn["content"], str)
        for turn in value
    )


def _sampling_vote(name: str, values: Sequence[Any], expected: Vote) -> Vote:
    if isinstance(expected, str):
        return expected
    field = pa.field(name, expected)
    _, bad = fill(field, values)
    if any(_is_valid(fields={name: values[i]}) for i in bad):
        return _JSON_FIELD_TYPE
    return expected


def _is_valid(messages: Any = None, fields: Mapping[str, Any] | None = None) -> bool:
    prompt = "any" if messages is None else None
    return not isinstance(check(prompt, messages, fields or {}), RowProblem)


def _inferred(values: Sequence[Any]) -> Vote:
    if not values:
        return pa.null()
    try:
        kind = pa.array(values).type
        return _JSON_FIELD_TYPE if _has_empty_struct(kind) else kind
    except UnicodeError:
        return pa.string()
    except (pa.ArrowException, OverflowError, TypeError):
        return _JSON_FIELD_TYPE


def _has_empty_struct(kind: pa.DataType) -> bool:
    """Parquet has no structs without members."""
    if pa.types.is_struct(kind) and kind.num_fields == 0:
        return True
    return any(_has_empty_struct(kind.field(i).type) for i in range(kind.num_fields))


def _unified(a: Vote, b: Vote) -> Vote:
    if isinstance(a, str) or isinstance(b, str):
        return _JSON_FIELD_TYPE
    try:
        schemas = [pa.schema([("x", a)]), pa.schema([("x", b)])]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return _JSON_FIELD_TYPE


def _field(name: str, kind: Vote) -> pa.Field:
    if isinstance(kind, str):
        return pa.field(name, pa.string(), metadata=JSON_TEXT)
    if pa.types.is_null(kind):
        return pa.field(name, pa.string())
    return pa.field(name, kind)
