"""Writes a fake-quantized model as the compressed-tensors files that vLLM loads."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
from safetensors.torch import save_file
from torch import Tensor

from actors.fake_quant import FakeQuantLinear, fake_quant_layers
from pipelines.quant_formats import Kind, QuantFormat

_PRESETS: dict[Kind, str] = {"int4": "W4A16", "int8": "W8A8", "nvfp4": "NVFP4A16"}
_FILE_FORMATS: dict[Kind, str] = {
    "int4": "pack-quantized",
    "int8": "int-quantized",
    "nvfp4": "nvfp4-pack-quantized",
}
# Of a source, what the export replaces: weights in any framework's files, and the words on them.
_REPLACED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".index.json", ".md")


def export(model: Any, fmt: QuantFormat, source_dir: Path, out_dir: Path) -> None:
    """Write the model with the scales and codes of its fake-quantized layers, all else in bf16.

    Tokenizer, chat template and generation config are the source's. The folder is written beside
    and renamed: it appears whole or not at all.

    Args:
        source_dir: the model's folder before it was quantized.

    Raises:
        ValueError: the model's layers do not have this format.
        FileExistsError: there is something at `out_dir` already.
    """
    layers = fake_quant_layers(model)
    if not layers or any(layer.fmt != fmt for layer in layers.values()):
        raise ValueError(f"the model is not quantized to {fmt}; to fix: call fake_quantize first")
    if out_dir.exists():
        raise FileExistsError(f"{out_dir} exists; to fix: remove it or name another folder")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=f".{out_dir.name}-") as scratch:
        # Inside, because the scratch folder itself is readable by its owner only.
        whole = Path(scratch) / "model"
        whole.mkdir()
        _copy_rest(source_dir, whole)
        save_file(_tensors(model), whole / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((source_dir / "config.json").read_text())
        config.pop("torch_dtype", None)
        config |= {"dtype": "bfloat16", "quantization_config": _quantization_config(model, fmt)}
        (whole / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        whole.rename(out_dir)


def scheme_of(fmt: QuantFormat) -> QuantizationScheme:
    """The format in compressed-tensors' words."""
    scheme = preset_name_to_scheme(_PRESETS[fmt.kind], ["Linear"])
    scheme.format = _FILE_FORMATS[fmt.kind]
    if fmt.kind == "int4":
        scheme.weights.group_size = fmt.group_size
    return scheme


def _copy_rest(source: Path, target: Path) -> None:
    for file in source.iterdir():
        if file.is_file() and file.name != "config.json" and not file.name.endswith(_REPLACED):
            shutil.copy(file, target)


def _quantization_config(model: torch.nn.Module, fmt: QuantFormat) -> dict[str, Any]:
    ignored = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not isinstance(module, FakeQuantLinear)
    ]
    return {
        "quant_method": "compressed-tensors",
        "format": _FILE_FORMATS[fmt.kind],
        "quantization_status": "compressed",
        "ignore": ignored,
        "config_groups": {"group_0": scheme_of(fmt).model_dump(mode="json")},
    }


@torch.no_grad()
def _tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """All tensors of the file by name; of tied ones the first."""
    tensors: dict[str, Tensor] = {}
    layers = fake_quant_layers(model)
    replaced = {f"{name}.{part}" for name in layers for part in ("weight", "log_scale", "unit")}
    written = set()
    for name, tensor in model.state_dict().items():
        if name in replaced or tensor.data_ptr() in written:
            continue
        written.add(tensor.data_ptr())
        tensors[name] = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
    for name, layer in layers.items():
        tensors |= {f"{name}.{part}": tensor for part, tensor in _packed(layer).items()}
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _packed(layer: FakeQuantLinear) -> dict[str, Tensor]:
    """The layer under compressed-tensors' names."""
    codes, scales = layer.codes(), layer.stored_scales()
    if layer.fmt.kind == "nvfp4":
        return {
            "weight_packed": pack_fp4_to_uint8(codes),
            "weight_scale": scales.to(torch.float8_e4m3fn),
            "weight_global_scale": layer.unit.reciprocal().reshape(1),
        }
    integers = codes.to(torch.int8)
    if layer.fmt.kind == "int8":
        return {"weight": integers, "weight_scale": scales.to(torch.bfloat16)}
    return {
        "weight_packed": pack_to_int32(integers, num_bits=4),
        "weight_scale": scales.to(torch.bfloat16),
        "weight_shape": torch.tensor(codes.shape),
    }
