"""The writer of a response cache: bulk appends, and care for the tables in the background."""

import threading
import time

import numpy as np
import pyarrow as pa

from actors.cache_care import tend
from actors.cache_store import CacheStore, OneWarning, SchemaRefused, Warn, survived
from pipelines.cache_entries import ENTRY, RESPONSES, questions_table
from pipelines.config import ResponseCacheConfig, Storage

_FLUSH_ROWS = 4096
_FLUSH_S = 5.0
_TEND_ROWS = 100_000
_TEND_FLUSHES = 64
_GIVE_UP_AFTER = 3
_INDEX_MEMORY = 64 << 20


class CacheWriter:
    """Appends in bulk; a key is written once, also where other processes write the same.

    No trouble reaches the caller: it costs the entries of a flush and one warning. A table that
    cannot be read any more is moved into quarantine, so that a new one may start.

    Args:
        revision: 12 hexadecimal digits that name the embedder whose questions are appended.
    """

    def __init__(
        self, config: ResponseCacheConfig, storage: Storage, warn: Warn, revision: str = ""
    ) -> None:
        self._config, self._storage, self._revision = config, storage, revision
        self._warn = OneWarning(warn)
        self._store = CacheStore(config, storage, _INDEX_MEMORY)
        self._entries: list[pa.Table] = []
        self._questions: list[pa.Table] = []
        self._last_flush = time.monotonic()
        self._failures = 0
        self._untended_rows = self._untended_flushes = 0
        self._tending: threading.Thread | None = None

    def append(self, entries: pa.Table, questions: pa.Table | None = None) -> None:
        """Take entries of schema `ENTRY` and questions of `question_schema`.

        They are durable after `flush`.
        """
        self._entries.append(entries)
        if questions is not None and questions.num_rows:
            self._questions.append(questions)
        rows = sum(table.num_rows for table in self._entries)
        if rows >= _FLUSH_ROWS or time.monotonic() - self._last_flush > _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write what waits; the answers first, so that no question is found without one."""
        waiting = {RESPONSES: self._entries}
        if self._questions:
            waiting[questions_table(self._revision)] = self._questions
        self._entries, self._questions = [], []
        self._last_flush = time.monotonic()
        if not waiting[RESPONSES] or self._failures >= _GIVE_UP_AFTER:
            return
        tables = {name: pa.concat_tables(parts) for name, parts in waiting.items()}
        problems = self._problems(tables)
        if problems and self._moved_aside(list(tables)):
            problems = self._problems(tables)
        if problems:
            self._warn("writing failed, what was to be written is not kept", problems[0])
            self._failures += 1
        else:
            self._failures = 0
            self._tend_now_and_then(tables[RESPONSES].num_rows)

    def close(self) -> None:
        """Write what waits and tidy up after it."""
        self.flush()
        if self._tending is not None:
            self._tending.join()
        if self._untended_flushes:
            self._tend()

    def _problems(self, tables: dict[str, pa.Table]) -> list[str]:
        """Write; what hindered it, if anything did. Writing again what was written is harmless."""
        problems: list[str] = []
        with survived(lambda _, error: problems.append(str(error)), ""):
            for name, rows in tables.items():
                self._merge(name, rows)
        return problems

    def _merge(self, name: str, rows: pa.Table) -> None:
        schema = ENTRY if name == RESPONSES else rows.schema
        table = self._store.open_or_create(name, schema)
        # Two rows of one append may share a key; merging alone would keep both.
        keys = np.array(rows["request_key"].to_pylist(), dtype=object)
        first = np.sort(np.unique(keys, return_index=True)[1])
        merge = table.merge_insert("request_key").when_not_matched_insert_all()
        merge.execute(rows.take(pa.array(first)))

    def _moved_aside(self, names: list[str]) -> bool:
        """Whether a table was broken and is out of the way now.

        A place that is out of reach breaks no table: where the place itself does not work,
        or the table can be read at a second look, nothing moves.
        """
        moved = False
        with survived(self._warn, "a broken table could not be moved into quarantine"):
            for name in names:
                if self._is_broken(name):
                    target = self._store.move_aside(name)
                    moved = True
                    self._warn(
                        f"{name} cannot be read and was moved to {target}, a new one starts",
                        "`nightmill cache compact` brings back what is sound",
                    )
        return moved

    def _is_broken(self, name: str) -> bool:
        try:
            self._store.open(name)
        except SchemaRefused:
            return False
        except Exception:
            # Whatever it is, the next looks tell.
            pass
        if not self._store.works():
            return False
        return not any(self._store.is_readable(name) for _ in range(2))

    def _tend_now_and_then(self, rows: int) -> None:
        self._untended_rows += rows
        self._untended_flushes += 1
        due = self._untended_rows >= _TEND_ROWS or self._untended_flushes >= _TEND_FLUSHES
        if due and (self._tending is None or not self._tending.is_alive()):
            self._untended_rows = self._untended_flushes = 0
            self._tending = threading.Thread(target=self._tend, daemon=True)
            self._tending.start()

    def _tend(self) -> None:
        with survived(self._warn, "its care failed, it stays correct"):
            tend(CacheStore(self._config, self._storage, _INDEX_MEMORY), self._config)
