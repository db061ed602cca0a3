"""What can be told of a tier before it starts: its engine's arguments, GPU and weights."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from ray.util.accelerators import accelerators

from actors.api_client import read_key
from jobs.engine_args import engine_arg_names
from pipelines.api_tier import API
from pipelines.errors import UsageProblem
from pipelines.formats import CAPABILITIES, Device, model_refusal, this_cpu
from pipelines.tier import VLLM, Tier

ACCELERATORS = tuple(v for k, v in vars(accelerators).items() if k.isupper())


def check_tier(tier: Tier) -> None:
    """Raises: UsageProblem if its engine could not start, naming the key and the remedy."""
    key = f"tiers.{tier.name}"
    if tier.accelerator and tier.accelerator not in ACCELERATORS:
        raise UsageProblem(
            f"{key}.accelerator: {tier.accelerator}: Ray knows no such accelerator"
            f"{_nearest(tier.accelerator, ACCELERATORS)}"
        )
    if isinstance(tier.engine, API):
        try:
            read_key(tier.engine)
        except UsageProblem as problem:
            raise UsageProblem(f"{key}.engine.{problem}") from None
    if isinstance(tier.engine, VLLM):
        _check_names(f"{key}.engine.engine_args", tier.engine)
        _check_formats(f"{key}.engine.model", tier, tier.engine)


def _check_names(key: str, engine: VLLM) -> None:
    known = engine_arg_names()
    for name in engine.engine_args:
        if known and name not in known:
            raise UsageProblem(
                f"{key}.{name}: vLLM has no such argument{_nearest(name, sorted(known))}"
            )


def _check_formats(key: str, tier: Tier, engine: VLLM) -> None:
    folder = Path(engine.model)
    if not folder.is_dir():
        return
    if problem := model_refusal(folder, engine.engine_args, _device(tier)):
        raise UsageProblem(
            f"{key}: {engine.model}: {problem}. To fix: name a model in one of these formats, "
            "or place the tier on another device"
        )


def _device(tier: Tier) -> Device | None:
    """What its replicas will compute on; None where only the replica itself can tell."""
    if tier.num_gpus:
        capability = CAPABILITIES.get(tier.accelerator or "")
        return Device("cuda", capability) if capability else None
    # In a cluster this machine's CPU says nothing of the others'.
    elsewhere = tier.labels or "RAY_ADDRESS" in os.environ
    return Device("cpu") if elsewhere else this_cpu()


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else "; correct it or leave it out"
