"""A model with the shape of a well-known one and no weights: for what size alone decides.

    python -m bench.shapes llama-8b out/llama-8b
    python -m bench.shapes llama-8b out/llama-8b-int4 --weights int4

Engines load it with `load_format: dummy`, which fills it with random numbers on the device. Its
answers are nonsense of the full vocabulary; what it costs to compute them is not. The tokenizer is
the demo's with words added until it has the shape's vocabulary, because an engine turns every token
that it draws into text.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import click

from actors.quantized_export import scheme_of
from pipelines.quant_formats import QuantFormat

SHAPES: dict[str, dict[str, Any]] = {
    "llama-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "vocab_size": 128256,
    },
}
"""Llama 3's, from its published config.json."""
WEIGHTS = ("bf16", "fp8", "int8", "int4")


def write(shape: str, weights: str, folder: Path, tokenizer: Path) -> None:
    """A model folder that engines load without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(tokenizer / name, folder)
    config = json.loads((tokenizer / "config.json").read_text()) | SHAPES[shape]
    if weights != "bf16":
        config["quantization_config"] = _quantization_config(weights)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    words = json.loads((tokenizer / "tokenizer.json").read_text())
    known = words["model"]["vocab"]
    known |= {f"\u0120t{number}": number for number in range(len(known), config["vocab_size"])}
    (folder / "tokenizer.json").write_text(json.dumps(words))


def _quantization_config(weights: str) -> dict[str, Any]:
    from compressed_tensors.quantization import preset_name_to_scheme

    if weights == "fp8":
        scheme = preset_name_to_scheme("FP8_DYNAMIC", ["Linear"])
        scheme.format = "float-quantized"
    else:
        kind: Any = weights
        scheme = scheme_of(QuantFormat(kind, 128 if weights == "int4" else None))
    return {
        "quant_method": "compressed-tensors",
        "format": scheme.format,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": scheme.model_dump(mode="json")},
    }


@click.command()
@click.argument("shape", type=click.Choice(list(SHAPES)))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--weights", type=click.Choice(WEIGHTS), default="bf16", show_default=True)
@click.option("--tokenizer", type=click.Path(path_type=Path), default="demo/models/large")
def main(shape: str, folder: Path, weights: str, tokenizer: Path) -> None:
    """Write a model folder of that SHAPE."""
    write(shape, weights, folder, tokenizer)


if __name__ == "__main__":
    main()
