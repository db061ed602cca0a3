"""Connecting to Ray: the cluster that the environment names, or this machine."""

import logging
import os
import sys
import warnings
from pathlib import Path

import ray

_OBJECT_STORE_BYTES = 256 << 20
"""Blocks are at most 4 MiB; Ray's default of 30 % of the memory would be touched page by page."""


def connect(divert_stderr: bool = False) -> Path:
    """Join the cluster at RAY_ADDRESS, or start Ray here; returns Ray's log folder.

    Workers' and engines' output goes to files there. With `divert_stderr` so does what
    libraries print to this process's standard error, native code included.
    """
    if not ray.is_initialized():
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        # Telemetry would wait for a network that a batch machine may not have.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        warnings.filterwarnings("ignore", module=r"ray\..*")
        joins = "RAY_ADDRESS" in os.environ
        ray.init(
            # Left to itself Ray would join any cluster that somebody started on this machine.
            address=None if joins else "local",
            object_store_memory=None if joins else _OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=None if joins else False,
        )
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    if divert_stderr:
        _divert_stderr(logs)
    return logs


def _divert_stderr(logs: Path) -> None:
    sys.stderr.flush()
    noise = os.open(logs / "nightmill-driver.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(noise, 2)
    os.close(noise)
