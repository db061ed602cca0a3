"""Which partitions are due: a pure function of the configuration, what exists, and the time."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from pipelines.nightly_config import ByDate, ByFile
from pipelines.path_template import dated, filed

Standing = Literal["answered", "changed", "due", "waiting", "late", "blocked"]


@dataclass(frozen=True)
class Partition:
    """One run's worth of input.

    Attributes:
        ready_at: when it is due, UTC.
        late_at: from when on an absent input is not waited for any more, UTC.
        version: of the input, where it is one file.
    """

    name: str
    input: str
    output: str
    ready_at: datetime
    late_at: datetime
    version: str | None = None


@dataclass(frozen=True)
class InputFileSeen:
    """A file below `input.path`, named from there on."""

    name: str
    path: str
    changed_at: datetime
    version: str


@dataclass(frozen=True)
class Evidence:
    """What storage says of a partition.

    Attributes:
        present: whether its input is there.
        answered: whether its output holds a finished run.
        answered_version: of the input that was answered, where it is one file.
    """

    present: bool
    answered: bool
    answered_version: str | None = None


@dataclass(frozen=True)
class Judged:
    partition: Partition
    standing: Standing


def day_begins(day: date, zone: ZoneInfo) -> datetime:
    """The first instant of a day, UTC; also where the clock skips midnight or shows it twice."""
    return datetime.combine(day, time(), zone).astimezone(UTC)


def daily_partitions(
    config: ByDate, source: str, output: str, now: datetime, until: date | None = None
) -> Iterator[Partition]:
    """Every day whose time has come, oldest first. Days that a zone left out do not exist."""
    zone = ZoneInfo(config.timezone)
    day = config.start
    while until is None or day <= until:
        end = day_begins(day + timedelta(days=1), zone)
        ready = end + timedelta(hours=config.ready_after_h)
        if ready > now:
            return
        if day_begins(day, zone) < end:
            late = ready + timedelta(hours=config.late_after_h)
            yield Partition(day.isoformat(), dated(source, day), dated(output, day), ready, late)
        day += timedelta(days=1)


def file_partitions(
    config: ByFile, output: str, files: Iterable[InputFileSeen], now: datetime
) -> Iterator[Partition]:
    """Every file that has not changed for a while, oldest first."""
    for file in sorted(files, key=lambda f: (f.changed_at, f.name)):
        ready = file.changed_at + timedelta(hours=config.settled_after_h)
        if ready <= now:
            target = filed(output, file.name)
            yield Partition(file.name, file.path, target, ready, ready, file.version)


def judge(
    partitions: Sequence[Partition], evidence: Mapping[str, Evidence], now: datetime
) -> list[Judged]:
    """Say of each partition, oldest first, where it stands.

    A partition whose input is still waited for blocks those after it, so that they are answered
    in order. One that is late does not: its input may never come.
    """
    judged: list[Judged] = []
    waiting = False
    for partition in partitions:
        standing = _standing(partition, evidence[partition.name], now)
        waiting |= standing == "waiting"
        blocked = waiting and standing == "due"
        judged.append(Judged(partition, "blocked" if blocked else standing))
    return judged


def _standing(partition: Partition, evidence: Evidence, now: datetime) -> Standing:
    if evidence.answered:
        changed = partition.version is not None and evidence.answered_version != partition.version
        return "changed" if changed and evidence.present else "answered"
    if evidence.present:
        return "due"
    return "waiting" if now < partition.late_at else "late"
