"""What a reader of the response cache keeps in memory: which rows of its tables hold what."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from actors.cache_store import CacheStore, table_id
from pipelines.keys import KEY_BYTES, SORTABLE, sortable


class Places:
    """Names of 16 bytes and the row ids of what bears them: 25 bytes a row. Never changed."""

    def __init__(self, names: np.ndarray | None = None, rows: np.ndarray | None = None) -> None:
        self._names = np.empty(0, dtype=SORTABLE) if names is None else names
        self.rows = np.empty(0, dtype=np.uint64) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def joined(self, names: bytes, rows: np.ndarray) -> "Places":
        """These places and others, whose row ids are all higher."""
        new = sortable(names)
        order = np.lexsort((rows, new))
        new, rows = new[order], rows[order]
        if not len(self):
            return Places(new, rows)
        at = np.searchsorted(self._names, new, side="right")
        return Places(np.insert(self._names, at, new), np.insert(self.rows, at, rows))

    def ranges(self, names: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Where in `rows` each name's row ids begin and end, which ascend in between."""
        wanted = sortable(b"".join(names))
        left = np.searchsorted(self._names, wanted, side="left")
        return left, np.searchsorted(self._names, wanted, side="right")

    def distinct(self) -> int:
        return len(np.unique(self._names))


@dataclass(frozen=True)
class Look:
    """What a table shows: the rows that are new, or all of them `anew`."""

    change: Literal["same", "more", "anew"]
    names: bytes = b""
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.uint64))


class Follower:
    """Follows one table from version to version and says what its rows are called.

    Args:
        column: 16 bytes of each row, by which a reader looks for it.
    """

    def __init__(self, store: CacheStore, name: str, column: str) -> None:
        self._store, self._name, self._column = store, name, column
        self.table: Any = None
        self._seen = (b"", 0)
        self._known = 0

    def look(self) -> Look:
        """Go to the newest version.

        Entries are only ever added or removed. Where some were removed, all are listed again:
        that is rare, and costs about a second per million.
        """
        table = self._store.open(self._name)
        if table is None:
            return self._went_to(None, (b"", 0), Look("anew"))
        seen = (table_id(table), table.version)
        if seen == self._seen:
            return Look("same")
        # Pinned: what is listed now is what is read later.
        table.checkout(seen[1])
        if self.table is not None and seen[0] == self._seen[0]:
            new = self._listed(table, f"_row_created_at_version > {self._seen[1]}")
            if self._known + len(new.rows) == table.count_rows():
                return self._went_to(table, seen, new)
        return self._went_to(table, seen, self._listed(table, None))

    def forget(self) -> None:
        """Open and list everything at the next look."""
        self._seen = (b"", 0)
        self.table = None

    def _went_to(self, table: Any, seen: tuple[bytes, int], look: Look) -> Look:
        self._known = len(look.rows) + (self._known if look.change == "more" else 0)
        self.table, self._seen = table, seen
        return look

    def _listed(self, table: Any, where: str | None) -> Look:
        query = table.search().select([self._column]).with_row_id(True)
        if where is not None:
            query = query.where(where)
        stored = query.to_arrow()
        rows = stored["_rowid"].to_numpy()
        return Look("anew" if where is None else "more", _bytes(stored[self._column]), rows)


def _bytes(column: pa.ChunkedArray) -> bytes:
    if pa.types.is_fixed_size_binary(column.type):
        column = column.cast(pa.binary())
    names = bytearray()
    for chunk in column.chunks:
        offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset :][: len(chunk) + 1]
        if chunk.null_count or np.any(np.diff(offsets) != KEY_BYTES):
            raise ValueError("names of another length than 16 bytes; the table is damaged")
        names += memoryview(chunk.buffers()[2])[offsets[0] : offsets[-1]]
    return bytes(names)
