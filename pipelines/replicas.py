"""How many replicas a tier has, where each may run, and what of a machine each takes."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.api_tier import API
from pipelines.tier import VLLM, Tier

_GPU_SEQS, _CPU_SEQS = 1024, 256
"""What an engine runs at once where nothing says otherwise, at most."""
_MOST_BLOCKS = 64
_GPU_MEMORY = 0.9
"""The share of a GPU's memory that an engine takes when the GPU is its own."""


def actor_options(tier: Tier) -> dict[str, Any]:
    """Ray's options for the actor of one replica."""
    if tier.spans_nodes:
        # Where it runs, and its GPUs, are its placement group's.
        return {"num_cpus": tier.num_cpus}
    return {
        "num_cpus": tier.num_cpus,
        "num_gpus": tier.num_gpus or None,
        "accelerator_type": tier.accelerator,
        "label_selector": tier.labels or None,
    }


def gpu_bundles(tier: Tier) -> list[dict[str, float]]:
    """What a replica that spans nodes reserves: a bundle for each GPU, its actor in the first."""
    gpu = {"GPU": 1.0}
    if tier.accelerator:
        gpu[f"accelerator_type:{tier.accelerator}"] = 0.001
    first = {**gpu, "CPU": tier.num_cpus} if tier.num_cpus else gpu
    return [first, *[gpu] * (int(tier.num_gpus) - 1)]


def cpu_engines(tiers: Sequence[Tier]) -> int:
    """The engines that may compute on CPUs at the same time."""
    return sum(tier.replica_range.max for tier in tiers if _on_cpu(tier))


def fitted(tier: Tier, engines: int, cores: int) -> Tier:
    """The tier with what its configuration leaves open chosen for the replica's machine.

    A single engine is left to bind its threads to cores as vLLM does. Several would bind to
    the same ones: each gets its share of threads, and the kernel places them.

    Args:
        engines: that share the CPUs of a machine.
        cores: that this machine has.
    """
    if not isinstance(tier.engine, VLLM):
        return tier
    engine = tier.engine
    if _on_cpu(tier) and engine.cpu_threads is None:
        if tier.num_cpus >= 1:
            engine = engine.model_copy(update={"cpu_threads": int(tier.num_cpus)})
        elif engines > 1:
            engine = engine.model_copy(update={"cpu_threads": max(cores // engines, 1)})
    if 0 < tier.num_gpus < 1:
        arguments = {"gpu_memory_utilization": _GPU_MEMORY * tier.num_gpus, **engine.engine_args}
        engine = engine.model_copy(update={"engine_args": arguments})
    return tier.model_copy(update={"engine": engine})


def _on_cpu(tier: Tier) -> bool:
    return isinstance(tier.engine, VLLM) and not tier.num_gpus


def blocks_in_flight(tier: Tier, block_rows: int, planned: Sequence[Mapping[str, Any]] = ()) -> int:
    """Blocks that one replica holds: several times what its engine runs.

    A block leaves when its last row is done, so that while some wait for a long row others
    must keep the engine full.

    Args:
        planned: engine arguments that the tier may be run with, beside its own.
    """
    if isinstance(tier.engine, API) and tier.engine.mode == "batch":
        return _MOST_BLOCKS
    if isinstance(tier.engine, API):
        return _blocks(tier.engine.concurrency, block_rows)
    if not isinstance(tier.engine, VLLM):
        return 4
    return _blocks(seqs(tier, planned), block_rows)


def seqs(tier: Tier, planned: Sequence[Mapping[str, Any]] = ()) -> int:
    """Requests that one replica runs at once."""
    if isinstance(tier.engine, API):
        return tier.engine.concurrency
    if not isinstance(tier.engine, VLLM):
        return tier.engine.max_num_seqs
    most = max((args.get("max_num_seqs", 0) for args in planned), default=0)
    stated = tier.engine.engine_args.get("max_num_seqs")
    return int(stated or most or (_GPU_SEQS if tier.num_gpus else _CPU_SEQS))


def _blocks(at_once: int, block_rows: int) -> int:
    return min(max(-(-4 * at_once // block_rows), 4), _MOST_BLOCKS)
