"""Mending a response cache: damaged entries go, broken tables are read as far as they can be."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from actors.cache_care import build_index, tend
from actors.cache_check import damaged_rows, sound_or_none
from actors.cache_store import QUARANTINE, CacheStore, SchemaRefused
from pipelines.cache_entries import (
    ENTRY,
    NO_SCOPE,
    RESPONSES,
    VERSION_FIELD,
    entry_digest,
    first_release_digest,
)
from pipelines.config import ResponseCacheConfig

_CHUNK_ROWS = 4096
_ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class Compacted:
    """What `compact` did.

    Attributes:
        dropped: damaged entries that were removed from tables that could be read.
        brought_back: sound entries from tables that could not, or of the first release.
    """

    dropped: int
    brought_back: int


def compact(store: CacheStore, config: ResponseCacheConfig) -> Compacted:
    """Mend, bring up to date, enforce the limits, compact, prune, and build the index anew.

    Raises:
        SchemaRefused: a table is of a release that this one does not know.
    """
    dropped = sum(_cleaned(store, name) for name in store.names())
    brought_back = sum(_brought_back(store, folder) for folder in store.quarantined())
    tend(store, config)
    for name in store.question_names():
        build_index(store.open(name), anew=True)
    return Compacted(dropped, brought_back)


def _cleaned(store: CacheStore, name: str) -> int:
    """Drop a table's damaged entries, or put it into quarantine if it cannot be read."""
    if not store.is_readable(name):
        store.move_aside(name)
        return 0
    try:
        table: Any = store.open(name)
        damaged = damaged_rows(name, table)
    except SchemaRefused as refusal:
        if refusal.version != "1":
            raise
        store.move_aside(name)
        return 0
    # Damage shows in as many ways as there are readers, panics included.
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        store.move_aside(name)
        return 0
    for at in range(0, len(damaged), _ROWS_AT_ONCE):
        rows = ", ".join(map(str, damaged[at : at + _ROWS_AT_ONCE]))
        table.delete(f"_rowid IN ({rows})")
    return len(damaged)


def _brought_back(store: CacheStore, folder: str) -> int:
    """Merge what is sound of a table in quarantine, then remove that."""
    name = folder.rsplit("-", 1)[0]
    found = 0
    table = _opened(store, folder)
    if table is not None:
        for rows in _sound_rows(name, table):
            target = store.open_or_create(name, rows.schema)
            merge = target.merge_insert("request_key").when_not_matched_insert_all()
            found += merge.execute(rows).num_inserted_rows
    store.directory.remove(f"{QUARANTINE}/{folder}.lance")
    return found


def _opened(store: CacheStore, folder: str) -> Any | None:
    """The newest version of a table in quarantine that opens: newer ones are removed."""
    versions = f"{QUARANTINE}/{folder}.lance/_versions"
    while manifests := store.manifests(versions):
        try:
            table = store.open_quarantined(folder)
            table.count_rows()
            return table
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            store.directory.remove(f"{versions}/{manifests[0]}")
            store.directory.remove(f"{versions}/latest_version_hint.json")
    return None


def _sound_rows(name: str, table: Any) -> Iterator[pa.Table]:
    version = (table.schema.metadata or {}).get(VERSION_FIELD, b"").decode()
    schema = ENTRY if name == RESPONSES else table.schema
    # Row ids stand in the data files, one of which may be the broken one; offsets need none.
    rows = range(table.count_rows())
    for at in range(0, len(rows), _CHUNK_ROWS):
        entries = _readable(name, version, table, rows[at : at + _CHUNK_ROWS])
        if entries:
            keys = {entry["request_key"]: entry for entry in entries}
            sound = [{n: entry[n] for n in schema.names} for entry in keys.values()]
            yield pa.Table.from_pylist(sound, schema=schema)


def _readable(name: str, version: str, table: Any, rows: range) -> list[dict[str, Any]]:
    """The sound entries among some rows; what cannot be read together is read by halves."""
    try:
        found = table.take_offsets(list(rows)).to_arrow()
        if version == "1":
            return [_of_first_release(entry) for entry in found.to_pylist() if _was_sound(entry)]
        return [entry for entry in sound_or_none(name, found) if entry is not None]
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        if len(rows) == 1:
            return []
    half = len(rows) // 2
    return [
        *_readable(name, version, table, rows[:half]),
        *_readable(name, version, table, rows[half:]),
    ]


def _was_sound(entry: dict[str, Any]) -> bool:
    return bool(entry["digest"] == first_release_digest(entry))


def _of_first_release(entry: dict[str, Any]) -> dict[str, Any]:
    new = {**entry, "tenant": "", "scope": NO_SCOPE}
    return {**new, "digest": entry_digest(new)}
