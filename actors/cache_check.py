"""Looking at every entry of a response cache: which are sound, and what there is of what."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from actors.cache_care import index_state
from actors.cache_store import CacheStore
from actors.question_search import digest_of, half_vectors
from pipelines.cache_entries import RESPONSES, entry_digest

_BATCH_ROWS = 4096


@dataclass(frozen=True)
class TableStats:
    """One table.

    Attributes:
        damaged: rows whose digest does not fit; None where the table cannot be read.
        partitions: of the vector index, 0 if there is none.
        unindexed: rows that are searched exactly; None for answers, which need no index.
    """

    name: str
    rows: int = 0
    bytes_on_disk: int = 0
    versions: int = 0
    damaged: int | None = None
    partitions: int = 0
    unindexed: int | None = None


@dataclass
class CacheStats:
    """All of a cache; `by_*` count its answers."""

    path: str
    tables: list[TableStats] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)
    by_model: dict[str, int] = field(default_factory=dict)
    by_tier: dict[str, int] = field(default_factory=dict)
    by_tenant: dict[str, int] = field(default_factory=dict)
    oldest: datetime | None = None
    newest: datetime | None = None

    @property
    def entries(self) -> int:
        return sum(table.rows for table in self.tables if table.name == RESPONSES)

    @property
    def questions(self) -> int:
        return sum(table.rows for table in self.tables if table.name != RESPONSES)


def cache_stats(store: CacheStore) -> CacheStats:
    """Read all tables and check every digest.

    Raises:
        SchemaRefused: a table was written by another release.
    """
    stats = CacheStats(store.path, quarantined=store.quarantined())
    for name in store.names():
        if not store.is_readable(name):
            stats.tables.append(TableStats(name, bytes_on_disk=store.bytes_on_disk(name)))
            continue
        table = store.open(name)
        if name == RESPONSES:
            _count(stats, table)
        stats.tables.append(_table_stats(store, name, table))
    return stats


def damaged_rows(name: str, table: Any) -> list[int]:
    """Row ids of the entries whose digest does not fit them."""
    return [
        row
        for batch in _batches(table)
        for row, entry in zip(batch["_rowid"].to_pylist(), sound_or_none(name, batch), strict=True)
        if entry is None
    ]


def sound_or_none(name: str, rows: pa.Table) -> Iterator[dict[str, Any] | None]:
    """Each row of a table of that name, or None where its digest does not fit it."""
    if name == RESPONSES:
        for entry in rows.to_pylist():
            yield entry if entry["digest"] == entry_digest(entry) else None
        return
    vectors = half_vectors(rows["vector"])
    for entry, vector in zip(rows.drop_columns(["vector"]).to_pylist(), vectors, strict=True):
        sound = entry["digest"] == digest_of(entry, vector)
        yield {**entry, "vector": vector} if sound else None


def _table_stats(store: CacheStore, name: str, table: Any) -> TableStats:
    partitions, unindexed = index_state(table)
    try:
        damaged: int | None = len(damaged_rows(name, table))
    except Exception:
        damaged = None
    return TableStats(
        name=name,
        rows=table.count_rows(),
        bytes_on_disk=store.bytes_on_disk(name),
        versions=len(table.list_versions()),
        damaged=damaged,
        partitions=partitions,
        unindexed=None if name == RESPONSES else unindexed,
    )


def _count(stats: CacheStats, table: Any) -> None:
    counters = {"model": stats.by_model, "tier": stats.by_tier, "tenant": stats.by_tenant}
    query = table.search().select([*counters, "created_at"])
    for batch in query.to_batches(_BATCH_ROWS):
        for column, counter in counters.items():
            for name, count in Counter(batch.column(column).to_pylist()).items():
                counter[str(name)] = counter.get(str(name), 0) + count
        ends = pc.min_max(batch.column("created_at")).as_py()
        if ends["min"] is not None:
            stats.oldest = min(ends["min"], stats.oldest or ends["min"])
            stats.newest = max(ends["max"], stats.newest or ends["max"])


def _batches(table: Any) -> Iterator[pa.Table]:
    for batch in table.search().with_row_id(True).to_batches(_BATCH_ROWS):
        if batch.num_rows:
            yield pa.Table.from_batches([batch])
