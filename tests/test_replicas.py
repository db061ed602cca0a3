"""Pools, places and shares: options as pure values, then real Ray with pretended GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from conftest import ROOT, MakeConfig, tier, vllm_tier
from pydantic import ValidationError

from jobs.batch import run
from jobs.run_state import load_replicas
from pipelines.config import Storage
from pipelines.replicas import actor_options, cpu_engines, fitted, gpu_bundles
from pipelines.storage import Directory
from pipelines.tier import VLLM, Tier


def engine_of(fitted_tier: Tier) -> VLLM:
    assert isinstance(fitted_tier.engine, VLLM)
    return fitted_tier.engine


def test_an_actor_asks_for_what_its_tier_states() -> None:
    stated = vllm_tier(num_gpus=1, num_cpus=4, accelerator="H100", labels={"zone": "a"})
    assert actor_options(stated) == {
        "num_cpus": 4,
        "num_gpus": 1,
        "accelerator_type": "H100",
        "label_selector": {"zone": "a"},
    }


def test_a_tier_of_two_parallel_parts_reserves_two_gpus() -> None:
    pair = vllm_tier({"tensor_parallel_size": 2}, num_gpus=2)
    assert actor_options(pair)["num_gpus"] == 2


def test_a_replica_across_nodes_reserves_a_group_and_nothing_besides() -> None:
    args = {"pipeline_parallel_size": 3, "distributed_executor_backend": "ray"}
    wide = vllm_tier(args, num_gpus=3, num_cpus=2, accelerator="L4")
    gpu = {"GPU": 1.0, "accelerator_type:L4": 0.001}
    assert gpu_bundles(wide) == [{**gpu, "CPU": 2}, gpu, gpu]
    assert actor_options(wide) == {"num_cpus": 2}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_gpus": 2}, "num_gpus: 2, but engine.engine_args use 1"),
        ({"num_gpus": 1, "args": {"tensor_parallel_size": 2}}, "use 2 (tensor_parallel_size 2)"),
        (
            {"num_gpus": 2, "args": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}},
            "use 4 (tensor_parallel_size 2 times pipeline_parallel_size 2)",
        ),
        ({"num_gpus": 0.5, "args": {"tensor_parallel_size": 2}}, "num_gpus: 0.5, but"),
        ({"num_gpus": 1.5}, "several may not"),
        ({"accelerator": "H100"}, "num_gpus is 0"),
        ({"replicas": {"min": 3, "max": 2}}, "min must not exceed max"),
        ({"replicas": 0}, "replicas"),
        ({"args": {"distributed_executor_backend": "ray"}}, "needs whole GPUs"),
        (
            {
                "num_gpus": 1,
                "replicas": {"max": 2},
                "args": {"distributed_executor_backend": "ray"},
            },
            "a fixed number of replicas",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields: dict[str, Any], says: str) -> None:
    args = fields.pop("args", None)
    with pytest.raises(ValidationError) as caught:
        vllm_tier(args, **fields)
    assert says in str(caught.value)


def test_an_engine_on_part_of_a_gpu_takes_that_part_of_its_memory() -> None:
    half = fitted(vllm_tier(num_gpus=0.5), engines=0, cores=8)
    assert engine_of(half).engine_args == {"gpu_memory_utilization": 0.45}
    chosen = fitted(vllm_tier({"gpu_memory_utilization": 0.3}, num_gpus=0.5), engines=0, cores=8)
    assert engine_of(chosen).engine_args == {"gpu_memory_utilization": 0.3}
    whole = fitted(vllm_tier(num_gpus=1), engines=0, cores=8)
    assert engine_of(whole).engine_args == {}


@pytest.mark.parametrize(
    ("fields", "engines", "threads"),
    [
        ({}, 1, None),
        ({}, 2, 4),
        ({}, 3, 2),
        ({}, 100, 1),
        ({"num_cpus": 3}, 2, 3),
        ({"num_cpus": 3}, 1, 3),
        ({"num_gpus": 1}, 2, None),
    ],
)
def test_cpu_engines_share_the_cores(
    fields: dict[str, Any], engines: int, threads: int | None
) -> None:
    shared = fitted(vllm_tier(**fields), engines=engines, cores=8)
    assert engine_of(shared).cpu_threads == threads


def test_threads_that_are_stated_stay() -> None:
    engine = {"kind": "vllm", "model": "m", "cpu_threads": 5}
    stated = Tier.model_validate({**tier("t"), "engine": engine})
    assert engine_of(fitted(stated, engines=4, cores=8)).cpu_threads == 5


def test_engines_on_cpus_are_counted_at_their_most() -> None:
    scripted = Tier.model_validate({**tier("s"), "replicas": 7})
    pool = vllm_tier(replicas={"min": 1, "max": 3})
    assert cpu_engines([scripted, pool, vllm_tier(), vllm_tier(num_gpus=1, replicas=9)]) == 4


def test_replicas_run_where_labels_and_gpus_let_them(tmp_path: Path) -> None:
    script = ROOT / "tests/labelled_cluster.py"
    alone = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    # Ray writes down where a cluster is, for whoever starts Ray on this machine next. A folder
    # of its own keeps this one to itself; a short name, because sockets lie in it.
    with TemporaryDirectory(dir="/tmp") as apart:
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=150,
            env={**alone, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": apart},
        )
    told = json.loads(done.stdout)
    placed = told["placed"]
    assert {len(blocks) for blocks in placed.values()} == {12}
    seen = {
        name: {(block["node"], block["gpus"], block["bundles"]) for block in blocks}
        for name, blocks in placed.items()
    }
    assert seen["edge"] == {("head", 0, 0)}
    assert seen["h100"] == {("h", 1, 0)}
    assert seen["halves"] == {("a", 0.5, 0)}
    ((node, own_gpus, bundles),) = seen["across"]
    assert node in ("a", "h")
    assert (own_gpus, bundles) == (0, 2)
    # Of the one replica that spans nodes: what nobody uses nobody else would get.
    assert told["groups"] == 1


def replicas_used(output: str) -> int:
    (replicas,) = load_replicas(Directory(output, Storage())).values()
    return len(replicas)


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(
    ("rows", "slow_s", "least", "most"), [(240, 0.3, 2, 3), (2, 0.0, 1, 1)], ids=["many", "few"]
)
def test_a_pool_grows_with_what_waits_and_answers_all_of_it(
    make_config: MakeConfig, rows: int, slow_s: float, least: int, most: int
) -> None:
    pool = {**tier("only", delay_s=slow_s, max_num_seqs=2), "replicas": {"min": 1, "max": 3}}
    prompts = [{"id": str(i), "prompt": f"p{i}"} for i in range(rows)]
    config = make_config(prompts, tiers=[pool])
    config = config.model_copy(update={"input": config.input.model_copy(update={"block_rows": 5})})
    summary = run(config)
    assert (summary.ok, summary.errors, summary.pending) == (rows, 0, 0)
    assert least <= replicas_used(config.output.path) <= most
