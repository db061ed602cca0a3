"""Runs in a process of their own, to be killed."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import psutil
import yaml

from pipelines.config import RunConfig


def started(config: RunConfig, folder: Path) -> subprocess.Popen[bytes]:
    """The command itself, with a Ray of its own."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "run", str(path)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the driver, its Ray and all workers at once, as a machine that loses power does."""
    processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for running in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            running.kill()
    process.wait()
