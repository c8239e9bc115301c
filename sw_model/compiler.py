"""Compiler: a quantised layer to the weight image, that is macro words, scale entries and register values.

Placement: row r of a matrix lives in tile ``r mod tiles`` as row slot ``r // tiles``. All tiles share one
address map. Within a slot come the blocks, within a block the nibble planes, most significant first. A row
count that is no multiple of ``tiles`` is filled up with zero rows. In a tile's memory stand, in order, the
router, the base expert's gate_up and down, then every routed expert's gate_up and down (constant stride).

    word      32 lanes x 4 bits, lane i in bits 4 i + 3 .. 4 i; a first plane's lane is {sign, magnitude[2:0]}
    scale     {row exponent + 134 [8], shift [5], mantissa without its leading one [7]}
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError
from sw_model.formats import BLOCK, MANT_BITS, NIBBLE, ROW_EXP_BIAS, SHIFT_BITS, QuantisedMatrix
from sw_model.quantised import QuantisedExpert, QuantisedLayer

WORD_LIMBS = BLOCK * NIBBLE // 32  # 32-bit limbs of a macro word, and of a beat on the weight stream
KIND_WORDS, KIND_SCALES = 0, 1
FLAG_RENORMALISE, FLAG_SHARED, FLAG_SHARED_GATED = 1, 2, 4


@dataclass(frozen=True, kw_only=True)
class Image:
    """What is loaded into one generated accelerator to make it one MoE layer.

    words : uint32 [tiles, used words, 4]; scales : uint32 [tiles, used entries (multiple of 4)];
    registers : register name -> value; config : name of the configuration it was compiled for.
    """

    words: np.ndarray
    scales: np.ndarray
    registers: dict[str, int]
    config: str

    def packets(self) -> Iterator[np.ndarray]:
        """Weight-stream packets, uint32 [beats, 4]: a header (tile, kind, start address), then data."""
        for tile in range(len(self.words)):
            for kind, data in ((KIND_WORDS, self.words[tile]), (KIND_SCALES, self.scales[tile])):
                header = np.array([[tile | kind << 16, 0, 0, 0]], dtype=np.uint32)
                yield np.concatenate([header, data.reshape(-1, WORD_LIMBS)])

    def save(self, path: Path) -> None:
        """Write as safetensors; registers and configuration name are its metadata."""
        meta = {"config": self.config, "registers": json.dumps(self.registers, sort_keys=True)}
        path.write_bytes(save({"words": self.words, "scales": self.scales}, metadata=meta))

    @staticmethod
    def load(path: Path) -> Image:
        """Read what :meth:`save` wrote; raises :class:`ExpertileError` on anything else."""
        try:
            with safe_open(path, framework="numpy") as f:
                meta = f.metadata() or {}
                return Image(
                    words=f.get_tensor("words"),
                    scales=f.get_tensor("scales"),
                    registers={k: int(v) for k, v in json.loads(meta["registers"]).items()},
                    config=meta["config"],
                )
        except (OSError, SafetensorError, KeyError, ValueError) as e:
            raise ExpertileError(f"weight image {path}: not readable ({e}); compile it again") from None


def _slots(a: np.ndarray, tiles: int) -> np.ndarray:
    """[rows, ...] as [tiles, slots, ...], filled up with zero rows."""
    slots = -(-len(a) // tiles)
    a = np.pad(a, [(0, slots * tiles - len(a))] + [(0, 0)] * (a.ndim - 1))
    return a.reshape(slots, tiles, *a.shape[1:]).swapaxes(0, 1)


def pack_words(codes: np.ndarray, planes: int) -> np.ndarray:
    """Codes [..., BLOCK] as macro words uint32 [..., planes, 4], most significant plane first."""
    mag = np.abs(codes).astype(np.uint32)
    mag |= (codes < 0).astype(np.uint32) << (NIBBLE * planes - 1)
    nibbles = np.stack([(mag >> (NIBBLE * p)) & 15 for p in reversed(range(planes))], axis=-2)
    per_limb = 32 // NIBBLE
    nibbles = nibbles.reshape(*nibbles.shape[:-1], WORD_LIMBS, per_limb)
    return np.bitwise_or.reduce(nibbles << (NIBBLE * np.arange(per_limb, dtype=np.uint32)), axis=-1).astype(
        np.uint32
    )


def pack_scales(m: QuantisedMatrix) -> np.ndarray:
    """Scale entries uint32 [rows, blocks]."""
    row = (m.row_exp + ROW_EXP_BIAS)[:, None] << (SHIFT_BITS + MANT_BITS - 1)
    return (row | m.shift << (MANT_BITS - 1) | (m.mant - (1 << (MANT_BITS - 1)))).astype(np.uint32)


class _Placer:
    """Appends matrices to the tiles' memories and keeps the addresses."""

    def __init__(self, tiles: int) -> None:
        self.tiles = tiles
        self.words: list[np.ndarray] = []
        self.scales: list[np.ndarray] = []
        self.address = (0, 0)

    def place(self, m: QuantisedMatrix) -> tuple[int, int]:
        """Append one matrix; returns its (word, scale) address."""
        at = self.address
        words = _slots(pack_words(m.codes, m.fmt.planes), self.tiles).reshape(self.tiles, -1, WORD_LIMBS)
        scales = _slots(pack_scales(m), self.tiles).reshape(self.tiles, -1)
        self.words.append(words)
        self.scales.append(scales)
        self.address = (at[0] + words.shape[1], at[1] + scales.shape[1])
        return at

    def expert(self, e: QuantisedExpert) -> tuple[tuple[int, int], tuple[int, int]]:
        return self.place(e.gate_up), self.place(e.down)


def compile(layer: QuantisedLayer, config: HardwareConfig) -> Image:
    """Place ``layer`` into the macros of ``config``.

    Raises
    ------
    ExpertileError : the layer does not fit the macros; says how many words or scales it needs
    """
    placer = _Placer(config.tiles)
    placer.place(layer.router)
    shared = placer.expert(layer.shared) if layer.shared is not None else ((0, 0), (0, 0))
    experts = [placer.expert(e) for e in layer.experts]
    end = placer.address
    for what, need, have in (("words", end[0], config.words), ("scales", end[1], config.scales)):
        if need > have:
            raise ExpertileError(
                f"config {config.name!r}: the layer needs {need} macro {what} a tile at {layer.fmt.name}, "
                f"over its {have}; use a configuration with {what} >= {need} more tiles, or a narrower format"
            )
    first = experts[0]
    second = experts[1][0] if len(experts) > 1 else end
    flags = FLAG_RENORMALISE * layer.renormalise
    flags |= FLAG_SHARED * (layer.shared is not None) | FLAG_SHARED_GATED * layer.shared_gated
    registers = {
        "HIDDEN": layer.hidden,
        "INTERMEDIATE": layer.intermediate,
        "SHARED_INTERMEDIATE": layer.shared.intermediate if layer.shared is not None else 0,
        "EXPERTS": layer.n_experts,
        "TOP_K": layer.top_k,
        "FLAGS": flags,
        "PLANES": layer.fmt.planes,
        "DOWN_BASE": layer.down_base + ROW_EXP_BIAS,
        "SHARED_WORD": shared[0][0],
        "SHARED_SCALE": shared[0][1],
        "SHARED_DOWN_WORD": shared[1][0],
        "SHARED_DOWN_SCALE": shared[1][1],
        "EXPERT_WORD": first[0][0],
        "EXPERT_SCALE": first[0][1],
        "EXPERT_DOWN_WORD": first[1][0],
        "EXPERT_DOWN_SCALE": first[1][1],
        "EXPERT_WORD_STRIDE": second[0] - first[0][0],
        "EXPERT_SCALE_STRIDE": second[1] - first[0][1],
    }
    scales = np.concatenate(placer.scales, axis=1)
    scales = np.pad(scales, [(0, 0), (0, -scales.shape[1] % 4)])
    return Image(
        words=np.concatenate(placer.words, axis=1), scales=scales, registers=registers, config=config.name
    )
