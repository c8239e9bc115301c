"""Packets of the weight stream: what their header says, and what a design has room for."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from sw_model.config import HardwareConfig

__all__ = [
    "BEAT_LIMBS",
    "HEADER",
    "LAYER_KINDS",
    "NARROW",
    "Kind",
    "capacities",
    "packet",
    "pieces",
    "row_bits",
    "table",
]

BEAT_LIMBS = 4  # 32-bit limbs of a beat


class Kind(IntEnum):
    """What the data beats of a weight packet hold. PAGE has none: a page is whole."""

    WORDS = 0
    SCALES = 1
    CONTEXTS = 2
    BIASES = 3
    COSTS = 4
    DOMAINS = 5
    RESIDENT = 6
    PAGE = 7


NARROW = frozenset({Kind.SCALES, Kind.BIASES, Kind.COSTS, Kind.DOMAINS, Kind.RESIDENT})
"""Kinds of four entries a beat."""

LAYER_KINDS = (Kind.WORDS, Kind.SCALES, Kind.CONTEXTS, Kind.BIASES, Kind.COSTS, Kind.DOMAINS)
"""Kinds that a layer is made of."""

HEADER = {"tile": 16, "kind": 3, "paged": 1, "expert": 12, "start": 32, "beats": 32}
"""Fields of a header beat and their widths, lowest first. ``paged``: the packet belongs to the page of
``expert``, and ``start`` counts from that page's slot; ``beats``: data beats that follow."""


def row_bits(config: HardwareConfig) -> dict[Kind, int]:
    """log2 of the addresses that a layer's row takes in the tables that have one for each layer."""
    expert = max(1, (config.max_experts - 1).bit_length())
    of_gate = {Kind.COSTS: expert, Kind.DOMAINS: max(1, (config.max_domains - 1).bit_length()) + expert}
    return {
        Kind.CONTEXTS: config.max_experts.bit_length(),
        Kind.BIASES: expert,
        **(of_gate if config.gate else {}),
    }


def capacities(config: HardwareConfig) -> dict[Kind, int]:
    """Entries that the memory of every kind holds (words and scales: in every tile)."""
    row = 1 << max(1, (config.max_experts - 1).bit_length())
    entries = {
        Kind.CONTEXTS: config.max_experts + 1,
        Kind.BIASES: config.max_experts,
        Kind.COSTS: config.max_experts,
        Kind.DOMAINS: config.max_domains * row,
    }
    rows = config.max_layers - 1  # before the last, which may be shorter
    return {
        Kind.WORDS: config.words,
        Kind.SCALES: config.scales,
        **{kind: (rows << bits) + entries[kind] for kind, bits in row_bits(config).items()},
        **({Kind.RESIDENT: config.max_experts} if config.gate else {}),
    }


def packet(
    kind: Kind,
    data: np.ndarray | None = None,
    *,
    tile: int = 0,
    start: int = 0,
    page: int | None = None,
) -> np.ndarray:
    """Beats uint32 [1 + beats, 4]: a header, then ``data`` (whole beats; None: a header alone).

    ``page`` : the packet belongs to the page of this expert.
    """
    beats = np.zeros((0, BEAT_LIMBS), np.uint32) if data is None else data.reshape(-1, BEAT_LIMBS)
    value = {
        "tile": tile,
        "kind": kind,
        "paged": page is not None,
        "expert": page or 0,
        "start": start,
        "beats": len(beats),
    }
    at = header = 0
    for name, width in HEADER.items():
        header |= int(value[name]) << at
        at += width
    limbs = [header >> 32 * i & 0xFFFFFFFF for i in range(BEAT_LIMBS)]
    return np.concatenate([np.array([limbs], dtype=np.uint32), beats.astype(np.uint32)])


def pieces(whole: np.ndarray, beats: int) -> list[np.ndarray]:
    """A packet as several that each have at most ``beats`` beats, for a link with a small buffer."""
    room = beats - 1
    if len(whole) <= beats:
        return [whole]
    kind = Kind(int(whole[0, 0]) >> 16 & 7)
    entries = BEAT_LIMBS if kind in NARROW else 1  # addresses a beat
    parts = []
    for at in range(1, len(whole), room):
        part = np.concatenate([whole[:1], whole[at : at + room]])
        part[0, 1] += (at - 1) * entries
        part[0, 2] = len(part) - 1
        parts.append(part)
    return parts


def table(entries: np.ndarray) -> np.ndarray:
    """Entries of 32 bits, filled up to whole beats."""
    return np.pad(entries & 0xFFFFFFFF, (0, -len(entries) % BEAT_LIMBS)).astype(np.uint32)
