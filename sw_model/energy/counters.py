"""What the hardware's counters must read after some tokens: the golden model's own counts, by register.

Those of work hold for every design. Those of the array, its cycles and the blocks that it takes from the
activation buffers, follow from the tiles and from the topology of each pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sw_model.config import HardwareConfig
from sw_model.formats import INT4, INT8, ROUTER_FORMAT, QuantisedMatrix
from sw_model.quantised import QuantisedExpert, QuantisedLayer
from sw_model.result import Result
from sw_model.topology import LOOKUP_SLOTS, choose_split, pass_cycles

__all__ = ["of_array", "of_pages", "of_work"]

#: Counters of work: register -> field of :class:`~sw_model.energy.counts.Counts`.
_WORK = {
    "TOKENS": "tokens",
    "EXPERTS_USED": "experts_used",
    "WORD_READS": "word_reads",
    "ROUTED_READS": "routed_reads",
    "NIBBLE_PASSES": "nibble_passes",
    "BLOCK_SUMS": "block_sums",
    "ROUTED_SUMS": "routed_sums",
    "ACT_WRITES": "act_writes",
    "ROUTER_ROWS": "router_rows",
    "ACTIVATIONS": "activations",
    "COMBINE_ROWS": "combine_rows",
}


def of_work(result: Result) -> dict[str, int]:
    """Counters of work, and of what the gate removed."""
    sums = result.work.figures()
    return {register: sums[name] for register, name in _WORK.items()} | result.stats.removed


def _pass(m: QuantisedMatrix, config: HardwareConfig, split: int | None, high: bool = False) -> np.ndarray:
    """Array cycles of a pass over ``m``, and activation blocks that it reads."""
    fmt = INT4 if high and m.fmt is INT8 else m.fmt
    split = config.split if split is None else split
    if split is None:
        split = choose_split(m.rows, m.blocks, config.tiles, config.columns)
    cycles = pass_cycles(m.rows, m.blocks, fmt, config.tiles, split, config.step_cycles)
    at_once = (config.tiles >> split) * (LOOKUP_SLOTS if config.body == "lut" else 1)
    sets = 2 if m.fmt is ROUTER_FORMAT else 1
    return np.array([cycles, sets * -(-m.rows // at_once) * m.blocks], dtype=np.int64)


def of_array(
    layer: QuantisedLayer, config: HardwareConfig, result: Result, split: int | None = None
) -> dict[str, int]:
    """ACTIVE_CYCLES, ROUTED_CYCLES and ACT_READS; ``split``: of all passes, None: as the compiler chooses."""

    def expert(e: QuantisedExpert, high: bool) -> np.ndarray:
        return _pass(e.gate_up, config, split, high) + _pass(e.down, config, split, high)

    kept = np.ones_like(result.experts, dtype=bool) if result.decisions is None else result.decisions.kept
    routed = np.zeros(2, dtype=np.int64)
    total = len(kept) * _pass(layer.router, config, split)
    for high in (False, True):
        mine = result.high == high
        uses = np.bincount(result.experts[mine][kept[mine]], minlength=layer.n_experts)
        routed = routed + uses @ np.stack([expert(e, high) for e in layer.experts])
        if layer.shared is not None:
            total = total + int(mine.sum()) * expert(layer.shared, high)
    total = total + routed
    if layer.fallback is not None:
        total = total + int((~kept.any(axis=1)).sum()) * _pass(layer.fallback, config, split)
    return {"ACTIVE_CYCLES": int(total[0]), "ROUTED_CYCLES": int(routed[0]), "ACT_READS": int(total[1])}


def of_pages(sizes: np.ndarray, loaded: Sequence[int], hits: int) -> dict[str, int]:
    """Counters of paging, from the experts whose pages were ``loaded``; ``sizes``: int [experts, 2], words
    and scale entries of each page over all tiles."""
    words, scales = sizes[list(loaded)].sum(axis=0, dtype=np.int64) if len(loaded) else (0, 0)
    return {
        "PAGE_HITS": hits,
        "PAGE_MISSES": len(loaded),
        "WORDS_LOADED": int(words),
        "SCALES_LOADED": int(scales),
    }
