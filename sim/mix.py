"""The mix: layers of very different shape on one array, with a topology for each pass and with fixed ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sim.hollow import HollowCore
from sw_model import compiler
from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError
from sw_model.gate import Gate
from sw_model.moe import Expert, MoELayer, RouterRule
from sw_model.quantised import quantise
from sw_model.topology import splits

__all__ = ["FORMATS", "MIX", "Part", "measure"]

FORMATS = ("int4", "int8")
_COUNTED = {"cycles": "BUSY_CYCLES", "array_cycles": "ACTIVE_CYCLES"}


@dataclass(frozen=True, kw_only=True)
class Part:
    """``tokens`` through a layer of ``experts`` experts of ``width``, of which each token takes ``top_k``.

    empty : a gate leaves every token without an expert: the router's pass is all there is, but for a block of
        constants
    """

    name: str
    tokens: int
    top_k: int
    width: int
    experts: int = 8
    empty: bool = False


MIX = (
    Part(name="router alone", tokens=8, top_k=1, width=32, empty=True),
    Part(name="one expert, one token", tokens=1, top_k=1, width=64),
    Part(name="different experts", tokens=8, top_k=2, width=64),
    Part(name="experts of 32", tokens=8, top_k=2, width=32),
    Part(name="experts of 64", tokens=8, top_k=2, width=64),
)


def _layer(part: Part, config: HardwareConfig) -> tuple[MoELayer, Gate | None, np.ndarray]:
    rng = np.random.default_rng(len(part.name))
    hidden, width = config.max_hidden, part.width

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * columns**-0.5).astype(np.float32)

    def expert() -> Expert:
        return Expert(gate=matrix(width, hidden), up=matrix(width, hidden), down=matrix(hidden, width))

    layer = MoELayer(
        router=4 * matrix(part.experts, hidden),
        rule=RouterRule(top_k=part.top_k, renormalise=True),
        experts=tuple(expert() for _ in range(part.experts)),
    )
    gate = None
    if part.empty:
        nothing = np.zeros(part.experts, dtype=np.int64)
        gate = Gate(
            tau=(0,) * part.top_k,
            cap=0,
            domain_bias=nothing[None],
            cost=nothing,
            miss=nothing,
            fallback=rng.standard_normal(hidden).astype(np.float32),
        )
    return layer, gate, rng.standard_normal((part.tokens, hidden)).astype(np.float32)


def measure(config: HardwareConfig, fmt: str, parts: tuple[Part, ...] = MIX) -> list[dict[str, Any]]:
    """A row a topology, fixed splits first, the compiler's choice (split None) last: cycles of each part, and
    in all; ``ratio``: to the best fixed one's, of the choice alone.

    Counted in a core with hollow tiles, whose memories are as deep as any split needs; that each split gives
    the same bits is for others to check.

    Raises
    ------
    ExpertileError : ``config`` has no choice, or a part exceeds its maxima; the format is unknown
    """
    if config.columns == 1:
        raise ExpertileError(f"config {config.name!r}: with 1 column there is no topology to choose")
    every: tuple[int | None, ...] = (*splits(config.columns), None)
    rows: list[dict[str, Any]] = [
        {"config": config.name, "format": fmt, "split": s, "parts": {}, **dict.fromkeys(_COUNTED, 0)}
        for s in every
    ]
    deep = replace(config, words=1 << 24, scales=1 << 24)
    core = HollowCore(config)
    try:
        for part in parts:
            layer, gate, x = _layer(part, config)
            quantised = quantise(layer, fmt, config, gate=gate)
            for split, row in zip(every, rows, strict=True):
                counters = core.cycles(compiler.compile(quantised, deep, split), x)
                row["parts"][part.name] = counters["BUSY_CYCLES"]
                for name, counter in _COUNTED.items():
                    row[name] += counters[counter]
    finally:
        core.close()
    for name in _COUNTED:
        rows[-1][f"{name}_ratio"] = min(row[name] for row in rows[:-1]) / rows[-1][name]
    return rows
