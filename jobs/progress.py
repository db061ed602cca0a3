"""Progress while a run streams; silent where nobody watches."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from actors.meter import Snapshot
from jobs.batch import OnStart
from jobs.watching import Watch
from pipelines.prices import NUSD


class ProgressBar:
    """Rows done, tokens a second, cost so far, errors, time left."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None, detail="")
        self._before = (time.monotonic(), 0)

    def begin(self, rows: int) -> None:
        self._progress.update(self._task, total=rows, description="answering")

    def watch(self, snapshot: Snapshot) -> None:
        counts = snapshot.counts
        done = counts.get("rows", 0) + counts.get("followers", 0) + counts.get("pending", 0)
        detail = (
            f"{self._tokens_per_s(snapshot.tokens):,.0f} tokens/s, "
            f"${snapshot.spent_nusd / NUSD:,.6f}, {counts.get('errors', 0):,} errors"
        )
        self._progress.update(self._task, completed=done, detail=detail)

    def _tokens_per_s(self, tokens: int) -> float:
        now = time.monotonic()
        then, before = self._before
        if now - then > 5:
            self._before = (now, tokens)
        return (tokens - before) / max(now - then, 1e-3)


@contextmanager
def progress_bar(console: Console) -> Iterator[tuple[Watch | None, OnStart | None]]:
    """(watch, on_start) for `run`; both None where the console is no terminal."""
    if not console.is_terminal:
        yield None, None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = ProgressBar(progress)
        yield bar.watch, bar.begin
