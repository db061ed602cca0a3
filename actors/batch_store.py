"""Files and batches of tenants, in folders that survive every process."""

import json
import re
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import IO, Any, TypeVar

from pipelines.batch_api import (
    ENDED,
    BatchRequest,
    BatchState,
    StoredFile,
    batch_object,
    new_id,
)
from pipelines.storage import Directory

_TENANTS = "tenants"
_NOBODY = "_"
"""The folder of requests without a tenant; no tenant may be called so."""
_ID = re.compile(r"(file|batch)-[0-9a-f]{24}")
_COPY_BYTES = 1 << 20

Listed = TypeVar("Listed", StoredFile, BatchRequest)


class TooLarge(Exception):
    """An upload is larger than it may be."""


class TenantFolder:
    """One tenant's files and batches. There is no way from it to another tenant's.

    A file exists once its `file.json` does, a batch once its `batch.json` does: what a kill left
    half written was never there.
    """

    def __init__(self, data: Directory, tenant: str | None) -> None:
        self._data, self.tenant = data, tenant
        self._root = f"{_TENANTS}/{tenant or _NOBODY}"

    def add_file(
        self, content: IO[bytes], filename: str, purpose: str, max_bytes: int | None = None
    ) -> StoredFile:
        """Raises: TooLarge."""
        file_id = new_id("file")
        self._data.make(f"{self._root}/files/{file_id}")
        with self._data.fs.open(self._content(file_id), "wb") as target:
            size = 0
            while chunk := content.read(_COPY_BYTES):
                size += len(chunk)
                if max_bytes is not None and size > max_bytes:
                    break
                target.write(chunk)
        if max_bytes is not None and size > max_bytes:
            self._data.remove(f"{self._root}/files/{file_id}")
            raise TooLarge
        file = StoredFile(file_id, filename, purpose, size, int(time.time()))
        self._write(f"files/{file_id}/file.json", asdict(file))
        return file

    def file(self, file_id: str) -> StoredFile | None:
        raw = self._read("files", file_id, "file.json")
        return StoredFile(**json.loads(raw)) if raw is not None else None

    def open_file(self, file: StoredFile) -> IO[bytes]:
        content: IO[bytes] = self._data.fs.open(self._content(file.id), "rb")
        return content

    def remove_file(self, file: StoredFile) -> None:
        self._data.remove(f"{self._root}/files/{file.id}/file.json")
        self._data.remove(f"{self._root}/files/{file.id}")

    def files(self) -> list[StoredFile]:
        """Newest first."""
        names = self._data.names(f"{self._root}/files")
        return _newest_first(file for name in names if (file := self.file(name)))

    def add_batch(
        self, endpoint: str, input_file_id: str, metadata: dict[str, str] | None
    ) -> BatchRequest:
        """Raises: ValueError if its metadata state a budget that is none."""
        batch = BatchRequest(new_id("batch"), endpoint, input_file_id, int(time.time()), metadata)
        _ = batch.budget_nusd
        self._write(f"batches/{batch.id}/batch.json", asdict(batch))
        return batch

    def batch(self, batch_id: str) -> BatchRequest | None:
        raw = self._read("batches", batch_id, "batch.json")
        return BatchRequest(**json.loads(raw)) if raw is not None else None

    def batch_ids(self) -> list[str]:
        return self._data.names(f"{self._root}/batches")

    def batches(self) -> list[BatchRequest]:
        """Newest first."""
        return _newest_first(batch for name in self.batch_ids() if (batch := self.batch(name)))

    def state(self, batch: BatchRequest) -> BatchState:
        raw = self._read("batches", batch.id, "state.json")
        return BatchState.from_json(raw) if raw is not None else BatchState()

    def set_state(self, batch: BatchRequest, state: BatchState) -> None:
        self._data.write(f"{self._root}/batches/{batch.id}/state.json", state.to_json())

    def cancel(self, batch: BatchRequest) -> None:
        """Ask for an end; who runs the batch sees to it."""
        if self.state(batch).status not in ENDED:
            name = f"{self._root}/batches/{batch.id}/cancel.json"
            self._data.create(name, json.dumps({"at": int(time.time())}).encode())

    def cancelling_at(self, batch: BatchRequest) -> int | None:
        raw = self._read("batches", batch.id, "cancel.json")
        return int(json.loads(raw)["at"]) if raw else None

    def as_object(self, batch: BatchRequest) -> dict[str, Any]:
        return batch_object(batch, self.state(batch), self.cancelling_at(batch))

    def work_folder(self, batch: BatchRequest) -> str:
        """Where the batch's job has its input and output."""
        return f"{self._root}/batches/{batch.id}"

    def _content(self, file_id: str) -> str:
        return self._data.path(f"{self._root}/files/{file_id}/content")

    def _read(self, kind: str, name: str, file: str) -> bytes | None:
        # Anything else, such as `../..`, is the id of nothing.
        path = f"{self._root}/{kind}/{name}/{file}"
        if not _ID.fullmatch(name) or not self._data.exists(path):
            return None
        return self._data.read(path)

    def _write(self, name: str, value: dict[str, Any]) -> None:
        self._data.write(f"{self._root}/{name}", json.dumps(value).encode())


def tenant_folders(data: Directory) -> list[TenantFolder]:
    """Of all tenants that have ever stored something."""
    names = data.names(_TENANTS)
    return [TenantFolder(data, None if name == _NOBODY else name) for name in names]


def copy_lines(source: Iterable[bytes], target: IO[bytes]) -> int:
    """Write lines; returns how many."""
    count = 0
    for line in source:
        target.write(line)
        count += 1
    return count


def _newest_first(found: Iterable[Listed]) -> list[Listed]:
    return sorted(found, key=lambda item: (item.created_at, item.id), reverse=True)
