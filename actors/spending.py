"""What tenants have spent, day by day, in a file that outlives the service."""

import sqlite3
import threading
import time
from datetime import date
from pathlib import Path
from typing import Any

from pipelines.errors import UsageProblem

_TABLE = """
create table if not exists spending (
    tenant text not null, day text not null,
    requests integer not null, tokens integer not null, nusd integer not null,
    primary key (tenant, day)
) without rowid
"""
_CHARGES = "create table if not exists charges (id text primary key) without rowid"
_RECENT = """
create table if not exists recent (id text primary key, at real not null) without rowid
"""
_REMEMBERED_S = 900.0
_FORGET_EVERY = 4096
_ADD = """
insert into spending values (?, ?, 1, ?, ?) on conflict (tenant, day) do update
set requests = requests + 1, tokens = tokens + excluded.tokens, nusd = nusd + excluded.nusd
"""


class Spending:
    """Sums by tenant and UTC day, in SQLite.

    Every line is with the operating system before `add` returns, so that no kill of the process
    forgets one. The write-ahead log makes that tens of microseconds; a power cut may forget the
    last moments. One process writes, from
    any of its threads.
    """

    def __init__(self, path: Path) -> None:
        """Raises: UsageProblem if the file cannot be used."""
        self._lock = threading.Lock()
        self._added = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = normal")
            self._db.execute(_TABLE)
            self._db.execute(_CHARGES)
            self._db.execute(_RECENT)
        except (OSError, sqlite3.Error) as error:
            raise UsageProblem(
                f"{path}: spending cannot be kept there ({error}); serve.data_dir must be a "
                "folder that can be written"
            ) from error

    def add(self, name: str, tenant: str, day: date, tokens: int, nusd: int) -> bool:
        """Whether it was added: a name that comes again within a quarter of an hour is not."""
        now = time.time()
        self._added += 1
        if self._added % _FORGET_EVERY == 0:
            with self._lock:
                self._db.execute("delete from recent where at < ?", (now - _REMEMBERED_S,))
        told = "insert or ignore into recent values (?, ?)", (name, now)
        return self._add(told, (tenant, day.isoformat(), tokens, nusd))

    def add_once(self, charge: str, tenant: str, day: date, tokens: int, nusd: int) -> bool:
        """As `add`, but a name never counts twice."""
        told = "insert or ignore into charges values (?)", (charge,)
        return self._add(told, (tenant, day.isoformat(), tokens, nusd))

    def _add(self, told: tuple[str, tuple[Any, ...]], line: tuple[Any, ...]) -> bool:
        with self._lock, self._db:
            self._db.execute("begin immediate")
            is_new = bool(self._db.execute(*told).rowcount)
            if is_new:
                self._db.execute(_ADD, line)
        return is_new

    def spent_nusd(self, tenant: str, first: date, last: date) -> int:
        """From one day to another, both included."""
        (total,) = self._db.execute(
            "select coalesce(sum(nusd), 0) from spending where tenant = ? and day between ? and ?",
            (tenant, first.isoformat(), last.isoformat()),
        ).fetchone()
        return int(total)

    def close(self) -> None:
        self._db.close()
