"""Progress while a run streams: a bar on a terminal, now and then a line in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from actors.meter import Snapshot
from jobs.batch import OnStart
from jobs.watching import Watch
from pipelines.prices import NUSD

_LINE_EVERY_S = 30.0


class Detail:
    """Tokens a second, cost so far, errors."""

    def __init__(self) -> None:
        self._before = (time.monotonic(), 0)

    def of(self, snapshot: Snapshot) -> str:
        return (
            f"{self._tokens_per_s(snapshot.tokens):,.0f} tokens/s, "
            f"${snapshot.spent_nusd / NUSD:,.6f}, {snapshot.counts.get('errors', 0):,} errors"
        )

    def _tokens_per_s(self, tokens: int) -> float:
        now = time.monotonic()
        then, before = self._before
        if now - then > 5:
            self._before = (now, tokens)
        return (tokens - before) / max(now - then, 1e-3)


class ProgressBar:
    """Rows done and the details, with the time left."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._detail = progress, Detail()
        self._task = progress.add_task("starting", total=None, detail="")

    def begin(self, rows: int) -> None:
        self._progress.update(self._task, total=rows, description="answering")

    def watch(self, snapshot: Snapshot) -> None:
        detail = self._detail.of(snapshot)
        self._progress.update(self._task, completed=_done(snapshot), detail=detail)


class ProgressLines:
    """The same where it is read later: in the output of a job, or of a nightly run."""

    def __init__(self, console: Console) -> None:
        self._console, self._detail = console, Detail()
        self._rows, self._due = 0, time.monotonic() + _LINE_EVERY_S

    def begin(self, rows: int) -> None:
        self._rows = rows

    def watch(self, snapshot: Snapshot) -> None:
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _LINE_EVERY_S
        line = f"{_done(snapshot):,} of {self._rows:,} rows, {self._detail.of(snapshot)}"
        self._console.print(line, highlight=False, soft_wrap=True)


def _done(snapshot: Snapshot) -> int:
    counts = snapshot.counts
    return counts.get("rows", 0) + counts.get("followers", 0) + counts.get("pending", 0)


@contextmanager
def shown_progress(console: Console) -> Iterator[tuple[Watch, OnStart]]:
    """(watch, on_start) for `run`."""
    if not console.is_terminal:
        lines = ProgressLines(console)
        yield lines.watch, lines.begin
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as columns_shown:
        bar = ProgressBar(columns_shown)
        yield bar.watch, bar.begin
