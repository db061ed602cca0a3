"""Peak memory of every process below this one, sampled while something runs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

_EVERY_S = 0.25


class PeakMemory:
    """Peak resident bytes of each process, by kind: `rss` as the kernel counts it, and
    `private` without pages shared with others (Ray's object store is mapped into every one)."""

    def __init__(self) -> None:
        self.rss: dict[str, int] = {}
        self.private: dict[str, int] = {}

    def look(self) -> None:
        for process in psutil.Process().children(recursive=True):
            try:
                memory = process.memory_info()
                name = _kind(process.cmdline())
            except psutil.Error:
                continue
            self.rss[name] = max(self.rss.get(name, 0), memory.rss)
            private = memory.rss - memory.shared
            self.private[name] = max(self.private.get(name, 0), private)


@contextmanager
def watched_memory() -> Iterator[PeakMemory]:
    peak, stop = PeakMemory(), threading.Event()

    def watch() -> None:
        while not stop.wait(_EVERY_S):
            peak.look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def growth_mb(before: dict[str, int], after: dict[str, int]) -> tuple[float, str]:
    """The largest growth of one kind of process, in MB, and which kind it was."""
    grown = {name: after[name] - before[name] for name in after.keys() & before.keys()}
    worst = max(grown, key=lambda name: grown[name])
    return grown[worst] / 1e6, worst


def _kind(command: list[str]) -> str:
    """Ray titles its workers after the method they run."""
    title = " ".join(command)
    if title.startswith("ray::"):
        return title.split("(")[0].split(".")[0].strip()
    return next((word for word in ("raylet", "gcs_server", "jobs.cli") if word in title), "other")
