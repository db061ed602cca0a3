"""Which weight formats run on which devices: what vLLM 0.32 has kernels for.

A model that cannot run is found before a machine is paid for. vLLM itself would say so only
when it loads the weights, and on a CPU in the words of a kernel.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class WeightFormat:
    """How linear layers are stored and computed.

    Attributes:
        name: a key of `FORMATS`, or what the model's files call it where that is none.
        widths: the sizes of layers, by their names in the model's `config.json`.
    """

    name: str
    widths: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Device:
    """What a replica computes on.

    Attributes:
        capability: of a CUDA device, as vLLM counts it: 90 for 9.0.
        features: of a CPU, flags under Linux's names; None where they are not known yet.
    """

    kind: Literal["cpu", "cuda"]
    capability: int = 0
    features: frozenset[str] | None = None

    def __str__(self) -> str:
        if self.kind == "cuda":
            return f"a GPU of compute capability {self.capability // 10}.{self.capability % 10}"
        if self.features is None:
            return "a CPU"
        if self.features & _AMX:
            return "a CPU with AMX"
        return "a CPU without AMX" if self.features & _WIDE else "a CPU without AVX-512 and AMX"


@dataclass(frozen=True)
class Needs:
    """What a format's kernels ask of a device.

    Attributes:
        capability: the lowest of a CUDA device; None where vLLM has no kernel.
        below: the first capability that has no kernel again.
        cpu: flags of which a CPU must have one, if there are any; None where vLLM has no kernel.
        multiple_of: what the CPU's kernel divides layers by.
    """

    capability: int | None
    below: int | None = None
    cpu: frozenset[str] | None = None
    multiple_of: int = 1


_ANY_CPU: frozenset[str] = frozenset()
_AMX = frozenset({"amx_tile"})
# Of x86, and of 64-bit ARM.
_WIDE = frozenset({"avx512f", "asimd"})

# Sources, in vllm/model_executor: `get_min_capability` of layers/quantization/*.py and of
# compressed_tensors/schemes/*.py; for CPUs, the lists under `PlatformEnum.CPU` in
# kernels/linear/__init__.py with `is_supported` and `can_implement` of the kernels there, and
# which operations the library for AVX2 lacks (measured: vLLM loads such a model and dies at its
# first step).
FORMATS: Mapping[str, Needs] = {
    # Unquantized without a stated dtype: vLLM takes one that the device has.
    "unquantized": Needs(0, cpu=_ANY_CPU),
    "BF16": Needs(80, cpu=_ANY_CPU),
    "FP16": Needs(0, cpu=_ANY_CPU),
    "FP32": Needs(0, cpu=_ANY_CPU),
    # CPUWNA16LinearKernel: 4 bits only, both sides of a layer in multiples of 32.
    "W4A16": Needs(75, cpu=_WIDE, multiple_of=32),
    "W8A16": Needs(75),
    # vLLM's documentation of INT8: no kernels from Blackwell on.
    "W8A8-INT8": Needs(75, below=100, cpu=_ANY_CPU),
    # Below 8.9 the weights are 8 bits and Marlin computes in 16. On a CPU torch multiplies them
    # where each channel has a scale (measured); one scale for all, or for blocks, needs AMX.
    "FP8": Needs(75, cpu=_AMX),
    "FP8-channel": Needs(75, cpu=_ANY_CPU),
    "FP8-block": Needs(75, cpu=_AMX),
    "FP8-W8A16": Needs(75),
    # Quantized at loading, by an operation that the CPU build lacks.
    "FP8-online": Needs(75),
    # Below 10.0 the weights are 4 bits and Marlin computes in 16.
    "NVFP4": Needs(75),
    "MXFP4": Needs(80),
    "MXFP8": Needs(75),
    "AWQ": Needs(75, cpu=_WIDE, multiple_of=32),
    "GPTQ": Needs(75, cpu=_WIDE, multiple_of=32),
    "GPTQ-8bit": Needs(75),
    "bitsandbytes": Needs(None),
}

# vLLM's names of methods, as model files and the engine argument `quantization` have them.
_METHODS = {
    "awq": "AWQ",
    "auto_awq": "AWQ",
    "awq_marlin": "AWQ",
    "gptq": "GPTQ",
    "auto_gptq": "GPTQ",
    "gptq_marlin": "GPTQ",
    "fp8": "FP8",
    "fbgemm_fp8": "FP8",
    "fp8_per_tensor": "FP8-online",
    "fp8_per_channel": "FP8-online",
    "fp8_per_block": "FP8-online",
    "modelopt": "FP8",
    "modelopt_fp4": "NVFP4",
    "modelopt_mxfp8": "MXFP8",
    "mxfp4": "MXFP4",
    "mxfp8": "MXFP8",
}
# compressed-tensors' floats, by bits and by what shares a scale.
_FLOATS = {
    (4, "tensor_group"): "NVFP4",
    (4, "group"): "MXFP4",
    (8, "group"): "MXFP8",
    (8, "block"): "FP8-block",
    (8, "channel"): "FP8-channel",
}
_DTYPES = {"bfloat16": "BF16", "float16": "FP16", "half": "FP16", "float32": "FP32"}

CAPABILITIES: Mapping[str, int] = {
    "K80": 37,
    "P100": 60,
    "P4": 61,
    "V100": 70,
    "T4": 75,
    "A100": 80,
    "A100-40G": 80,
    "A100-80G": 80,
    "A10G": 86,
    "L4": 89,
    "L40S": 89,
    "H100": 90,
    "H200": 90,
    "H20": 90,
    "B200": 100,
    "GB200": 100,
    "B300": 103,
    "GB300": 103,
    "RTX-PRO-6000": 120,
}
"""Compute capabilities by Ray's accelerator types."""


def weight_formats(folder: Path, engine_args: Mapping[str, Any]) -> list[WeightFormat]:
    """The formats of a local model's layers, read from its `config.json`.

    Args:
        engine_args: may quantize, or cast, at loading what is not quantized yet.
    """
    config = json.loads((folder / "config.json").read_text())
    config = {**config.get("text_config", {}), **config}
    quantized = config.get("quantization_config")
    if quantized is None:
        method, dtype = engine_args.get("quantization"), str(engine_args.get("dtype"))
        name = _METHODS.get(method, method) if method else _DTYPES.get(dtype, "unquantized")
        return [WeightFormat(name)]
    names = _names(quantized)
    return [WeightFormat(name, tuple(_widths(config))) for name in sorted(set(names))]


def model_refusal(
    folder: Path, engine_args: Mapping[str, Any], device: Device | None
) -> str | None:
    """Why the device, if it is known, cannot run the model in this folder."""
    if device is None:
        return None
    found = (refusal(fmt, device) for fmt in weight_formats(folder, engine_args))
    return next(filter(None, found), None)


def refusal(found: WeightFormat, device: Device) -> str | None:
    """Why the device cannot run the format, and which it can; None if it can.

    A format that this table does not know is left to vLLM.
    """
    needs = FORMATS.get(found.name)
    if needs is None:
        return None
    if not _has_kernel(needs, device):
        able = ", ".join(runnable(device))
        return f"{found.name} weights do not run on {device}; it can run {able}"
    for name, width in found.widths:
        if device.kind == "cpu" and width % needs.multiple_of:
            able = ", ".join(n for n in runnable(device) if FORMATS[n].multiple_of == 1)
            return (
                f"{found.name} weights run on a CPU where all widths are multiples of "
                f"{needs.multiple_of}, but {name} is {width}; it can run {able}"
            )
    return None


def runnable(device: Device) -> list[str]:
    """The names of the formats that the device has kernels for."""
    return [name for name, needs in FORMATS.items() if _has_kernel(needs, device)]


def computes_halves(cpu: Device) -> bool:
    """Whether 16-bit floats are a gain there; without AVX-512 each product is emulated.

    Measured on an EPYC with AVX2 alone, torch 2.13: a product of 256 x 1024 weights took 4 to 10
    times as long in bfloat16 as in float32, with 1 to 256 rows.
    """
    return cpu.features is None or bool(cpu.features & _WIDE)


def this_cpu() -> Device:
    """The CPU of this machine; its features stay unknown where Linux does not list them."""
    if not CPUINFO.is_file():
        return Device("cpu")
    return Device("cpu", features=cpu_flags(CPUINFO.read_text()) or None)


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """The first processor's flags in the text of /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _has_kernel(needs: Needs, device: Device) -> bool:
    if device.kind == "cpu":
        if needs.cpu is None:
            return False
        return not needs.cpu or device.features is None or bool(needs.cpu & device.features)
    if needs.capability is None or device.capability < needs.capability:
        return False
    return needs.below is None or device.capability < needs.below


def _names(quantized: Mapping[str, Any]) -> Iterator[str]:
    method = str(quantized.get("quant_method"))
    if method == "compressed-tensors":
        # Each group of layers may be stored in its own way.
        for group in quantized.get("config_groups", {}).values():
            yield _scheme(group)
    elif method == "modelopt":
        yield "NVFP4" if "FP4" in str(quantized.get("quant_algo")) else "FP8"
    elif quantized.get("weight_block_size"):
        yield "FP8-block"
    elif quantized.get("bits") == 8 and _METHODS.get(method) == "GPTQ":
        yield "GPTQ-8bit"
    else:
        yield _METHODS.get(method, method)


def _scheme(group: Mapping[str, Any]) -> str:
    """The name of a compressed-tensors scheme: bits of weights, then of activations."""
    weights, inputs = group["weights"], group.get("input_activations")
    bits, strategy = weights["num_bits"], weights.get("strategy")
    if weights.get("type") == "float":
        name = _FLOATS.get((bits, strategy), f"FP{bits}")
        return "FP8-W8A16" if name in ("FP8", "FP8-channel") and inputs is None else name
    if inputs is None:
        return f"W{bits}A16"
    return f"W{bits}A{inputs['num_bits']}-{'FP8' if inputs.get('type') == 'float' else 'INT8'}"


def _widths(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for name in ("hidden_size", "intermediate_size"):
        if isinstance(config.get(name), int):
            yield name, config[name]
