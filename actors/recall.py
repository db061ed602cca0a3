"""The recall step: rows that the response cache can answer need no engine."""

from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from actors.response_cache import ResponseCache
from pipelines.cache_entries import ENTRY, NO_SCOPE, CachedAnswer, entry_digest
from pipelines.schema import BEYOND_TEXT, patch
from pipelines.waiting import undecided_rows

_ADMITTED = (
    "request_key", "status", "source", "response", "finish_reason", "prompt_tokens",
    "completion_tokens", "tier", "model", "run_id", "row_id", "_shareable",
)  # fmt: skip


def recall_rows(table: pa.Table, cache: ResponseCache) -> pa.Table:
    """Answer from the cache what it has for deterministic rows."""
    candidates = undecided_rows(table)
    if not candidates:
        return table
    keys = table["request_key"].take(candidates).to_pylist()
    found = cache.recall(keys)
    if not found:
        return table
    shareable = table["_shareable"].to_pylist()
    hits = [
        (row, found[key])
        for row, key in zip(candidates, keys, strict=True)
        if key in found and shareable[row]
    ]
    return patch(table, [row for row, _ in hits], _columns([answer for _, answer in hits]))


def admissible(table: pa.Table, created_at: datetime) -> pa.Table:
    """Entries for the answers that later runs may be served: of schema `ENTRY`.

    Only what an engine of this run generated from a deterministic request, and only plain
    text: an entry holds nothing else, and a hit must give all that the first answer gave. An
    answer cut at its token limit is one: its key holds the limit.
    """
    table = table.filter(pc.is_valid(table["response"]))
    for name in BEYOND_TEXT.names:
        table = table.filter(pc.is_null(table[name]))
    rows = [
        row
        for row in table.select(_ADMITTED).to_pylist()
        if row["status"] == "ok" and row["source"] == "generated" and row["_shareable"]
    ]
    entries = []
    for row in rows:
        entry = {name: row.get(name) for name in ENTRY.names}
        entry["request_key"] = bytes.fromhex(row["request_key"])
        entry |= {"created_at": created_at, "tenant": "", "scope": NO_SCOPE}
        entries.append({**entry, "digest": entry_digest(entry)})
    return pa.Table.from_pylist(entries, schema=ENTRY)


def _columns(answers: list[CachedAnswer]) -> dict[str, list[object]]:
    return {
        "status": ["ok"] * len(answers),
        "source": ["cache_exact"] * len(answers),
        "similarity": [1.0] * len(answers),
        "response": [a.response for a in answers],
        "finish_reason": [a.finish_reason for a in answers],
        "tier": [a.tier for a in answers],
        "model": [a.model for a in answers],
        "prompt_tokens": [a.prompt_tokens for a in answers],
        "cached_prompt_tokens": [0] * len(answers),
        "completion_tokens": [a.completion_tokens for a in answers],
    }
