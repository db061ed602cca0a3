"""Where requests come in: one listening socket that outlives the processes that answer them.

A proxy in front of those would be one more process for every byte to pass, and costs more of a
processor than they do themselves. So they listen on their own, all on the same socket. The door
only holds it: who comes while an ingress is replaced or was killed waits in its queue.
"""

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

_WAITING = 4096
"""Connections that nobody has accepted yet; the kernel's own limit may be lower."""
_KEPT_S = 75
"""Longer than clients and load balancers keep a connection that idles."""


class Door:
    """Listens, accepts nothing, and hands the socket on to processes of the same user and machine.

    Args:
        host: an address or a name of this machine.
    """

    def __init__(self, host: str, port: int) -> None:
        """Raises: OSError where another process listens already."""
        self._listening: socket.socket | None = None
        self._folder = tempfile.mkdtemp(prefix="nightmill-door-")
        try:
            self._listening = socket.create_server((host, port), backlog=_WAITING)
        except OSError as error:
            reason = f"cannot listen on {host}:{port} ({error}); set serve.host and serve.port"
            raise OSError(error.errno, reason) from error
        self._path = os.path.join(self._folder, "socket")
        self._handing = socket.socket(socket.AF_UNIX)
        self._handing.bind(self._path)
        self._handing.listen()
        self._lifelines: list[socket.socket] = []
        threading.Thread(target=self._hand_out, daemon=True).start()

    def path(self) -> str:
        """Where `Front` gets the socket."""
        return self._path

    def close(self) -> None:
        """Let nobody in any more, but those whom a front lets in itself."""
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.close()

    def _hand_out(self) -> None:
        while True:
            asker, _ = self._handing.accept()
            if (listening := self._listening) is None:
                asker.close()
                continue
            with contextlib.suppress(OSError):
                socket.send_fds(asker, [b"."], [listening.fileno()])
            # Kept open: that it ends tells the asker that there is no door behind it any more.
            self._lifelines.append(asker)

    def __del__(self) -> None:
        """Serve calls it: the thread has the door as long as the process lives."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class Front:
    """An app at a door. Lives on one event loop.

    Args:
        path: of the door.
        drain_s: that requests have to end when it stops.
    """

    def __init__(self, app: Any, path: str, drain_s: float) -> None:
        self._path = path
        config = uvicorn.Config(
            app,
            backlog=_WAITING,
            timeout_keep_alive=_KEPT_S,
            timeout_graceful_shutdown=max(round(drain_s), 1),
            lifespan="on",
            ws="none",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
        )
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take requests from now on.

        Raises: OSError if the door is closed or gone.
        """
        self._lifeline = socket.socket(socket.AF_UNIX)
        self._lifeline.connect(self._path)
        _, numbers, *_ = socket.recv_fds(self._lifeline, 1, 1)
        if not numbers:
            raise ConnectionError("the door is closed")
        listening = socket.socket(fileno=numbers[0])
        self._serving = asyncio.create_task(self._server.serve([listening]))
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
                raise RuntimeError("the app did not start")
            await asyncio.sleep(0.01)

    def check(self) -> None:
        """Raises: RuntimeError if nobody can come in through this any more."""
        if self._serving is None or self._serving.done():
            raise RuntimeError("takes no requests")
        with contextlib.suppress(BlockingIOError):
            if not self._lifeline.recv(1, socket.MSG_DONTWAIT):
                # Another door can only open when this socket is given up.
                raise RuntimeError("the door is gone")

    async def stop(self) -> None:
        """Take in nothing more and finish what was taken in."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
            self._lifeline.close()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are Ray's."""
        yield


__all__ = ["Door", "Front"]
