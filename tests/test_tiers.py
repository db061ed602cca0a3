"""What `check` refuses of a tier, before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import RUN_CONFIGS, vllm_tier

from jobs.engine_args import engine_arg_names
from jobs.tiers import check_tier
from pipelines.config import RunConfig
from pipelines.config_file import load_config
from pipelines.errors import UsageProblem

NVFP4 = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {"weights": {"num_bits": 4, "type": "float", "strategy": "tensor_group"}}
    },
}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
W8A8 = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": INT8, "input_activations": INT8}},
}


@pytest.fixture
def model(tmp_path: Path) -> Any:
    def make(quantization_config: dict[str, Any]) -> str:
        config = {"hidden_size": 64, "quantization_config": quantization_config}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return str(tmp_path)

    return make


def test_a_format_without_a_kernel_on_this_cpu_is_refused(model: Any) -> None:
    with pytest.raises(UsageProblem) as caught:
        check_tier(vllm_tier(model=model(NVFP4)))
    message = str(caught.value)
    assert message.startswith("tiers.t.engine.model:")
    assert "NVFP4 weights do not run on a CPU" in message
    assert "W8A8-INT8" in message
    assert "To fix:" in message


def test_a_stated_accelerator_decides_for_gpus(model: Any) -> None:
    check_tier(vllm_tier(model=model(W8A8), num_gpus=1, accelerator="H100"))
    with pytest.raises(UsageProblem, match=r"W8A8-INT8 .* compute capability 10\.0"):
        check_tier(vllm_tier(model=model(W8A8), num_gpus=1, accelerator="B200"))


def test_a_gpu_of_no_stated_kind_is_left_to_the_engine(model: Any) -> None:
    check_tier(vllm_tier(model=model({"quant_method": "bitsandbytes"}), num_gpus=1))


def test_an_unknown_accelerator_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UsageProblem, match=r"tiers\.t\.accelerator: H10.* H100"):
        check_tier(vllm_tier(num_gpus=1, accelerator="H10"))


def test_an_unknown_engine_argument_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UsageProblem) as caught:
        check_tier(vllm_tier({"max_model_length": 512}))
    message = str(caught.value)
    assert message.startswith("tiers.t.engine.engine_args.max_model_length:")
    assert "max_model_len" in message


def test_engine_arguments_are_those_of_vllm_itself() -> None:
    from dataclasses import fields

    from vllm import AsyncEngineArgs

    assert engine_arg_names() == {field.name for field in fields(AsyncEngineArgs)}


@pytest.mark.parametrize("path", RUN_CONFIGS, ids=lambda p: p.name)
def test_shipped_configs_name_real_engine_arguments(path: Path) -> None:
    config: RunConfig = load_config(path)
    for tier in config.tiers:
        check_tier(tier)
