"""Vectors of the response cache that were needed lately, within a bound."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

CHUNK_ROWS = 1024
_MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class VectorChunk:
    """Rows that still exist of those that were wanted, and their vectors.

    Attributes:
        rows: row ids, of shape (n,).
        vectors: float16 of shape (n, dimensions).
    """

    rows: np.ndarray
    vectors: np.ndarray


class VectorMemory:
    """Reads vectors in chunks and keeps the latest 64 MiB of them."""

    def __init__(self) -> None:
        self._chunks: OrderedDict[Any, VectorChunk] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def of(self, table: Any, wanted: Mapping[Any, np.ndarray]) -> Iterator[tuple[Any, VectorChunk]]:
        """The vectors of chunks of row ids, by the chunks' names, in any order.

        Chunks that have to be read are read several at once: small scopes have one row each.
        """
        missing: dict[Any, np.ndarray] = {}
        for name, rows in wanted.items():
            chunk = self._recent(name)
            if chunk is not None:
                yield name, chunk
                continue
            missing[name] = rows
            if sum(map(len, missing.values())) >= 8 * CHUNK_ROWS:
                yield from self._read(table, missing)
                missing = {}
        yield from self._read(table, missing)

    def _recent(self, name: Any) -> VectorChunk | None:
        with self._lock:
            if name in self._chunks:
                self._chunks.move_to_end(name)
            return self._chunks.get(name)

    def _read(
        self, table: Any, wanted: Mapping[Any, np.ndarray]
    ) -> Iterator[tuple[Any, VectorChunk]]:
        if not wanted:
            return
        ids = np.unique(np.concatenate(list(wanted.values())))
        query = table.take_row_ids(ids.tolist()).select(["vector"]).with_row_id()
        found = query.to_arrow()
        rows = found["_rowid"].to_numpy()
        flat = found["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        order = np.argsort(rows)
        rows, vectors = rows[order], flat.reshape(len(rows), -1)[order]
        for name, asked in wanted.items():
            # Removed rows are not found.
            at = np.minimum(np.searchsorted(rows, asked), len(rows) - 1)
            at = at[rows[at] == asked] if len(rows) else at[:0]
            chunk = VectorChunk(rows[at], vectors[at])
            self._keep(name, chunk)
            yield name, chunk

    def _keep(self, name: Any, chunk: VectorChunk) -> None:
        with self._lock:
            self._chunks[name] = chunk
            self._bytes += chunk.vectors.nbytes
            while self._bytes > _MAX_BYTES and len(self._chunks) > 1:
                self._bytes -= self._chunks.popitem(last=False)[1].vectors.nbytes
