"""What outputs tell of their partitions, and the removal of those that were kept long enough.

An output's own `summary.json` proves that its partition was answered. `nightly.json` beside it
proves that a nightly run made it, of which partition and when: nothing else is ever removed.
"""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta

from jobs.run_state import Lock
from jobs.summary import load_summary
from pipelines.commit import STATE
from pipelines.config import Input, RunConfig
from pipelines.errors import Busy, UsageProblem
from pipelines.nightly import (
    Evidence,
    InputFileSeen,
    Judged,
    Partition,
    daily_partitions,
    file_partitions,
    judge,
)
from pipelines.nightly_config import ByDate, Nightly
from pipelines.path_template import fixed_folder
from pipelines.sources import file_version, find_files
from pipelines.storage import Directory, open_filesystem

_MARK = "nightly.json"
_REMOVED = ("rows", "errors", "bill.parquet", "recompute.parquet", "report.html", "resolved.yaml")
"""All that runs write but their summary, which goes on proving that they were."""


@dataclass(frozen=True)
class Mark:
    """Whose output this is. `of` is the template of `output.path`; `begun_at` is UTC."""

    of: str
    partition: str
    begun_at: str
    version: str | None = None


def look(config: RunConfig, now: datetime, until: date | None = None) -> list[Judged]:
    """Where every partition stands whose time has come, oldest first."""
    partitions = _partitions(config, now, until)
    return judge(partitions, {p.name: _evidence(config, p) for p in partitions}, now)


def mark(config: RunConfig, partition: Partition, now: datetime) -> None:
    """Note in an output that it is this nightly's; what was noted first stays.

    Raises:
        UsageProblem: the output belongs to something else.
    """
    directory = Directory(partition.output, config.storage)
    found = _mark_of(directory)
    if found is None and directory.names(""):
        raise UsageProblem(
            f"output.path: {partition.output}: holds files that no nightly run made; remove them, "
            "or let output.path lead elsewhere"
        )
    if found is not None and not _made(config, partition, found):
        raise UsageProblem(
            f"output.path: {partition.output}: is the output of {found.partition} of {found.of}; "
            "let output.path lead elsewhere"
        )
    if found is None or found.version != partition.version:
        noted = Mark(config.output.path, partition.name, now.isoformat(), partition.version)
        directory.write(_MARK, json.dumps(asdict(noted)).encode())


def outdated(config: RunConfig, judged: list[Judged], now: datetime) -> list[Partition]:
    """The answered partitions whose outputs were kept for `keep_days`, and can be removed."""
    nightly = _section(config)
    if nightly.keep_days is None:
        return []
    before = now - timedelta(days=nightly.keep_days)
    return [
        item.partition
        for item in judged
        if item.standing in ("answered", "changed") and _is_outdated(config, item.partition, before)
    ]


def remove(config: RunConfig, partition: Partition) -> bool:
    """Remove an output but for its summary and mark; False if somebody works in it."""
    directory = Directory(partition.output, config.storage)
    try:
        with Lock(directory).held():
            for name in _REMOVED:
                directory.remove(name)
            state = [name for name in directory.names(STATE) if name != "lock.json"]
            for name in state:
                directory.remove(f"{STATE}/{name}")
    except Busy:
        return False
    return True


def _is_outdated(config: RunConfig, partition: Partition, before: datetime) -> bool:
    directory = Directory(partition.output, config.storage)
    found = _mark_of(directory)
    if found is None or not _made(config, partition, found):
        return False
    left = any(directory.exists(name) for name in _REMOVED)
    return left and datetime.fromisoformat(found.begun_at) < before


def _made(config: RunConfig, partition: Partition, found: Mark) -> bool:
    return (found.of, found.partition) == (config.output.path, partition.name)


def _mark_of(directory: Directory) -> Mark | None:
    if not directory.exists(_MARK):
        return None
    try:
        return Mark(**json.loads(directory.read(_MARK)))
    except (ValueError, TypeError) as error:
        raise UsageProblem(f"{directory.url}/{_MARK}: cannot be read ({error})") from error


def _partitions(config: RunConfig, now: datetime, until: date | None) -> list[Partition]:
    by = _section(config).partitions
    if isinstance(by, ByDate):
        return list(daily_partitions(by, config.input.path, config.output.path, now, until))
    if until is not None:
        raise UsageProblem("nightly --until: needs nightly.partitions by date")
    return list(file_partitions(by, config.output.path, _files(config), now))


def _section(config: RunConfig) -> Nightly:
    assert config.nightly is not None
    return config.nightly


def _files(config: RunConfig) -> list[InputFileSeen]:
    """The files below `input.path`; none if nothing is there yet."""
    fs, root = open_filesystem(config.input.path, config.storage)
    if not _present(config, config.input.path):
        return []
    folder = fixed_glob(root) if any(c in root for c in "*?[") else root.rstrip("/")
    return [
        InputFileSeen(
            file.path.removeprefix(folder).strip("/"),
            fs.unstrip_protocol(file.path) if "://" in config.input.path else file.path,
            fs.modified(file.path).astimezone(UTC),
            file_version(file, fs),
        )
        for file in find_files(config.input, config.storage)
    ]


def fixed_glob(root: str) -> str:
    """The folder before the first wildcard."""
    head = root[: min(root.index(c) for c in "*?[" if c in root)]
    return head.rpartition("/")[0]


def _evidence(config: RunConfig, partition: Partition) -> Evidence:
    directory = Directory(partition.output, config.storage)
    summary = load_summary(directory)
    found = _mark_of(directory)
    return Evidence(
        present=_present(config, partition.input),
        answered=summary is not None and not summary.pending,
        answered_version=found.version if found else None,
    )


def _present(config: RunConfig, path: str) -> bool:
    """Whether there is any file to read; unknown formats are for the run to complain about."""
    fs, root = open_filesystem(path, config.storage)
    if any(c in root for c in "*?["):
        return any(fs.isfile(p) for p in fs.glob(root))
    return bool(fs.find(root))


def lock_directory(config: RunConfig) -> Directory:
    """Where two nightlies of one output meet."""
    return Directory(fixed_folder(config.output.path), config.storage)


def config_of(config: RunConfig, partition: Partition) -> RunConfig:
    """The run that answers a partition."""
    source: Input = config.input.model_copy(update={"path": partition.input})
    output = config.output.model_copy(update={"path": partition.output})
    return config.model_copy(update={"input": source, "output": output, "nightly": None})
