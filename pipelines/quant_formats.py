"""Low-bit weight formats that a student can be distilled into, and which layers they fit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["int4", "int8", "nvfp4"]

GROUP_SIZES: Mapping[Kind, tuple[int | None, ...]] = {
    "int4": (32, 64, 128),
    "int8": (None,),
    "nvfp4": (16,),
}


@dataclass(frozen=True)
class QuantFormat:
    """How linear layers are stored and computed.

    `int4` is W4A16: symmetric 4-bit weights in groups along the input, a bf16 scale each.
    `int8` is W8A8: symmetric 8-bit weights with a bf16 scale per output channel, and activations
    quantized to 8 bits per token while computing.
    `nvfp4` is W4A16 as well: E2M1 weights in blocks of 16 with an E4M3 scale each and one fp32
    scale over them; activations stay in 16 bits. W4A4 would need a calibrated scale of each
    layer's inputs, and a Blackwell GPU to check what was trained against.

    Attributes:
        group_size: inputs that share a scale; None where a whole output channel does.
    """

    kind: Kind
    group_size: int | None


def format_problem(fmt: QuantFormat, shapes: Mapping[str, tuple[int, int]]) -> str | None:
    """Why these linear layers cannot have this format, with the remedy; None if they can.

    Args:
        shapes: (outputs, inputs) of each layer, by its name in the model.
    """
    sizes = GROUP_SIZES[fmt.kind]
    if fmt.group_size not in sizes:
        able = " or ".join("none" if size is None else str(size) for size in sizes)
        return f"{fmt.kind} cannot have group_size {fmt.group_size}; to fix: set it to {able}"
    if not shapes:
        return "the model has no linear layers to quantize; to fix: choose another student"
    if fmt.group_size is None:
        return None
    for name, (_, inputs) in shapes.items():
        if inputs % fmt.group_size:
            return (
                f"{fmt.kind} in groups of {fmt.group_size} does not fit {name}: its {inputs} "
                f"inputs are no multiple of {fmt.group_size}; to fix: {_remedy(fmt, shapes)}"
            )
    return None


def _remedy(fmt: QuantFormat, shapes: Mapping[str, tuple[int, int]]) -> str:
    """The largest group size that fits all layers, or the format that has none."""
    fitting = [
        size
        for size in GROUP_SIZES[fmt.kind]
        if size is not None and all(inputs % size == 0 for _, inputs in shapes.values())
    ]
    return f"set group_size to {max(fitting)}" if fitting else "use int8, which has no groups"
