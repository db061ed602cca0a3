"""Entries and questions for tests of the response cache."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from actors.cache_writer import CacheWriter
from actors.response_cache import ResponseCache
from pipelines.cache_entries import (
    ENTRY,
    NO_SCOPE,
    entry_digest,
    question_digest,
    question_schema,
)
from pipelines.config import ResponseCacheConfig, Storage

KEYS = [f"{i:032x}" for i in range(300)]
NOW = datetime(2026, 11, 24, tzinfo=UTC)
REVISION = "0123456789ab"
SCOPE, OTHER_SCOPE = b"s" * 16, b"t" * 16
DIMENSIONS = 32


def entries(
    keys: list[str], response: str = "answer", created_at: datetime = NOW, **fields: Any
) -> pa.Table:
    rows = []
    for key in keys:
        row: dict[str, Any] = dict.fromkeys(ENTRY.names)
        row |= {
            "request_key": bytes.fromhex(key),
            "response": f"{response} {key}",
            "finish_reason": "stop",
            "prompt_tokens": 7,
            "completion_tokens": 3,
            "tier": "only",
            "model": "m",
            "tenant": "",
            "scope": NO_SCOPE,
            "created_at": created_at,
            **fields,
        }
        rows.append({**row, "digest": entry_digest(row)})
    return pa.Table.from_pylist(rows, schema=ENTRY)


def questions(
    keys: list[str],
    vectors: np.ndarray,
    scope: bytes = SCOPE,
    created_at: datetime = NOW,
) -> pa.Table:
    """A question for each key; `vectors` of shape (keys, dimensions), each of length 1."""
    rows = []
    for key, vector in zip(keys, vectors.astype(np.float16), strict=True):
        raw, text = bytes.fromhex(key), f"question {key}"
        rows.append(
            {
                "request_key": raw,
                "scope": scope,
                "question": text,
                "vector": vector,
                "created_at": created_at,
                "digest": question_digest(raw, scope, text, vector.tobytes(), created_at),
            }
        )
    return pa.Table.from_pylist(rows, schema=question_schema(vectors.shape[1]))


def unit_vectors(rows: int, seed: int = 0, dimensions: int = DIMENSIONS) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dimensions), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def filled(
    config: ResponseCacheConfig,
    warnings: list[str],
    *tables: pa.Table | tuple[pa.Table, pa.Table],
    storage: Storage | None = None,
) -> None:
    """Write entries, or entries with questions, as one writer does from start to end."""
    writer = CacheWriter(config, storage or Storage(), warnings.append, REVISION)
    for part in tables:
        writer.append(*(part if isinstance(part, tuple) else (part,)))
    writer.close()


def opened(
    config: ResponseCacheConfig, warnings: list[str], storage: Storage | None = None
) -> ResponseCache:
    return ResponseCache(config, storage or Storage(), warnings.append, REVISION)
