"""Several layers on chip at once: their images joined into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np

from sw_model.config import HardwareConfig, load_config, presets
from sw_model.errors import ExpertileError
from sw_model.image import PLACE_REGISTERS, Image
from sw_model.packets import Kind, row_bits, table

__all__ = ["for_layers", "join"]


def for_layers(config: HardwareConfig, layers: int) -> HardwareConfig:
    """``config`` if it holds so many layers at once, else the preset that is like it but for that.

    Raises
    ------
    ExpertileError : there is no such preset
    """
    if layers <= config.max_layers:
        return config
    keys = {field.name for field in fields(config)} - {"name", "max_layers"}
    for other in map(load_config, presets()):
        alike = all(getattr(other, key) == getattr(config, key) for key in keys)
        if alike and layers <= other.max_layers:
            return other
    raise _too_many(config, layers)


def join(images: Sequence[Image], config: HardwareConfig) -> Image:
    """One image of several layers, each compiled alone for ``config``; the design wakes up as the first.

    Words and scales of a layer stand behind those of the layers before it; its contexts and its tables are
    row number :data:`LAYER <sw_model.image.PLACE_REGISTERS>` of the design's. One image is given back as it
    is.

    Raises
    ------
    ExpertileError : there are too many, they are too large together, or one of them is paged
    """
    if len(images) == 1:
        return images[0]
    if len(images) > config.max_layers:
        raise _too_many(config, len(images))
    if any(image.registers["PAGE_SLOTS"] for image in images):
        raise ExpertileError(
            f"config {config.name!r}: a layer fits only in part, so it cannot be on chip beside others; use "
            "a configuration with more words and scales, a narrower format, or choose one layer"
        )
    words, scales = (
        np.concatenate([getattr(i, name) for i in images], axis=1) for name in ("words", "scales")
    )
    for what, need, have in (
        ("words", words.shape[1], config.words),
        ("scales", scales.shape[1], config.scales),
    ):
        if need > have:
            raise ExpertileError(
                f"config {config.name!r}: the {len(images)} layers need {need} macro {what} a tile, over its "
                f"{have}; use a configuration with {what} >= {need} or more tiles, a narrower format, or "
                "choose fewer layers"
            )
    places = [(0, 0, 0)]
    for number, image in enumerate(images[:-1], start=1):
        _, word, scale = places[-1]
        places.append((number, word + image.words.shape[1], scale + image.scales.shape[1]))
    contexts = [
        image.contexts + np.array([word, scale] * 2, dtype=np.uint32)
        for image, (_, word, scale) in zip(images, places, strict=True)
    ]
    rows = row_bits(config)

    def rows_of(kind: Kind, name: str) -> np.ndarray:
        return table(_rows([getattr(image, name) for image in images], rows.get(kind, 0)))

    return replace(
        images[0],
        words=words,
        scales=scales,
        contexts=_rows(contexts, rows[Kind.CONTEXTS]),
        biases=rows_of(Kind.BIASES, "biases"),
        costs=rows_of(Kind.COSTS, "costs"),
        domains=rows_of(Kind.DOMAINS, "domains"),
        more=tuple(
            image.registers | dict(zip(PLACE_REGISTERS, place, strict=True))
            for image, place in zip(images[1:], places[1:], strict=True)
        ),
    )


def _rows(layers: Sequence[np.ndarray], bits: int) -> np.ndarray:
    """Layer i's entries from address ``i << bits`` on, zeros between; nothing if no layer has any. What a
    layer has behind its row, which only fills its last beat up, gives way to the next layer's."""
    ends = [(i << bits) + len(entries) for i, entries in enumerate(layers) if len(entries)]
    whole = np.zeros((max(ends, default=0), *layers[0].shape[1:]), dtype=np.uint32)
    for i, entries in enumerate(layers):
        whole[i << bits :][: len(entries)] = entries
    return whole


def _too_many(config: HardwareConfig, layers: int) -> ExpertileError:
    """What is raised where ``layers`` are to be on chip at once, more than ``config`` holds."""
    return ExpertileError(
        f"config {config.name!r}: {layers} layers are over its max_layers of {config.max_layers}; use a "
        f"configuration with max_layers >= {layers}, or choose one layer"
    )
