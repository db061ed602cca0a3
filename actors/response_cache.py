"""The response cache: answers kept between runs, in LanceDB.

Whatever goes wrong with it is a miss: an answer that cannot be vouched for is generated again.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.config import ResponseCacheConfig, Storage
from pipelines.keys import SORTABLE, sortable

Warn = Callable[[str], None]
"""Told once what went wrong; the run goes on."""

TABLE = "responses"
SCHEMA_VERSION = "1"
_KEEP_VERSIONS = timedelta(days=7)
"""Pruning younger versions breaks readers that still hold them."""
_SERVED = ("response", "finish_reason", "prompt_tokens", "completion_tokens", "tier", "model")
_FLUSH_ROWS = 4096
_FLUSH_S = 5.0

ENTRY = pa.schema(
    [
        pa.field("request_key", pa.binary(16), nullable=False),
        ("response", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("tier", pa.string()),
        ("model", pa.string()),
        ("run_id", pa.string()),
        ("row_id", pa.string()),
        ("created_at", pa.timestamp("us", "UTC")),
        # Over the key and everything that an answer is made of; checked at every hit.
        ("digest", pa.binary(16)),
    ],
    metadata={"nightmill.response_cache": SCHEMA_VERSION},
)


@dataclass(frozen=True)
class CachedAnswer:
    """An answer that an earlier run paid for."""

    response: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    tier: str
    model: str


class ResponseCache:
    """Exact recall from what the cache held when this object was made.

    The keys are held in memory, sorted, at 25 bytes an entry; answers are read by their place.
    The table is pinned to its version, so that compaction beside it moves nothing.
    """

    def __init__(self, config: ResponseCacheConfig, storage: Storage, warn: Warn) -> None:
        self._warn = warn
        self._table: Any = None
        self._keys = np.empty(0, dtype=SORTABLE)
        self._places = np.empty(0, dtype=np.uint64)
        try:
            self._open(config, storage)
        # Whatever the storage layer raises, the run goes on without the cache.
        except Exception as error:
            self._table = None
            warn(f"response cache {config.path} is unusable, all rows miss it: {error}")

    def recall(self, keys: Sequence[str]) -> dict[str, CachedAnswer]:
        """The answers that the cache has, by hexadecimal request key."""
        if self._table is None or not keys:
            return {}
        wanted = sortable(bytes.fromhex("".join(keys)))
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        places = self._places[at[self._keys[at] == wanted]]
        if not len(places):
            return {}
        try:
            found = self._table.take_row_ids(np.unique(places).tolist()).to_arrow().to_pylist()
        except Exception as error:
            self._warn(f"response cache: reading failed, counted as misses: {error}")
            return {}
        sound = [entry for entry in found if entry["digest"] == entry_digest(entry)]
        if len(sound) < len(found):
            self._warn("response cache: damaged entries were found and not served")
        return {entry["request_key"].hex(): _answer(entry) for entry in sound}

    def _open(self, config: ResponseCacheConfig, storage: Storage) -> None:
        database = _connect(config, storage)
        if TABLE not in database.list_tables().tables:
            return
        table = database.open_table(TABLE)
        version = (table.schema.metadata or {}).get(b"nightmill.response_cache", b"").decode()
        if version != SCHEMA_VERSION:
            raise ValueError(f"it has schema {version!r}, this release reads {SCHEMA_VERSION!r}")
        table.checkout(table.version)
        if not table.count_rows():
            return
        stored = table.search().select(["request_key"]).with_row_id(True).to_arrow()
        keys = sortable(b"".join(stored["request_key"].to_pylist()))
        order = np.argsort(keys)
        self._keys, self._places = keys[order], stored["_rowid"].to_numpy()[order]
        self._table = table


class CacheWriter:
    """The one writer of a response cache. Appends in bulk; a key is written once."""

    def __init__(self, config: ResponseCacheConfig, storage: Storage, warn: Warn) -> None:
        self._config, self._storage, self._warn = config, storage, warn
        self._waiting: list[pa.Table] = []
        self._last_flush = time.monotonic()
        self._failed = False
        self._wrote = False

    def append(self, entries: pa.Table) -> None:
        """Take entries of schema `ENTRY`; they are durable after `flush`."""
        self._waiting.append(entries)
        rows = sum(table.num_rows for table in self._waiting)
        if rows >= _FLUSH_ROWS or time.monotonic() - self._last_flush > _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        if self._waiting and not self._failed:
            try:
                self._write(pa.concat_tables(self._waiting))
            except Exception as error:
                self._failed = True
                self._warn(f"response cache: writing failed, nothing new is kept: {error}")
        self._waiting = []
        self._last_flush = time.monotonic()

    def close(self) -> None:
        """Write what waits and tidy up after it."""
        self.flush()
        if self._failed or not self._wrote:
            return
        try:
            self._open().optimize(cleanup_older_than=_KEEP_VERSIONS)
        except Exception as error:
            self._warn(f"response cache: compaction failed, it stays correct: {error}")

    def _write(self, entries: pa.Table) -> None:
        # Two rows of one append may share a key; merging alone would keep both.
        first = np.unique(_hex(entries), return_index=True)[1]
        merge = self._open().merge_insert("request_key").when_not_matched_insert_all()
        self._wrote = True
        merge.execute(entries.take(pa.array(np.sort(first))))

    def _open(self) -> Any:
        database = _connect(self._config, self._storage)
        if TABLE in database.list_tables().tables:
            return database.open_table(TABLE)
        table = database.create_table(TABLE, schema=ENTRY)
        # Without a declared key, concurrent merges write duplicates.
        table.set_unenforced_primary_key("request_key")
        return table


def entry_digest(entry: dict[str, Any]) -> bytes:
    """A digest over the parts of an entry that decide what a hit serves."""
    hasher = blake2b(entry["request_key"], digest_size=16)
    for name in _SERVED:
        hasher.update(f"{name}={entry[name]}\0".encode())
    return hasher.digest()


def _connect(config: ResponseCacheConfig, storage: Storage) -> Any:
    # Its runtime threads do not survive the forks of a driver that only names this class.
    import lancedb

    options: dict[str, str] = {}
    if config.path.startswith("s3://") and storage.endpoint_url:
        options["aws_endpoint"] = storage.endpoint_url
        options["allow_http"] = str(storage.endpoint_url.startswith("http://")).lower()
    if config.path.startswith("s3://") and storage.region:
        options["aws_region"] = storage.region
    return lancedb.connect(config.path, storage_options=options)


def _hex(entries: pa.Table) -> list[str]:
    return [key.hex() for key in entries["request_key"].to_pylist()]


def _answer(entry: dict[str, Any]) -> CachedAnswer:
    return CachedAnswer(
        entry["response"],
        entry["finish_reason"],
        entry["prompt_tokens"],
        entry["completion_tokens"],
        entry["tier"],
        entry["model"],
    )
