"""Weight image: what is loaded into one accelerator to make it MoE layers, in memory and on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sw_model.errors import ExpertileError
from sw_model.gate import MAX_TAU
from sw_model.packets import BEAT_LIMBS, Kind, packet, table
from sw_model.pages import PAGE_REGISTERS, Pages

__all__ = ["LAYER_REGISTERS", "PLACE_REGISTERS", "REGISTER_NAMES", "Image", "integers", "resident_packet"]

LAYER_REGISTERS = (
    "HIDDEN",
    "INTERMEDIATE",
    "SHARED_INTERMEDIATE",
    "EXPERTS",
    "TOP_K",
    "GROUPS",
    "TOP_GROUPS",
    "ROUTER_SCALE",
    "FLAGS",
    "LIMIT",
    "DOWN_BASE",
    "ROUTER_SPLIT",
    "DOMAIN_ROWS",
    "GATE_INFO",
    "GATE_ENTROPY",
    "GATE_ENTROPY_SCALE",
    "GATE_DENSITY",
    "GATE_LAMBDA",
    "GATE_PHI",
    "GATE_PSI",
    "GATE_CAP",
    *(f"GATE_TAU{j}" for j in range(MAX_TAU)),
)

#: The registers that a layer sets.
REGISTER_NAMES = (*LAYER_REGISTERS, *PAGE_REGISTERS)

#: Those that say where it lies beside others; all 0 for the first, or where there is one alone.
PLACE_REGISTERS = ("LAYER", "LAYER_WORD_BASE", "LAYER_SCALE_BASE")


@dataclass(frozen=True, kw_only=True)
class Image:
    """What is loaded into one generated accelerator to make it one MoE layer, or several.

    words : uint32 [tiles, used words, 4]; scales : uint32 [tiles, used entries (multiple of 4)];
    contexts : uint32 [max_experts + 1, 4]; tables, uint32 [entries (multiple of 4)] or empty: biases (Q7.24),
    costs ({miss, cost}, Q7.8) and domains (Q7.8, a row of 2**ceil(log2 max_experts) a domain) of the gate;
    page_words, page_scales, page_contexts, page_sizes : see :class:`sw_model.pages.Pages`;
    registers : register name -> value; config : name of the configuration it was compiled for;
    more : the registers of the layers behind the first, if there are several (:func:`sw_model.joined.join`).
    """

    words: np.ndarray
    scales: np.ndarray
    contexts: np.ndarray
    biases: np.ndarray
    costs: np.ndarray
    domains: np.ndarray
    page_words: np.ndarray
    page_scales: np.ndarray
    page_contexts: np.ndarray
    page_sizes: np.ndarray
    registers: dict[str, int]
    config: str
    more: tuple[dict[str, int], ...] = ()

    _TABLES = ("words", "scales", "contexts", "biases", "costs", "domains")
    _ARRAYS = (*_TABLES, "page_words", "page_scales", "page_contexts", "page_sizes")

    @property
    def layers(self) -> tuple[dict[str, int], ...]:
        """The registers of every layer that is in it."""
        return (self.registers, *self.more)

    @property
    def pages(self) -> Pages:
        """The experts that are loaded on demand."""
        arrays = (self.page_words, self.page_scales, self.page_contexts, self.page_sizes)
        return Pages(**dict(zip(("words", "scales", "contexts", "sizes"), arrays, strict=True)))

    @property
    def id(self) -> int:
        """What register IMAGE reads in a design that has it baked in: a hash of its contents, never 0."""
        layers = "".join(json.dumps(registers, sort_keys=True) for registers in self.layers)
        digest = hashlib.sha256(layers.encode())
        for name in self._TABLES:
            array = np.ascontiguousarray(getattr(self, name))
            digest.update(str(array.shape).encode() + array.tobytes())
        return int.from_bytes(digest.digest()[:4], "little") or 1

    def packets(self) -> Iterator[np.ndarray]:
        """What is always on chip, as weight-stream packets (:mod:`sw_model.packets`), uint32 [beats, 4]."""
        yield packet(Kind.CONTEXTS, self.contexts)
        for kind, rows in (
            (Kind.BIASES, self.biases),
            (Kind.COSTS, self.costs),
            (Kind.DOMAINS, self.domains),
        ):
            if rows.size:
                yield packet(kind, rows)
        for tile in range(len(self.words)):
            yield packet(Kind.WORDS, self.words[tile], tile=tile)
            yield packet(Kind.SCALES, self.scales[tile], tile=tile)

    def save(self, path: Path) -> None:
        """Write as safetensors; registers and configuration name are its metadata."""
        # One key, since safetensors writes several in no fixed order.
        facts = {"config": self.config, "registers": self.registers, "more": self.more}
        meta = {"image": json.dumps(facts, sort_keys=True)}
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in self._ARRAYS}
        path.write_bytes(save(arrays, metadata=meta))

    @staticmethod
    def load(path: Path) -> Image:
        """Read what :meth:`save` wrote; raises :class:`ExpertileError` on anything else."""
        try:
            with safe_open(path, framework="numpy") as f:
                meta = json.loads((f.metadata() or {})["image"])
                arrays = {name: f.get_tensor(name) for name in Image._ARRAYS}
                registers, *more = [
                    {str(k): int(v) for k, v in layer.items()}
                    for layer in (meta["registers"], *meta.get("more", ()))
                ]
                image = Image(**arrays, registers=registers, config=str(meta["config"]), more=tuple(more))
            image._check()
            return image
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError) as e:
            raise ExpertileError(f"weight image {path}: not readable ({e}); compile it again") from None

    def _check(self) -> None:
        """Raise ``ValueError`` unless shapes, types and register names are those that :meth:`save` writes."""
        dimensions = {"words": 3, "scales": 2, "contexts": 2}
        dimensions |= {"page_words": 4, "page_scales": 3, "page_contexts": 2, "page_sizes": 2}
        for name in self._ARRAYS:
            array = getattr(self, name)
            if array.dtype != np.uint32 or array.ndim != dimensions.get(name, 1):
                raise ValueError(f"{name} is {array.dtype} {list(array.shape)}")
            if name == "page_sizes":
                whole = array.shape[-1] == 2 and len(array) in (0, self.registers.get("EXPERTS"))
            elif name in ("words", "contexts", "page_words", "page_contexts"):
                whole = array.shape[-1] == BEAT_LIMBS
            else:
                whole = array.shape[-1] % BEAT_LIMBS == 0
            if not whole or (name == "scales" and len(array) != len(self.words)):
                raise ValueError(f"{name} is {list(array.shape)}")
        sizes, most = self.page_sizes, (self.page_words.shape[2], self.page_scales.shape[2])
        tiles = (len(self.page_words[0]), len(self.page_scales[0])) if len(sizes) else ()
        counts = {len(getattr(self, name)) for name in self._ARRAYS if name.startswith("page_")}
        if len(counts) != 1 or (sizes > most).any() or any(n != len(self.words) for n in tiles):
            raise ValueError("its pages do not belong together")
        for number, registers in enumerate(self.layers):
            if set(registers) != {*REGISTER_NAMES, *(PLACE_REGISTERS if number else ())}:
                raise ValueError("its registers are not those of a layer")


def integers(limbs: np.ndarray) -> list[int]:
    """Rows of 32-bit limbs, lowest first, as integers."""
    return [sum(int(limb) << (32 * i) for i, limb in enumerate(row)) for row in limbs]


def resident_packet(resident: np.ndarray) -> np.ndarray:
    """Weight-stream packet that tells the gate which experts (bool [E]) are on chip."""
    return packet(Kind.RESIDENT, table(resident.astype(np.int64)))
