"""Quantized copies of a small model, written with compressed-tensors' own compressors.

Scales are the largest weight of a group or channel, rounded to nearest: no calibration, which a
test of loading does not need.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file

from pipelines.formats import runnable, this_cpu

needs_four_bits = pytest.mark.skipif(
    "W4A16" not in runnable(this_cpu()), reason="this CPU has no AVX-512, vLLM no 4-bit kernel"
)
PER_TOKEN_INT8: dict[str, Any] = {
    "num_bits": 8,
    "type": "int",
    "strategy": "token",
    "dynamic": True,
}
W4A16: dict[str, Any] = {
    "format": "pack-quantized",
    "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32},
}
W8A8: dict[str, Any] = {
    "format": "int-quantized",
    "weights": {"num_bits": 8, "type": "int", "strategy": "channel"},
    "input_activations": PER_TOKEN_INT8,
}


def quantize_model(source: Path, target: Path, scheme: dict[str, Any]) -> Path:
    """Copy the model with the weights of all its linear layers quantized."""
    shutil.copytree(source, target)
    parsed = QuantizationScheme(targets=["Linear"], **scheme)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(source / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            module = name.removesuffix(".weight")
            compressed = _compressed(weight, parsed)
            tensors.update({f"{module}.{part}": value for part, value in compressed.items()})
        else:
            tensors[name] = weight
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": scheme["format"],
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": parsed.model_dump(mode="json")},
    }
    (target / "config.json").write_text(json.dumps(config))
    return target


def _compressed(weight: torch.Tensor, scheme: QuantizationScheme) -> dict[str, torch.Tensor]:
    group = scheme.weights.group_size or weight.shape[1]
    groups = weight.float().unflatten(1, (-1, group))
    scale, zero_point = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
    state = {
        "weight": weight,
        "weight_scale": scale.to(weight.dtype),
        "weight_zero_point": zero_point.to(torch.int8),
    }
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    return compressor.compress(state, scheme)
