"""How many replicas a tier has, where each may run, and what of a machine each takes."""

from collections.abc import Sequence
from typing import Any

from pipelines.tier import VLLM, Tier

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
