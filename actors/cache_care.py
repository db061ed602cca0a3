"""Care for the tables of a response cache: limits, index, compaction, removal."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from actors.cache_store import KEEP_VERSIONS, CacheStore
from pipelines.cache_entries import RESPONSES
from pipelines.cache_index import (
    index_name,
    index_partitions,
    index_work,
    wanted_partitions,
)
from pipelines.config import ResponseCacheConfig

_KEYS_AT_ONCE = 4096
_SAMPLES_PER_PARTITION = 64
_TRAINING_ROUNDS = 10


@dataclass(frozen=True)
class Selection:
    """Which entries are meant: those that fulfil every condition that is given.

    Attributes:
        entry: a hexadecimal request key.
        created_before: answers that are older than this moment.
    """

    entry: str | None = None
    run: str | None = None
    model: str | None = None
    tenant: str | None = None
    created_before: datetime | None = None

    def where(self) -> str:
        """The condition in LanceDB's SQL; that of no condition is true."""
        conditions = [
            f"{column} = '{_quoted(value)}'"
            for column, value in (
                ("run_id", self.run),
                ("model", self.model),
                ("tenant", self.tenant),
            )
            if value is not None
        ]
        if self.entry is not None:
            conditions.append(f"request_key = X'{bytes.fromhex(self.entry).hex()}'")
        if self.created_before is not None:
            conditions.append(_older(self.created_before))
        return " AND ".join(conditions) or "true"


@dataclass(frozen=True)
class Removed:
    """How many answers and questions were removed, or would be."""

    entries: int
    questions: int


def purge(store: CacheStore, selection: Selection, dry_run: bool = False) -> Removed:
    """Remove entries from all tables, questions first: none may lead to what is gone."""
    where = selection.where()
    responses = store.open(RESPONSES)
    keys = []
    if responses is not None:
        keys = responses.search().where(where).select(["request_key"]).to_arrow()["request_key"]
        keys = keys.to_pylist()
    questions = 0
    for name in store.question_names():
        table = store.open(name)
        # Questions without an answer go along where the condition can be asked of them.
        everything = (
            where == "true"
            or where
            == Selection(entry=selection.entry, created_before=selection.created_before).where()
        )
        wheres = [where] if everything else _key_conditions(keys)
        questions += sum(_delete(table, condition, dry_run) for condition in wheres)
    if responses is not None and not dry_run:
        responses.delete(where)
    return Removed(len(keys), questions)


def tend(store: CacheStore, config: ResponseCacheConfig) -> None:
    """What a writer does now and then: limits, index, compaction, pruning of old versions."""
    enforce_limits(store, config)
    for name in [RESPONSES, *store.question_names()]:
        table = store.open(name)
        if table is None:
            continue
        if name != RESPONSES:
            build_index(table)
        # Also extends the index by what came since.
        table.optimize(cleanup_older_than=KEEP_VERSIONS)


def enforce_limits(store: CacheStore, config: ResponseCacheConfig) -> Removed:
    """Remove answers that are too old, and the oldest ones above `max_entries`."""
    removed = Removed(0, 0)
    if config.ttl_days is not None:
        removed = purge(store, expired(config.ttl_days))
    responses = store.open(RESPONSES)
    if responses is None or config.max_entries is None:
        return removed
    surplus = responses.count_rows() - config.max_entries
    if surplus <= 0:
        return removed
    stored = responses.search().select(["request_key", "created_at"]).to_arrow()
    order = np.argsort(stored["created_at"].to_numpy(), kind="stable")[:surplus]
    keys = stored["request_key"].take(order).to_pylist()
    return Removed(removed.entries + surplus, removed.questions + remove_keys(store, keys))


def expired(ttl_days: float) -> Selection:
    return Selection(created_before=datetime.now(UTC) - timedelta(days=ttl_days))


def remove_keys(store: CacheStore, keys: Sequence[bytes]) -> int:
    """Remove entries by key from all tables; returns how many questions went."""
    questions = 0
    for name in [*store.question_names(), RESPONSES]:
        table = store.open(name)
        gone = sum(_delete(table, where, dry_run=False) for where in _key_conditions(keys))
        questions += gone if name != RESPONSES else 0
    return questions


def build_index(table: Any, anew: bool = False) -> bool:
    """Build the index of a table of questions if it is due; returns whether it was."""
    from lancedb.index import IvfSq

    partitions, unindexed = index_state(table)
    rows = table.count_rows()
    work = index_work(rows, partitions, unindexed)
    if work != "build" and not (anew and partitions):
        return False
    wanted = wanted_partitions(rows)
    config = IvfSq(
        distance_type="l2",
        num_partitions=wanted,
        sample_rate=_SAMPLES_PER_PARTITION,
        max_iterations=_TRAINING_ROUNDS,
    )
    table.create_index("vector", config=config, name=index_name(wanted), replace=True)
    if partitions and partitions != wanted:
        table.drop_index(index_name(partitions))
    return True


def index_state(table: Any) -> tuple[int, int]:
    """Partitions of a table's index, 0 without one, and the rows that it lacks."""
    for index in table.list_indices():
        if partitions := index_partitions(index.name):
            return partitions, index.num_unindexed_rows or 0
    return 0, table.count_rows()


def _key_conditions(keys: Sequence[bytes]) -> Iterable[str]:
    for at in range(0, len(keys), _KEYS_AT_ONCE):
        some = ", ".join(f"X'{key.hex()}'" for key in keys[at : at + _KEYS_AT_ONCE])
        yield f"request_key IN ({some})"


def _delete(table: Any, where: str, dry_run: bool) -> int:
    found = int(table.count_rows(where))
    # Deleting nothing would make a version of its own.
    if found and not dry_run:
        table.delete(where)
    return found


def _older(moment: datetime) -> str:
    return f"created_at < to_timestamp_micros({round(moment.timestamp() * 1_000_000)})"


def _quoted(text: str) -> str:
    return text.replace("'", "''")
