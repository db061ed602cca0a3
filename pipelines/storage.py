"""Files wherever they are: local paths, s3:// and gs:// through fsspec."""

import os
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipelines.config import Storage
from pipelines.errors import UsageProblem


def open_filesystem(url: str, storage: Storage) -> tuple[AbstractFileSystem, str]:
    """The file system that a path names, and the path inside it.

    Raises:
        UsageProblem: the scheme is unknown or its driver is not installed.
    """
    try:
        fs, path = fsspec.url_to_fs(url, **_options(url, storage))
    except (ValueError, ImportError) as error:
        raise UsageProblem(
            f"{url}: cannot be opened ({error}); use a local path, s3:// or gs://"
        ) from error
    return fs, path


def _options(url: str, storage: Storage) -> dict[str, Any]:
    if url.startswith("s3://"):
        client = {"region_name": storage.region} if storage.region else {}
        return {
            "anon": storage.anonymous,
            "endpoint_url": storage.endpoint_url,
            "client_kwargs": client,
            # Listings must see parts that another process has just written.
            "use_listings_cache": False,
        }
    if url.startswith("gs://"):
        return {"token": "anon"} if storage.anonymous else {}
    return {}


class Directory:
    """A folder on any file system, with atomic writes: a file exists whole or not at all."""

    def __init__(self, url: str, storage: Storage) -> None:
        self.url = url
        self.fs, self.root = open_filesystem(url, storage)
        self._local = isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def make(self, name: str = "") -> None:
        self.fs.makedirs(self.path(name), exist_ok=True)

    def exists(self, name: str) -> bool:
        return bool(self.fs.exists(self.path(name)))

    def names(self, folder: str) -> list[str]:
        """File names directly in a folder, sorted; empty if there is no such folder."""
        if not self.fs.isdir(self.path(folder)):
            return []
        entries = self.fs.ls(self.path(folder), detail=False)
        names = (entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)
        return sorted(n for n in names if not n.startswith("."))

    def parts(self, folder: str) -> list[str]:
        """The Parquet files directly in a folder, as `folder/name`."""
        return [f"{folder}/{n}" for n in self.names(folder) if n.endswith(".parquet")]

    def read(self, name: str) -> bytes:
        return self.fs.cat_file(self.path(name))

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, or leave what was there: a reader never sees half of it."""
        if not self._local:
            self.fs.pipe_file(self.path(name), data)
            return
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless there is one; of several callers at once one succeeds.

        On object stores the check comes first, and two callers within its time both succeed.
        """
        if not self._local:
            if self.exists(name):
                return False
            self.write(name, data)
            return True
        path = Path(self.path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("xb") as file:
                file.write(data)
        except FileExistsError:
            return False
        return True

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        with self.fs.open(self.path(name), "rb") as file:
            return pq.ParquetFile(file).read(columns=columns)

    def num_rows(self, name: str) -> int:
        with self.fs.open(self.path(name), "rb") as file:
            return int(pq.read_metadata(file).num_rows)

    def write_table(self, name: str, table: pa.Table) -> None:
        sink = BytesIO()
        pq.write_table(table, sink, compression="zstd")
        self.write(name, sink.getvalue())

    def remove(self, name: str) -> None:
        if self.exists(name):
            self.fs.rm(self.path(name), recursive=True)
