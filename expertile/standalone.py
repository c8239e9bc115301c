"""The weight image that goes into a bitstream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sw_model.checkpoint import Checkpoint
from sw_model.compiler import compile
from sw_model.config import HardwareConfig, load_config
from sw_model.errors import ExpertileError
from sw_model.gate_file import load
from sw_model.image import Image
from sw_model.joined import for_layers, join
from sw_model.quantised import QuantisedLayer, quantise

__all__ = ["baked", "resident"]


def baked(
    checkpoint: Path, layer: int | None, fmt: str, config: str | None, preset: str, gate: Path | None
) -> tuple[HardwareConfig, Image]:
    """The MoE layers of a checkpoint, or number ``layer`` alone, for a device that works by itself; with the
    gate of a file, if one is named.

    Parameters
    ----------
    config, preset
        The configuration by name; None: ``preset``, or the one that is like it with room for so many layers.

    Raises
    ------
    ExpertileError
        There is no such layer or gate, or not all experts of all layers fit on chip.
    """
    source = Checkpoint.open(checkpoint)
    numbers = source.moe_layers if layer is None else [layer]
    hardware = for_layers(load_config(preset), len(numbers)) if config is None else load_config(config)
    gates = None if gate is None else load(gate)
    layers = [
        quantise(source.moe_layer(n), fmt, hardware, gate=None if gates is None else gates.gate(n))
        for n in numbers
    ]
    return hardware, resident(layers, numbers, hardware)


def resident(layers: Sequence[QuantisedLayer], numbers: Sequence[int], config: HardwareConfig) -> Image:
    """The image of ``layers``, MoE layers ``numbers``, for a device that works by itself.

    Raises
    ------
    ExpertileError
        Not all of their experts fit on chip.
    """
    images = [compile(layer, config) for layer in layers]
    for number, image in zip(numbers, images, strict=True):
        if slots := image.registers["PAGE_SLOTS"]:
            raise ExpertileError(
                f"config {config.name!r}: only {slots} of the experts of layer {number} fit on chip, others "
                "come from a host; use a configuration with more words and scales"
            )
    return join(images, config)
