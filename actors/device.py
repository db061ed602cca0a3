"""The device that this process computes on, as vLLM sees it."""

from pathlib import Path

from pipelines.errors import RunFailure
from pipelines.formats import Device, model_refusal, this_cpu
from pipelines.tier import VLLM


def check_formats(config: VLLM) -> None:
    """Raises: RunFailure if this device cannot run the model's weights.

    `nightmill check` asked the same where the configuration says which device it will be.
    """
    if not Path(config.model, "config.json").is_file():
        return
    if problem := model_refusal(Path(config.model), config.engine_args, local_device()):
        raise RunFailure(f"{config.model}: {problem}")


def local_device() -> Device | None:
    """None on devices that the table of formats does not cover."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return this_cpu()
    capability = current_platform.get_device_capability() if current_platform.is_cuda() else None
    return Device("cuda", capability.to_int()) if capability else None
