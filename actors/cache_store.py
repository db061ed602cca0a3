"""Where a response cache lies: opening and creating its tables, and moving broken ones aside."""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.cache_entries import SCHEMA_VERSION, VERSION_FIELD, is_questions
from pipelines.config import ResponseCacheConfig, Storage
from pipelines.storage import Directory

Warn = Callable[[str], None]
"""Told what went wrong; the run goes on."""

KEEP_VERSIONS = timedelta(days=7)
"""Pruning younger versions breaks readers that still hold them."""
QUARANTINE = "quarantine"
_ID_FIELD = b"nightmill.table_id"
_INDEX_MEMORY = 1 << 30
_METADATA_MEMORY = 128 << 20


class SchemaRefused(ValueError):
    """A table of another release, which nobody here can vouch for."""

    def __init__(self, place: str, version: str) -> None:
        self.version = version
        super().__init__(
            f"{place} has schema {version!r}, this release has {SCHEMA_VERSION!r}. To fix: run "
            "`nightmill cache compact`, which brings a cache of schema '1' up to date, or name "
            "another path"
        )


class OneWarning:
    """Passes on the first warning of each kind: a broken cache fails at every block."""

    def __init__(self, warn: Warn) -> None:
        self._warn = warn
        self._told: set[str] = set()

    def __call__(self, kind: str, error: BaseException | str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self._warn(f"response cache: {kind}: {error}")


@contextlib.contextmanager
def survived(warn: Callable[[str, BaseException], None], kind: str) -> Iterator[None]:
    """Whatever the storage layer raises inside becomes a warning of that kind.

    On damaged files it also panics, which Python sees as a `BaseException`.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        warn(kind, error)


class CacheStore:
    """The tables of one response cache."""

    def __init__(
        self, config: ResponseCacheConfig, storage: Storage, index_memory: int = _INDEX_MEMORY
    ) -> None:
        self.path = config.path
        self._storage = storage
        self._index_memory = index_memory
        self._connection: Any = None

    @property
    def directory(self) -> Directory:
        return Directory(self.path, self._storage)

    @property
    def _database(self) -> Any:
        if self._connection is None:
            self._connection = self._connect(self.path)
        return self._connection

    def names(self) -> list[str]:
        """The tables that exist, sorted."""
        # Listing page by page: a cache may have questions of many embedders.
        found: list[str] = []
        page = self._database.list_tables()
        while True:
            found += page.tables
            if not page.page_token:
                return sorted(found)
            page = self._database.list_tables(page_token=page.page_token)

    def question_names(self) -> list[str]:
        return [name for name in self.names() if is_questions(name)]

    def open(self, name: str) -> Any | None:
        """The newest version of a table, or None if there is none.

        Raises:
            SchemaRefused: it was written by another release.
        """
        if name not in self.names():
            return None
        table = self._database.open_table(name)
        version = (table.schema.metadata or {}).get(VERSION_FIELD, b"").decode()
        if version != SCHEMA_VERSION:
            raise SchemaRefused(f"{self.path}/{name}", version)
        return table

    def open_or_create(self, name: str, schema: pa.Schema) -> Any:
        """The table `name`; of several processes that create it at once one does."""
        table = self.open(name)
        if table is not None:
            return table
        metadata = {**(schema.metadata or {}), _ID_FIELD: uuid.uuid4().hex.encode()}
        with contextlib.suppress(ValueError, OSError):
            table = self._database.create_table(
                name,
                schema=schema.with_metadata(metadata),
                # Row ids then outlive compaction, and readers may remember them.
                storage_options={
                    **self._options(),
                    "new_table_enable_stable_row_ids": "true",
                },
            )
        if table is None:
            table = self.open(name)
        if table is None:
            raise OSError(f"{self.path}/{name} could not be created")
        return table

    def is_readable(self, name: str) -> bool:
        """Whether a table opens and gives its keys."""
        if name not in self.names():
            return True
        try:
            self._connection = None
            self._database.open_table(name).search().select(["request_key"]).to_arrow()
        except (KeyboardInterrupt, SystemExit):
            raise
        # Readers of damaged files may panic.
        except BaseException:
            return False
        return True

    def works(self) -> bool:
        """Whether the place itself can be written to and read, whatever is in it."""
        name = f".probe-{uuid.uuid4().hex}"
        try:
            self.directory.write(name, b"probe")
            sound = self.directory.read(name) == b"probe"
            self.directory.remove(name)
        except Exception:
            return False
        return sound

    def move_aside(self, name: str) -> str:
        """Move a table into quarantine; returns where it is now, inside the cache's path."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        target = f"{QUARANTINE}/{name}-{stamp}.lance"
        directory = self.directory
        directory.make(QUARANTINE)
        source, there = directory.path(f"{name}.lance"), directory.path(target)
        if "://" not in self.path:
            Path(source).rename(there)
        else:
            _move_objects(directory, source, there)
        self._connection = None
        return target

    def bytes_on_disk(self, name: str) -> int:
        directory = self.directory
        return int(directory.fs.du(directory.path(f"{name}.lance")))

    def quarantined(self) -> list[str]:
        """Folders in quarantine, as `open_quarantined` takes them."""
        return [n.removesuffix(".lance") for n in self.directory.names(QUARANTINE)]

    def manifests(self, folder: str) -> list[str]:
        """The manifests in a table's folder of versions, newest first."""
        # Their names count down from 2^64 - 1, so that a listing begins with the newest.
        return [n for n in self.directory.names(folder) if n.endswith(".manifest")]

    def open_quarantined(self, folder: str) -> Any:
        return self._connect(f"{self.path}/{QUARANTINE}").open_table(folder)

    def _connect(self, path: str) -> Any:
        # Its runtime threads do not survive the forks of a driver that only names this class.
        import lancedb

        session = lancedb.Session(
            index_cache_size_bytes=self._index_memory,
            metadata_cache_size_bytes=_METADATA_MEMORY,
        )
        return lancedb.connect(path, storage_options=self._options(), session=session)

    def _options(self) -> dict[str, str]:
        options: dict[str, str] = {}
        if not self.path.startswith("s3://"):
            return options
        if self._storage.endpoint_url:
            plain = self._storage.endpoint_url.startswith("http://")
            options["aws_endpoint"] = self._storage.endpoint_url
            options["allow_http"] = str(plain).lower()
        if self._storage.region:
            options["aws_region"] = self._storage.region
        return options


def table_id(table: Any) -> bytes:
    """What tells a table from another of the same name that took its place."""
    return bytes((table.schema.metadata or {}).get(_ID_FIELD, b""))


def _move_objects(directory: Directory, source: str, target: str) -> None:
    """Move what lies below a prefix; nothing is removed before all of it is copied."""
    for file in directory.fs.find(source):
        directory.fs.cp_file(file, target + file[len(source) :])
    directory.fs.rm(source, recursive=True)
