"""The weight image that goes into a bitstream."""

from __future__ import annotations

from pathlib import Path

from sw_model.checkpoint import Checkpoint
from sw_model.compiler import compile
from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError
from sw_model.image import Image
from sw_model.quantised import QuantisedLayer, quantise

__all__ = ["baked", "resident"]


def baked(checkpoint: Path, layer: int | None, fmt: str, config: HardwareConfig) -> Image:
    """MoE layer number ``layer`` of a checkpoint, its first if None, for a device that works by itself.

    Raises
    ------
    ExpertileError : there is no such layer, or not all of its experts fit on chip
    """
    source = Checkpoint.open(checkpoint)
    number = source.moe_layers[0] if layer is None else layer
    return resident(quantise(source.moe_layer(number), fmt, config), number, config)


def resident(layer: QuantisedLayer, number: int, config: HardwareConfig) -> Image:
    """The image of ``layer``, MoE layer ``number``, for a device that works by itself.

    Raises
    ------
    ExpertileError : not all of its experts fit on chip
    """
    image = compile(layer, config)
    if slots := image.registers["PAGE_SLOTS"]:
        raise ExpertileError(
            f"config {config.name!r}: only {slots} of the experts of layer {number} fit on chip, others come "
            "from a host; use a configuration with more words and scales"
        )
    return image
