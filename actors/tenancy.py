"""The tenants' file: says who asks, is read again when it changes, and is changed safely."""

import fcntl
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pipelines.errors import UsageProblem
from pipelines.tenants import (
    KeyEntry,
    TenantFile,
    TenantLimits,
    bearer,
    dump_tenants,
    is_key_of,
    key_id,
    parse_tenants,
)

logger = logging.getLogger(__name__)

_NOBODY = KeyEntry(id="0" * 8, blake2b="0" * 64, created=datetime.min)


@dataclass(frozen=True)
class Identity:
    """Whose key it was."""

    tenant: str
    key_id: str
    admin: bool


class Tenants:
    """Knows tenants by their keys.

    The file is looked at with every question, which costs microseconds: a new key, a revoked one
    or another limit holds from the next request on, in every process that has one of these. A
    file that cannot be read or understood is logged, and what it said before goes on.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises: UsageProblem if the file cannot be used to begin with."""
        self._path = Path(path).expanduser()
        self._seen = self._version()
        self._file = read_tenants(self._path)
        self._keys = self._file.by_key_id()

    def authenticate(self, authorization: str | None) -> Identity | None:
        """Who sends this Authorization header; None if nobody known does."""
        self._reload()
        key = bearer(authorization)
        if key is None:
            return None
        name, entry = self._keys.get(key_id(key) or "", ("", _NOBODY))
        # The hash is computed for unknown ids too: time does not tell which ids exist.
        if not is_key_of(key, entry) or not name:
            return None
        return Identity(name, entry.id, self._file.tenants[name].admin)

    def limits(self, tenant: str) -> TenantLimits:
        self._reload()
        found = self._file.tenants.get(tenant)
        return found.limits if found else TenantLimits()

    def _reload(self) -> None:
        version = self._version()
        if version == self._seen:
            return
        self._seen = version
        try:
            self._file = read_tenants(self._path)
        except UsageProblem as problem:
            logger.error("%s; what it said before goes on", problem)
            return
        self._keys = self._file.by_key_id()

    def _version(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino, stat.st_size


def read_tenants(path: Path) -> TenantFile:
    """Raises: UsageProblem naming the file and the remedy."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageProblem(
            f"{path}: cannot be read ({error}); make the first key with `nightmill key new`"
        ) from error
    return parse_tenants(text, str(path))


def change_tenants(path: Path, change: Callable[[TenantFile], TenantFile]) -> None:
    """Replace the file by a changed one, atomically; its mode is 0600.

    Raises:
        UsageProblem: it cannot be read or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            old = read_tenants(path) if path.exists() else TenantFile()
            _replace(path, dump_tenants(change(old)))
    except OSError as error:
        raise UsageProblem(f"{path}: cannot be written ({error})") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _replace(path: Path, text: str) -> None:
    # Made with mode 0600.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
