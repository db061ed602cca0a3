"""Pretended machines in a process of its own, because a process joins one cluster.

`python tests/labelled_cluster.py FOLDER` prints, as JSON, where each tier's actors ran, and how
many placement groups were made in all.
"""

import json
import logging
import sys
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from conftest import vllm_tier
from ray.cluster_utils import Cluster
from ray.util import get_current_placement_group, placement_group_table

from jobs.placement import group_of_each
from pipelines.blocks import Block, InputFile
from pipelines.chain import Stage, run_chain
from pipelines.replicas import actor_options
from pipelines.tier import Tier

BLOCKS = 12
ACROSS = {"tensor_parallel_size": 2, "distributed_executor_backend": "ray"}
TIERS = {
    "edge": vllm_tier(labels={"zone": "edge"}),
    "h100": vllm_tier(num_gpus=1, accelerator="H100"),
    "halves": vllm_tier(num_gpus=0.5, replicas=2, labels={"node": "a"}),
    # Last, because its GPUs stay reserved.
    "across": vllm_tier(ACROSS, num_gpus=2, num_cpus=1, labels={"zone": "gpu"}),
}


class Here:
    """Answers each block with where it is and what of it is its own."""

    def __init__(self) -> None:
        context = ray.get_runtime_context()
        group = get_current_placement_group()
        self._place = {
            "node": context.get_node_labels()["node"],
            "gpus": context.get_assigned_resources().get("GPU", 0),
            "bundles": len(group.bundle_specs) if group else 0,
        }

    def __call__(self, table: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._place])


def main() -> None:
    cluster = Cluster()
    cluster.add_node(num_cpus=4, labels={"node": "head", "zone": "edge"})
    for name, kind in (("h", "H100"), ("a", "A100")):
        cluster.add_node(
            num_cpus=2,
            num_gpus=1,
            resources={f"accelerator_type:{kind}": 1},
            labels={"node": name, "zone": "gpu"},
        )
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    placed = {name: places(tier, Path(sys.argv[1], name)) for name, tier in TIERS.items()}
    print(json.dumps({"placed": placed, "groups": len(placement_group_table())}))
    # In this order: a driver whose cluster ends first exits with an error.
    ray.shutdown()
    cluster.shutdown()


def places(tier: Tier, folder: Path) -> list[dict[str, Any]]:
    """Where each block of a run with this one tier was answered."""
    folder.mkdir()
    stage = Stage(
        Here,
        {},
        replicas=tier.replica_range.min,
        options=actor_options(tier),
        options_of_each=group_of_each(tier),
    )
    file = InputFile(0, "none", "jsonl")
    blocks = [Block(f"b{i}", file, i, 1) for i in range(BLOCKS)]
    run_chain(blocks, _one_row, [stage], partial(_keep, folder))
    return [json.loads(path.read_text()) for path in folder.iterdir()]


def _one_row(block: Block) -> pa.Table:
    return pa.table({"block": [block.name]})


def _keep(folder: Path, table: pa.Table) -> None:
    (folder / uuid.uuid4().hex).write_text(json.dumps(table.to_pylist()[0]))


if __name__ == "__main__":
    main()
