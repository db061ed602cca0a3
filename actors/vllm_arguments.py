"""What a tier's configuration means to vLLM, and what vLLM cannot make of it."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import RunFailure
from pipelines.formats import computes_halves, this_cpu
from pipelines.tier import VLLM

_CPU_CACHE_BLOCK = 32
"""Tokens; the smallest that vLLM's CPU attention prefers."""
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def engine_arguments(config: VLLM) -> dict[str, Any]:
    """The arguments of the configuration, with what follows from task, parsers and adapters."""
    given = config.engine_args
    arguments: dict[str, Any] = {"runner": "pooling"} if config.task != "generate" else {}
    if config.lora_adapters:
        arguments |= _lora_arguments(config)
    # vLLM's "auto" takes the one backend that the first such row happens to need, and gives it
    # the later rows unchecked; a fixed one refuses what it cannot do, whoever comes first. Free
    # whitespace is paid for by the token, and small models never come out of it.
    structured = {"backend": "xgrammar", "disable_any_whitespace": True}
    if config.reasoning_parser:
        structured["reasoning_parser"] = config.reasoning_parser
    structured |= given.get("structured_outputs_config", {})
    return {
        "model": config.model,
        "revision": config.revision,
        **arguments,
        **given,
        "structured_outputs_config": structured,
    }


def own_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that are not vLLM's defaults, for what is not given.

    Args:
        given: the arguments of plan and configuration, which win over these.
    """
    from vllm.platforms import current_platform

    # Each step's statistics come through our own logger; the default ones would print.
    own: dict[str, Any] = {"disable_log_stats": True}
    if current_platform.is_cpu():
        # Compiling pays on a GPU. Here it took 35 s to gain an eighth of a small model's rate:
        # who runs for hours may ask for it.
        own["enforce_eager"] = True
        if not computes_halves(this_cpu()):
            own["dtype"] = "float32"
        # Only whole blocks of a shared prefix are computed once. vLLM takes 128 tokens here, and
        # would compute 64 of each row's prefix again.
        own["block_size"] = _CPU_CACHE_BLOCK
        if given.get("pipeline_parallel_size", 1) == 1:
            own["distributed_executor_backend"] = "actors.vllm_executor.OneCallExecutor"
    return own


def set_environment(config: VLLM) -> None:
    """CPU engines take their memory and threads from the environment, at import."""
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(int(config.kv_cache_gib), 1))
    # Ray sets it to the CPUs that an actor reserves, which is not what computes here.
    os.environ.pop("OMP_NUM_THREADS", None)
    if config.cpu_threads:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ["OMP_NUM_THREADS"] = str(config.cpu_threads)


def _lora_arguments(config: VLLM) -> dict[str, Any]:
    from vllm.platforms import current_platform

    rank = max(_lora_rank(Path(folder)) for folder in config.lora_adapters.values())
    # vLLM's CPU kernels add to a row without an adapter what the last slot holds: one more slot
    # than adapters stays empty.
    slots = len(config.lora_adapters) + current_platform.is_cpu()
    if current_platform.is_cpu() and config.engine_args.get("max_loras", slots) < slots:
        raise RunFailure(f"engine_args.max_loras: a CPU engine needs {slots}; leave it out")
    return {
        "enable_lora": True,
        "max_loras": slots,
        "max_lora_rank": next((r for r in _LORA_RANKS if r >= rank), rank),
    }


def _lora_rank(folder: Path) -> int:
    adapter = json.loads(Path(folder, "adapter_config.json").read_text())
    return max([adapter["r"], *(adapter.get("rank_pattern") or {}).values()])


def check_parsers(config: VLLM) -> None:
    """Raises: RunFailure if vLLM knows no such parser.

    Done where the engine starts: the driver of a run need not have vLLM, and would take ten
    seconds to import it.
    """
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    for key, name, manager in (
        ("tool_parser", config.tool_parser, ToolParserManager),
        ("reasoning_parser", config.reasoning_parser, ReasoningParserManager),
    ):
        if name and name not in (known := manager.list_registered()):
            raise RunFailure(f"{key}: vLLM has no {name!r}; it has {', '.join(known)}")


def check_task(config: VLLM, supported: Sequence[str], model: Any) -> None:
    """Raises: RunFailure if the model is not made for the tier's task."""
    needed = "classify" if config.task == "score" else config.task
    if needed not in supported:
        raise RunFailure(f"task: {config.task}: {config.model} can only {', '.join(supported)}")
    if config.task == "score" and model.hf_config.num_labels != 1:
        raise RunFailure(
            f"task: score: {config.model} has {model.hf_config.num_labels} labels; a model that "
            "scores pairs has one. Use classify"
        )
