"""The main job as a process that ends with its parent.

The parent holds this process's standard input open. When that ends, because the parent was
killed or wants no more, so does the job; what it had committed stays.

python -m jobs.batch_job CONFIG
"""

import os
import signal
import sys
import threading

_GRACE_S = 20.0


def _end_with_parent() -> None:
    while sys.stdin.buffer.raw.read(1):  # type: ignore[union-attr]
        pass
    # As Ctrl-C would: Ray's own processes are taken down too.
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(_GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    # It may be ignored by inheritance, as shells have it for what runs in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    from jobs.cli import main

    main(["run", sys.argv[1], "--json"])
