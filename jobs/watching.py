"""Looks at a run while it streams: shows its totals and keeps its memory fresh."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from actors.meter import Snapshot

logger = logging.getLogger(__name__)

Watch = Callable[[Snapshot], None]
_LOOK_EVERY_S = 0.5
_SAVE_EVERY_S = 5.0


@contextmanager
def watched(meter: Any, save: Watch, watch: Watch | None) -> Iterator[None]:
    """Take the meter's totals twice a second, and save them every few.

    Args:
        meter: a `RunMeter` in an actor.
        save: may fail.
    """
    stop = threading.Event()
    thread = threading.Thread(target=_look, args=(meter, save, watch, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _look(meter: Any, save: Watch, watch: Watch | None, stop: threading.Event) -> None:
    saved = 0.0
    while True:
        snapshot: Snapshot = ray.get(meter.snapshot.remote())
        if watch:
            watch(snapshot)
        if time.monotonic() - saved > _SAVE_EVERY_S:
            saved = time.monotonic()
            try:
                save(snapshot)
            # Storage that hiccups now is written to again in a few seconds.
            except Exception as error:
                logger.warning("the run's state could not be saved: %s", error)
        if stop.wait(_LOOK_EVERY_S):
            return
