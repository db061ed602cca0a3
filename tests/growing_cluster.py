"""The machines of a cluster file come and go, without a cloud.

`python tests/growing_cluster.py CLUSTER_FILE TOLD` starts a head whose autoscaler reads the file
with Ray's own stand-in for a cloud, and writes to a file, as JSON, which machines ran what.
"""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import yaml
from conftest import ROOT
from ray._private.services import get_node_ip_address
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
)
from ray.autoscaler._private.util import prepare_config
from ray_head import RAY, free_ports, stop

from pipelines.config_file import load_config
from pipelines.replicas import actor_options

IDLE_S = 4
AS_RAY_UP = {
    # What `ray up` starts; the older autoscaler does not look at labels.
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}
_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"


def without_a_cloud(path: str, gcs: str) -> dict[str, Any]:
    """The file's own machines, limits and labels; only who makes the machines is another."""
    config: dict[str, Any] = prepare_config(yaml.safe_load(Path(path).read_text()))
    types = config["available_node_types"]
    for node in types.values():
        node["node_config"] = {}
    types[FAKE_HEAD_NODE_TYPE] = types.pop(config["head_node_type"])
    config["head_node_type"] = FAKE_HEAD_NODE_TYPE
    config["provider"] = {
        "type": "external",
        "module": _PROVIDER,
        "gcs_address": gcs,
        "head_node_id": FAKE_HEAD_NODE_ID,
        "launch_multiple": True,
    }
    config["idle_timeout_minutes"] = IDLE_S / 60
    config["docker"] = config["file_mounts"] = {}
    return config


class Here:
    def labels(self) -> dict[str, str]:
        return dict(ray.get_runtime_context().get_node_labels())


def alive() -> list[dict[str, str]]:
    return [node["Labels"] for node in ray.nodes() if node["Alive"]]


def until(count: int, within_s: float) -> int:
    """The number of machines, once it is `count` or time is up."""
    end = time.monotonic() + within_s
    while len(alive()) != count and time.monotonic() < end:
        time.sleep(0.2)
    return len(alive())


def observe() -> dict[str, Any]:
    before = until(1, 10)
    config = load_config(ROOT / "configs/cluster.yaml", {})
    seen = {}
    for tier in config.tiers:
        actor = ray.remote(Here).options(**actor_options(tier)).remote()
        seen[tier.name] = ray.get(actor.labels.remote(), timeout=90)
        del actor
    return {"before": before, "tiers": seen, "after": until(1, 60)}


def main() -> None:
    (port,) = free_ports(1)
    gcs = f"{get_node_ip_address()}:{port}"
    with TemporaryDirectory(dir="/tmp") as folder:
        file = Path(folder, "cluster.json")
        file.write_text(json.dumps(without_a_cloud(sys.argv[1], gcs)))
        head = subprocess.Popen(
            [
                *(RAY, "start", "--head", "--block", f"--port={port}", f"--temp-dir={folder}/ray"),
                *("--num-cpus=2", "--num-gpus=0", "--include-dashboard=false"),
                *(f"--autoscaling-config={file}", "--object-store-memory=100000000"),
            ],
            env={**os.environ, **AS_RAY_UP},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            join(gcs)
            Path(sys.argv[2]).write_text(json.dumps(observe()))
            ray.shutdown()
        finally:
            stop(head)


def join(address: str) -> None:
    end = time.monotonic() + 90
    while True:
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL)
            return
        except ConnectionError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


if __name__ == "__main__":
    main()
