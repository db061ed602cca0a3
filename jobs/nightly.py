"""Nightly runs: what is due, one after the other, and what follows."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from typing import Any

from jobs.batch import run
from jobs.calibrated import ensure_calibrated
from jobs.nightly_outputs import config_of, lock_directory, look, mark, outdated, remove
from jobs.preflight import check_config
from jobs.run_state import Lock
from jobs.summary import Summary
from jobs.webhook import post
from pipelines.commit import STATE
from pipelines.config import RunConfig
from pipelines.errors import (
    EXIT_BUDGET,
    EXIT_ERRORS,
    EXIT_FAILED,
    EXIT_OK,
    Busy,
    RunFailure,
    UsageProblem,
)
from pipelines.nightly import Judged, Partition
from pipelines.path_template import check_templates

_NOW_RUNNING = f"{STATE}/running.json"
Clock = Callable[[], datetime]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Answered:
    """One partition's run. `summary` is None where it failed, and `trouble` says why."""

    partition: str
    output: str
    exit_code: int
    summary: dict[str, Any] | None = None
    trouble: str | None = None


@dataclass
class Report:
    """What one call found and did. `busy` says who else is at it; then nothing was done.

    `left` are due partitions that were not begun.
    """

    runs: list[Answered] = field(default_factory=list)
    due: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    busy: str | None = None
    dry_run: bool = False

    @property
    def exit_code(self) -> int:
        codes = {answered.exit_code for answered in self.runs}
        if self.late or self.changed:
            codes.add(EXIT_FAILED)
        worst_first = (EXIT_FAILED, EXIT_BUDGET, EXIT_ERRORS)
        return next((code for code in worst_first if code in codes), EXIT_OK)

    @property
    def text(self) -> str:
        """A line for people who only watch that all is well."""
        parts = [f"{len(self.runs)} answered or tried, exit code {self.exit_code}"]
        for answered in self.runs:
            parts.append(f"{answered.partition}: {_told(answered)}")
        for name in ("left", "waiting", "late", "changed", "removed", "warnings"):
            if listed := getattr(self, name):
                parts.append(f"{name}: {', '.join(listed)}")
        return "nightmill nightly: " + "; ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "exit_code": self.exit_code}


def nightly(
    config: RunConfig,
    clock: Clock,
    until: date | None = None,
    dry_run: bool = False,
    say: Say = lambda _: None,
    divert_stderr: bool = False,
) -> Report:
    """Answer every due partition, oldest first; then compact, remove what is old, and tell.

    A call while another one is at work does nothing and says so.

    Raises:
        UsageProblem: the configuration cannot be used; nothing was done.
    """
    check_templates(config)
    check_config(config, clock().date())
    if dry_run:
        judged = look(config, clock(), until)
        report = _found(judged)
        report.dry_run, report.left = True, list(report.due)
        report.removed = [p.output for p in outdated(config, judged, clock())]
        return report
    with ExitStack() as stack:
        try:
            stack.enter_context(Lock(lock_directory(config)).held())
        except Busy as busy:
            return Report(busy=f"{_running(config)}: {busy}")
        return _work(config, clock, until, say, divert_stderr)


def _work(
    config: RunConfig, clock: Clock, until: date | None, say: Say, divert_stderr: bool
) -> Report:
    judged = look(config, clock(), until)
    report = _found(judged)
    assert config.nightly is not None
    for item in judged:
        if item.standing != "due":
            continue
        say(f"{item.partition.name}: {item.partition.input} -> {item.partition.output}")
        with _announced(config, item.partition):
            answered = _answer(config, item.partition, clock(), divert_stderr)
        report.runs.append(answered)
        say(f"{item.partition.name}: {_told(answered)}")
        if answered.exit_code == EXIT_BUDGET or (
            answered.exit_code == EXIT_FAILED and config.nightly.after_failure == "stop"
        ):
            break
    tried = {answered.partition for answered in report.runs}
    report.left = [name for name in report.due if name not in tried]
    _follow_up(config, report, clock, until)
    return report


def _found(judged: list[Judged]) -> Report:
    def those(*standings: str) -> list[str]:
        return [item.partition.name for item in judged if item.standing in standings]

    return Report(
        due=those("due"),
        waiting=those("waiting", "blocked"),
        late=those("late"),
        changed=those("changed"),
    )


def _answer(
    config: RunConfig, partition: Partition, now: datetime, divert_stderr: bool
) -> Answered:
    """Run a partition; what stops it is its own result, since others may follow."""
    one = config_of(config, partition)
    try:
        mark(config, partition, now)
        ensure_calibrated(one, divert_stderr)
        summary: Summary = run(one, divert_stderr=divert_stderr)
    except (UsageProblem, RunFailure) as problem:
        return Answered(partition.name, partition.output, EXIT_FAILED, trouble=str(problem))
    return Answered(partition.name, partition.output, summary.exit_code, asdict(summary))


def _told(answered: Answered) -> str:
    if answered.summary is None:
        return f"failed: {answered.trouble}"
    s = answered.summary
    return (
        f"{s['ok']:,} of {s['rows']:,} rows answered, {s['errors']:,} errors, "
        f"{s['pending']:,} pending, ${s['bill_usd']:.6f}"
    )


def _follow_up(config: RunConfig, report: Report, clock: Clock, until: date | None) -> None:
    """What comes after the runs. None of it can make an answered night fail."""
    nightly = config.nightly
    assert nightly is not None
    if report.runs and nightly.compact_cache:
        report.warnings += _compacted(config)
    for partition in outdated(config, look(config, clock(), until), clock()):
        if remove(config, partition):
            report.removed.append(partition.output)
        else:
            report.warnings.append(f"{partition.output}: is in use and was not removed")
    # A call that found nothing to do has nothing to tell.
    if nightly.webhook and (report.runs or report.late or report.changed):
        trouble = post(nightly.webhook, {"text": report.text, "nightly": report.as_dict()})
        if trouble:
            report.warnings.append(f"webhook: {trouble}")


def _compacted(config: RunConfig) -> list[str]:
    cache = config.cache_in_use
    if cache is None:
        return []
    from actors.cache_repair import compact
    from actors.cache_store import CacheStore

    try:
        compact(CacheStore(cache, config.storage), cache)
    except (UsageProblem, RunFailure, RuntimeError, ValueError, OSError) as error:
        return [f"response cache {cache.path}: could not be compacted ({error})"]
    return []


@contextmanager
def _announced(config: RunConfig, partition: Partition) -> Iterator[None]:
    """Say beside the lock what is being answered, for calls that come meanwhile."""
    directory = lock_directory(config)
    directory.write(_NOW_RUNNING, json.dumps({"partition": partition.name}).encode())
    try:
        yield
    finally:
        directory.remove(_NOW_RUNNING)


def _running(config: RunConfig) -> str:
    directory = lock_directory(config)
    try:
        return f"{json.loads(directory.read(_NOW_RUNNING))['partition']} is being answered"
    except (OSError, ValueError):
        return "another nightly is at work"
