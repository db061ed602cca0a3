"""Which formats are read from model files, and which devices are refused them."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.tiers import ACCELERATORS
from pipelines.formats import (
    CAPABILITIES,
    Device,
    computes_halves,
    cpu_flags,
    model_refusal,
    runnable,
    this_cpu,
    weight_formats,
)

AVX2, ARM = (Device("cpu", features=frozenset({flag})) for flag in ("avx2", "asimd"))
CPU = Device("cpu", features=frozenset({"avx2", "avx512f"}))
AMX = Device("cpu", features=CPU.features | {"amx_tile"})
T4, A100, H100, B200 = (Device("cuda", c) for c in (75, 80, 90, 100))


def compressed(weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
FLOAT8 = {"num_bits": 8, "type": "float", "strategy": "channel"}
BLOCKS = {"num_bits": 8, "type": "float", "strategy": "block"}
FLOAT4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}


def model(folder: Path, quantization_config: dict[str, Any] | None, **fields: Any) -> Path:
    folder.mkdir(exist_ok=True)
    config = {"hidden_size": 4096, "intermediate_size": 11008, "dtype": "bfloat16", **fields}
    if quantization_config:
        config["quantization_config"] = quantization_config
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("quantization_config", "engine_args", "name"),
    [
        (compressed(INT4), {}, "W4A16"),
        (compressed({**INT4, "num_bits": 8}), {}, "W8A16"),
        (compressed(INT8, INT8), {}, "W8A8-INT8"),
        (compressed(INT4, INT8), {}, "W4A8-INT8"),
        (compressed(INT4, FLOAT8), {}, "W4A8-FP8"),
        (compressed({**FLOAT8, "strategy": "tensor"}, FLOAT8), {}, "FP8"),
        (compressed(FLOAT8, FLOAT8), {}, "FP8-channel"),
        (compressed(FLOAT8), {}, "FP8-W8A16"),
        (compressed(BLOCKS, FLOAT8), {}, "FP8-block"),
        (compressed(FLOAT4, FLOAT4), {}, "NVFP4"),
        (compressed(FLOAT4), {}, "NVFP4"),
        ({"quant_method": "awq", "bits": 4}, {}, "AWQ"),
        ({"quant_method": "gptq", "bits": 4}, {}, "GPTQ"),
        ({"quant_method": "gptq", "bits": 8}, {}, "GPTQ-8bit"),
        ({"quant_method": "fp8"}, {}, "FP8"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, {}, "FP8-block"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, {}, "NVFP4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, {}, "FP8"),
        ({"quant_method": "bitsandbytes"}, {}, "bitsandbytes"),
        ({"quant_method": "brand-new"}, {}, "brand-new"),
        (None, {}, "unquantized"),
        (None, {"dtype": "bfloat16"}, "BF16"),
        (None, {"quantization": "fp8_per_tensor"}, "FP8-online"),
    ],
)
def test_a_models_files_name_its_format(
    tmp_path: Path,
    quantization_config: dict[str, Any] | None,
    engine_args: dict[str, Any],
    name: str,
) -> None:
    (found,) = weight_formats(model(tmp_path, quantization_config), engine_args)
    assert found.name == name


@pytest.mark.parametrize(
    ("name", "runs_on"),
    [
        ("BF16", {AVX2, ARM, CPU, AMX, A100, H100, B200}),
        ("W4A16", {ARM, CPU, AMX, T4, A100, H100, B200}),
        ("W8A16", {T4, A100, H100, B200}),
        ("W8A8-INT8", {AVX2, ARM, CPU, AMX, T4, A100, H100}),
        ("FP8", {AMX, T4, A100, H100, B200}),
        ("FP8-channel", {AVX2, ARM, CPU, AMX, T4, A100, H100, B200}),
        ("FP8-W8A16", {T4, A100, H100, B200}),
        ("FP8-block", {AMX, T4, A100, H100, B200}),
        ("FP8-online", {T4, A100, H100, B200}),
        ("NVFP4", {T4, A100, H100, B200}),
        ("AWQ", {ARM, CPU, AMX, T4, A100, H100, B200}),
        ("GPTQ", {ARM, CPU, AMX, T4, A100, H100, B200}),
        ("GPTQ-8bit", {T4, A100, H100, B200}),
        ("bitsandbytes", set()),
    ],
)
def test_a_format_runs_where_vllm_has_a_kernel(name: str, runs_on: set[Device]) -> None:
    devices = (AVX2, ARM, CPU, AMX, T4, A100, H100, B200)
    assert {device for device in devices if name in runnable(device)} == runs_on


def test_a_refusal_names_the_format_the_device_and_what_runs_there(tmp_path: Path) -> None:
    problem = model_refusal(model(tmp_path, compressed(FLOAT4, FLOAT4)), {}, CPU)
    assert problem is not None
    assert "NVFP4 weights do not run on a CPU without AMX" in problem
    assert all(name in problem for name in ("BF16", "W4A16", "W8A8-INT8", "AWQ", "GPTQ"))
    assert "GPTQ-8bit" not in problem
    problem = model_refusal(model(tmp_path, compressed(INT4)), {}, AVX2)
    assert problem is not None
    assert "W4A16 weights do not run on a CPU without AVX-512 and AMX; it can run" in problem


def test_a_width_that_the_cpu_kernel_cannot_divide_is_refused(tmp_path: Path) -> None:
    folder = model(tmp_path, compressed(INT4), intermediate_size=1000)
    problem = model_refusal(folder, {}, CPU)
    assert problem is not None
    assert "multiples of 32, but intermediate_size is 1000" in problem
    assert "W8A8-INT8" in problem
    assert "AWQ" not in problem
    assert model_refusal(folder, {}, H100) is None


def test_one_group_of_layers_that_cannot_run_is_enough(tmp_path: Path) -> None:
    mixed = compressed(INT4)
    mixed["config_groups"]["group_1"] = {"targets": ["re:.*down_proj"], "weights": FLOAT4}
    problem = model_refusal(model(tmp_path, mixed), {}, CPU)
    assert problem is not None
    assert problem.startswith("NVFP4")


def test_what_the_table_or_the_driver_does_not_know_is_left_to_the_engine(tmp_path: Path) -> None:
    assert model_refusal(model(tmp_path, {"quant_method": "brand-new"}), {}, CPU) is None
    fp8_blocks = model(tmp_path, compressed(BLOCKS, FLOAT8))
    assert model_refusal(fp8_blocks, {}, None) is None
    assert model_refusal(fp8_blocks, {}, Device("cpu")) is None
    assert model_refusal(fp8_blocks, {}, CPU) is not None


def test_flags_are_read_from_both_kinds_of_cpuinfo() -> None:
    x86 = "processor\t: 0\nflags\t\t: fpu amx_tile avx512f\n\nprocessor\t: 1\nflags\t\t: fpu\n"
    assert cpu_flags(x86) == {"fpu", "amx_tile", "avx512f"}
    assert cpu_flags("processor\t: 0\nFeatures\t: asimd bf16\n") == {"asimd", "bf16"}


@pytest.mark.parametrize(
    ("cpuinfo", "features", "halves"),
    [
        ("flags\t: fpu avx2\n", {"fpu", "avx2"}, False),
        ("flags\t: fpu avx512f\n", {"fpu", "avx512f"}, True),
        ("Features\t: asimd\n", {"asimd"}, True),
        ("cpu\t: POWER9\n", None, True),
    ],
)
def test_a_cpu_is_slow_at_16_bits_only_if_its_flags_say_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cpuinfo: str,
    features: set[str] | None,
    halves: bool,
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr("pipelines.formats.CPUINFO", tmp_path / "cpuinfo")
    assert this_cpu().features == features
    assert computes_halves(this_cpu()) == halves


def test_every_capability_is_of_an_accelerator_that_ray_knows() -> None:
    assert set(CAPABILITIES) <= set(ACCELERATORS)
