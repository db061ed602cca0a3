"""Finding similar questions: what is searched exactly, what through the index, and the proof.

Both ways only propose rows. Every proposed row is read, its digest checked and its similarity
computed again from the very vector that the digest covers.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from actors.cache_places import Follower, Places
from actors.cache_store import CacheStore, OneWarning
from actors.vector_memory import CHUNK_ROWS, VectorMemory
from pipelines.cache_entries import Candidate, question_digest
from pipelines.cache_index import EXACT_ROWS, PROBES, index_partitions

_EXACT_AT_MOST = 8 * EXACT_ROWS
_AT_ONCE = 128
_SLACK = 0.02
"""Both ways' similarities are approximate: half precision, or 8 bits in the index."""


@dataclass(frozen=True)
class _Proposals:
    """Queries, the rows that may be similar to them, and about how similar: of equal lengths."""

    queries: np.ndarray
    rows: np.ndarray
    similarity: np.ndarray


class QuestionSearch:
    """The questions of one embedder's revision, as of the last `refresh`."""

    def __init__(self, store: CacheStore, name: str, warn: OneWarning) -> None:
        self._follower = Follower(store, name, "scope")
        self._warn = warn
        self._scopes = Places()
        self._vectors = VectorMemory()
        self._tail_from = 0
        self._indexed = False

    @property
    def entries(self) -> int:
        return len(self._scopes)

    def refresh(self) -> None:
        """Raises whatever the storage layer raises."""
        look = self._follower.look()
        if look.change == "same":
            return
        if look.change == "anew":
            self._scopes = Places()
            self._vectors = VectorMemory()
        self._scopes = self._scopes.joined(look.names, look.rows)
        self._indexed, self._tail_from = False, 0
        if self._follower.table is not None:
            self._see_index(self._follower.table)

    def forget(self) -> None:
        self._follower.forget()
        self._scopes = Places()

    def nearest(
        self,
        scopes: Sequence[bytes],
        vectors: np.ndarray,
        at_least: float,
        limit: int,
        oldest: datetime | None,
    ) -> list[list[Candidate]]:
        """See `ResponseCache.nearest`; raises whatever the storage layer raises."""
        table = self._follower.table
        begin, end = self._scopes.ranges(scopes)
        asked: dict[tuple[int, int], list[int]] = defaultdict(list)
        for query in np.flatnonzero(end > begin):
            asked[int(begin[query]), int(end[query])].append(int(query))
        if table is None or not asked:
            return [[] for _ in scopes]
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        found = self._scanned(table, asked, vectors, at_least - _SLACK)
        for (first, last), queries in asked.items():
            if self._indexed and last - first > EXACT_ROWS:
                where = f"scope = X'{bytes(scopes[queries[0]]).hex()}'"
                whole = 2 * (last - first) > self.entries
                found.append(_searched(table, None if whole else where, queries, vectors, limit))
        best = _best(found, at_least - _SLACK, 2 * limit + 8)
        return _proven(table, best, scopes, vectors, at_least, limit, oldest)

    def _scanned(
        self,
        table: Any,
        asked: dict[tuple[int, int], list[int]],
        vectors: np.ndarray,
        at_least: float,
    ) -> list[_Proposals]:
        """Every row of a small scope, and of a big one those that the index lacks."""
        chunks: dict[tuple[int, ...], np.ndarray] = {}
        askers: dict[tuple[int, ...], list[int]] = {}
        for (first, last), queries in asked.items():
            rows = self._unindexed(self._scopes.rows[first:last])
            for at in range(0, len(rows), CHUNK_ROWS):
                part = rows[at : at + CHUNK_ROWS]
                name = (int(part[0]), int(part[-1]), len(part))
                chunks[name], askers[name] = part, queries
        found = []
        for name, chunk in self._vectors.of(table, chunks):
            some = np.array(askers[name])
            similarity = vectors[some] @ chunk.vectors.astype(np.float32).T
            q, r = np.nonzero(similarity >= at_least)
            found.append(_Proposals(some[q], chunk.rows[r], similarity[q, r]))
        return found

    def _unindexed(self, rows: np.ndarray) -> np.ndarray:
        if len(rows) <= EXACT_ROWS:
            return rows
        if self._indexed:
            return rows[np.searchsorted(rows, self._tail_from) :]
        if len(rows) > _EXACT_AT_MOST:
            self._warn(
                "searching without an index",
                f"only the newest {_EXACT_AT_MOST} entries of a context are searched; "
                "`nightmill cache compact` builds one",
            )
        return rows[-_EXACT_AT_MOST:]

    def _see_index(self, table: Any) -> None:
        """Row ids ascend with time and the index takes in all there is: the tail is the newest."""
        for index in table.list_indices():
            if index_partitions(index.name):
                tail = min(index.num_unindexed_rows or 0, self.entries)
                rows = self._scopes.rows
                self._indexed = True
                self._tail_from = int(rows.max()) + 1 if len(rows) else 0
                if tail:
                    self._tail_from = int(np.partition(rows, -tail)[-tail])


def _searched(
    table: Any, where: str | None, queries: list[int], vectors: np.ndarray, limit: int
) -> _Proposals:
    """The index's nearest rows of each query.

    A scope that is most of its table is searched without the filter, which would list its
    rows anew for every query; rows of other scopes fall away in the proof.
    """
    parts = []
    for at in range(0, len(queries), _AT_ONCE):
        some = queries[at : at + _AT_ONCE]
        search = (
            table.search([*vectors[some]], vector_column_name="vector")
            .distance_type("l2")
            .fast_search()
            .nprobes(PROBES)
            .limit(4 * limit + 8)
            .select(["_distance"])
            .with_row_id(True)
        )
        found = (search if where is None else search.where(where, prefilter=True)).to_arrow()
        # One query alone comes back without its number.
        number = np.zeros(found.num_rows, dtype=np.int64)
        if "query_index" in found.column_names:
            number = found["query_index"].to_numpy()
        # Vectors have length 1: their squared distance is 2 - 2 x cosine.
        similarity = 1 - found["_distance"].to_numpy() / 2
        parts.append(_Proposals(np.array(some)[number], found["_rowid"].to_numpy(), similarity))
    return _joined(parts)


def _best(found: list[_Proposals], at_least: float, limit: int) -> _Proposals:
    """The `limit` most similar proposals of each query that reach `at_least`."""
    every = _joined(found)
    order = np.lexsort((-every.similarity, every.queries))
    order = order[every.similarity[order] >= at_least]
    queries = every.queries[order]
    rank = np.arange(len(order)) - np.searchsorted(queries, queries, side="left")
    order = order[rank < limit]
    return _Proposals(every.queries[order], every.rows[order], every.similarity[order])


def _joined(parts: list[_Proposals]) -> _Proposals:
    if not parts:
        return _Proposals(np.empty(0, np.int64), np.empty(0, np.uint64), np.empty(0, np.float32))
    return _Proposals(
        np.concatenate([part.queries for part in parts]),
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.similarity for part in parts]),
    )


def _proven(
    table: Any,
    proposed: _Proposals,
    scopes: Sequence[bytes],
    vectors: np.ndarray,
    at_least: float,
    limit: int,
    oldest: datetime | None,
) -> list[list[Candidate]]:
    candidates: list[list[Candidate]] = [[] for _ in scopes]
    stored = _stored(table, np.unique(proposed.rows))
    for query, row in zip(proposed.queries.tolist(), proposed.rows.tolist(), strict=True):
        entry = stored.get(row)
        if entry is None or entry["scope"] != scopes[query]:
            continue
        if oldest is not None and entry["created_at"] < oldest:
            continue
        similarity = float(vectors[query] @ entry["vector"].astype(np.float32))
        if similarity >= at_least:
            key = entry["request_key"].hex()
            candidates[query].append(Candidate(key, similarity, entry["question"]))
    for some in candidates:
        some.sort(key=lambda candidate: -candidate.similarity)
    return [list(dict.fromkeys(some))[:limit] for some in candidates]


def _stored(table: Any, rows: np.ndarray) -> dict[int, dict[str, Any]]:
    """The sound ones among some rows, by row id, each vector as an array of float16."""
    if not len(rows):
        return {}
    found = table.take_row_ids(rows.tolist()).with_row_id().to_arrow()
    vectors = half_vectors(found["vector"])
    entries = found.drop_columns(["vector"]).to_pylist()
    return {
        entry["_rowid"]: {**entry, "vector": vector}
        for entry, vector in zip(entries, vectors, strict=True)
        if entry["digest"] == digest_of(entry, vector)
    }


def digest_of(entry: dict[str, Any], vector: np.ndarray) -> bytes:
    return question_digest(
        entry["request_key"],
        entry["scope"],
        entry["question"],
        vector.tobytes(),
        entry["created_at"],
    )


def half_vectors(column: pa.ChunkedArray) -> np.ndarray:
    """A column of vectors as float16 of shape (rows, dimensions)."""
    flat = column.combine_chunks().flatten()
    return flat.to_numpy(zero_copy_only=False).reshape(len(column), -1)
