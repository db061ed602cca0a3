"""The exact half of the recall step: rows that were answered before need no engine."""

from collections.abc import Sequence

import pyarrow as pa

from actors.response_cache import ResponseCache
from pipelines.cache_entries import CachedAnswer
from pipelines.schema import patch
from pipelines.waiting import undecided_rows


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
    columns: dict[str, Sequence[object]] = {
        **answer_columns([answer for _, answer in hits], "cache_exact"),
        "similarity": [1.0] * len(hits),
    }
    return patch(table, [row for row, _ in hits], columns)


def answer_columns(answers: Sequence[CachedAnswer], source: str) -> dict[str, list[object]]:
    """What a hit fills in, whichever way it was found."""
    return {
        "status": ["ok"] * len(answers),
        "source": [source] * len(answers),
        "response": [a.response for a in answers],
        "finish_reason": [a.finish_reason for a in answers],
        "tier": [a.tier for a in answers],
        "model": [a.model for a in answers],
        "prompt_tokens": [a.prompt_tokens for a in answers],
        "cached_prompt_tokens": [0] * len(answers),
        "completion_tokens": [a.completion_tokens for a in answers],
    }
