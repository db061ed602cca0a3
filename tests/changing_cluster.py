"""A run on machines that go and come, in a process of its own, because a process joins one cluster.

`python tests/changing_cluster.py CONFIG TOLD` writes to a file, as JSON, how many rows were
committed when. Ray prints what it likes.
"""

import json
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from jobs.batch import run
from pipelines.config_file import load_config

SOON_DEAD = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
"""Ray takes a silent machine for dead after 15 s."""


class Rows:
    """How many are committed, as the run tells it."""

    def __init__(self) -> None:
        self.first, self.count = threading.Event(), 0

    def __call__(self, snapshot: Any) -> None:
        self.count = snapshot.counts.get("rows", 0)
        if self.count:
            self.first.set()


def main() -> None:
    config = load_config(Path(sys.argv[1]), {})
    cluster = Cluster()
    cluster.add_node(num_cpus=2, labels={"node": "head"}, _system_config=SOON_DEAD)
    cluster.add_node(num_cpus=2, labels={"node": "steady", "tier": "steady"})
    doomed = cluster.add_node(num_cpus=2, labels={"node": "doomed", "tier": "spot"})
    cluster.wait_for_nodes()
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    rows = Rows()
    # Ray starts nodes in the main thread only.
    with ThreadPoolExecutor() as pool:
        running = pool.submit(run, config, rows)
        rows.first.wait(60)
        cluster.remove_node(doomed, allow_graceful=False)
        died_at = rows.count
        cluster.add_node(num_cpus=2, labels={"node": "late", "tier": "spot"})
        joined_at = rows.count
        summary = running.result()
    told = {"ok": summary.ok, "died_at": died_at, "joined_at": joined_at}
    Path(sys.argv[2]).write_text(json.dumps(told))
    # In this order: a driver whose cluster ends first exits with an error.
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
