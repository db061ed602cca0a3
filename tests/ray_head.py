"""A Ray head as the README starts it, with ports and folders of its own."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from conftest import ROOT

RAY = Path(sys.executable).parent / "ray"


@dataclass(frozen=True)
class Head:
    """address: of its job API. environment: in which commands reach it, without a token."""

    address: str
    environment: dict[str, str]


@contextmanager
def ray_head(**environment: str) -> Iterator[Head]:
    """
    Args:
        environment: of the head and its jobs, beside what every process here has.
    """
    plain = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    plain |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}
    gcs, dashboard, agent, client = free_ports(4)
    # Sockets lie in there, whose paths must be short.
    with TemporaryDirectory(dir="/tmp") as folder:
        head = subprocess.Popen(
            [
                *(RAY, "start", "--head", "--block", f"--port={gcs}", "--num-cpus=4"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
                *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
                *(f"--temp-dir={folder}/ray", "--object-store-memory=100000000"),
            ],
            env={**plain, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        address = f"http://127.0.0.1:{dashboard}"
        try:
            _wait_for(f"{address}/api/version", head)
            yield Head(address, {**plain, "RAY_API_SERVER_ADDRESS": address})
        finally:
            stop(head)


def stop(head: "subprocess.Popen[bytes]") -> None:
    """At once: a head that is asked to end waits for its jobs' workers."""
    processes = psutil.Process(head.pid).children(recursive=True)
    for process in [psutil.Process(head.pid), *processes]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    head.wait()


def _wait_for(url: str, head: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert head.poll() is None, "the head did not start"
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except urllib.error.HTTPError:
            # It is there, and wants a token.
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(url)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
