"""What of a finished block later runs may be served."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.cache_entries import (
    ENTRY,
    NO_SCOPE,
    entry_digest,
    question_digest,
    question_schema,
)
from pipelines.requests import Request
from pipelines.schema import BEYOND_TEXT

_HALF_BYTES = np.dtype(np.float16).itemsize
_ADMITTED = (
    "request_key", "status", "source", "response", "finish_reason", "prompt_tokens",
    "completion_tokens", "tier", "model", "run_id", "row_id", "_shareable", "_scope", "_vector",
    "_request",
)  # fmt: skip


def admissible(
    table: pa.Table, created_at: datetime, tenant: str | None = None
) -> tuple[pa.Table, pa.Table | None]:
    """Entries of schema `ENTRY`, and the questions of those that a similar one may find.

    Only what an engine of this run generated from a deterministic request, and only plain
    text: an entry holds nothing else, and a hit must give all that the first answer gave. An
    answer cut at its token limit is one, because its key holds the limit; but its question is
    not kept: a similar question might have been answered within it. Nor what another tier than
    the routed one answered while that was out: it is not what this policy promises.

    Args:
        tenant: the column that names it.
    """
    table = table.filter(pc.is_valid(table["response"]))
    table = table.filter(pc.is_null(table["fallback_from"]))
    for name in BEYOND_TEXT.names:
        table = table.filter(pc.is_null(table[name]))
    wanted = [*_ADMITTED, *([tenant] if tenant in table.column_names else [])]
    rows = [
        row
        for row in table.select(wanted).to_pylist()
        if row["status"] == "ok" and row["source"] == "generated" and row["_shareable"]
    ]
    entries = [_entry(row, created_at, tenant) for row in rows]
    findable = [r for r in rows if r["_vector"] is not None and r["finish_reason"] == "stop"]
    return (
        pa.Table.from_pylist(entries, schema=ENTRY),
        _questions(findable, created_at) if findable else None,
    )


def is_admissible(row: Mapping[str, Any]) -> bool:
    """Whether `admissible` keeps a row's answer."""
    plain = all(row[name] is None for name in BEYOND_TEXT.names)
    generated = row["status"] == "ok" and row["source"] == "generated"
    kept = generated and row["response"] is not None and row["fallback_from"] is None
    return bool(kept and plain and row["_shareable"])


def _entry(row: dict[str, Any], created_at: datetime, tenant: str | None) -> dict[str, Any]:
    entry = {name: row.get(name) for name in ENTRY.names}
    named = row.get(tenant) if tenant else None
    entry |= {
        "request_key": bytes.fromhex(row["request_key"]),
        "created_at": created_at,
        "tenant": "" if named is None else str(named),
        "scope": row["_scope"] or NO_SCOPE,
    }
    return {**entry, "digest": entry_digest(entry)}


def _questions(rows: list[dict[str, Any]], created_at: datetime) -> pa.Table:
    questions = []
    for row in rows:
        key, scope, vector = bytes.fromhex(row["request_key"]), row["_scope"], row["_vector"]
        text = Request.from_json(row["_request"]).last_user_text
        questions.append(
            {
                "request_key": key,
                "scope": scope,
                "question": text,
                "vector": np.frombuffer(vector, dtype=np.float16),
                "created_at": created_at,
                "digest": question_digest(key, scope, text, vector, created_at),
            }
        )
    dimensions = len(rows[0]["_vector"]) // _HALF_BYTES
    return pa.Table.from_pylist(questions, schema=question_schema(dimensions))
