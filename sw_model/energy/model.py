"""Energy of the counted work, in pJ by component, on three systems that do the same work.

    cim     weights in the macros that multiply them
    sram    weights in one large on-chip memory, read for every token
    dram    weights in DRAM, read for every token

All three multiply the same words by the same activations, add up the same sums and share everything behind
them; they differ in where a weight comes from. With B_w = 128 bits a macro word, B_s = 20 a scale, B_a = 256
a block of activations and B_p = 64 a row's sum:

    weights       word_reads B_w + block_sums B_s bits, read from macro, SRAM or DRAM
    activations   block_sums / shared reads of B_a bits of the buffer, act_writes writes of it
    sums          block_sums updates (a read and a write of B_p bits) where the row's sum lives, and
                  combine_rows updates of two such words in the buffer
    registers     nibble_passes times the 64 4 x 4 bit products of a word, where a source tells them apart
    misses        (1 - hit rate) of routed words and scales, from DRAM, written to macro or SRAM
    products      nibble_passes times 32 products of 8 x 4 bits
    vector        scaling a block sum, activations, routing and the combine, in 4 x 4 bit products

The baselines get their weights straight to the multiplier, without a staging buffer, which flatters them.
Leakage, clock tree and control are in none of the systems.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sw_model.energy.counts import Counts
from sw_model.energy.table import Memory, Technology
from sw_model.errors import ExpertileError
from sw_model.formats import BLOCK, NIBBLE, SCALE_BITS

__all__ = ["COMPUTE", "MEMORY", "SYSTEMS", "Conditions", "energy", "reduction", "total"]

SYSTEMS = ("cim", "sram", "dram")
MEMORY = ("weights", "activations", "sums", "registers", "misses")
COMPUTE = ("products", "vector")

WORD_BITS = BLOCK * NIBBLE
ACT_BITS = 8 * BLOCK
SUM_BITS = 64
# 4 x 4 bit products: 20 x 8 bits of a scaled block sum; three of 24 x 24 bits for an element of h, two for a
# logit; 52 x 20 bits for a row of the combine.
SCALING, ACTIVATION, LOGIT, COMBINE = 5 * 2, 3 * 36, 2 * 36, 13 * 5


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """hit_rate : share of routed experts' weights that are on chip when needed
    macro : size of the memory that a context is read from; sram : size of the baseline's; None: the
    technology's default
    sums : where a row's running sum lives
    shared : rows that one read of the activation buffer serves (the tiles that work in step)
    """

    hit_rate: float = 1.0
    macro: str | None = None
    sram: str | None = None
    sums: str = "tile"
    shared: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.hit_rate <= 1:
            raise ExpertileError(f"hit rate {self.hit_rate}: from 0 to 1")


def _chosen(what: str, options: Mapping[str, Memory], size: str) -> Memory:
    if size not in options:
        raise ExpertileError(f"{what} of {size}: this technology has {', '.join(options)}")
    return options[size]


def energy(
    counts: Counts | Mapping[str, float], tech: Technology, system: str, conditions: Conditions
) -> dict[str, float]:
    """pJ by component (:data:`MEMORY`, then :data:`COMPUTE`) of all tokens in ``counts`` together.

    Raises
    ------
    ExpertileError : a size or a place of sums that the technology has no number for
    """
    n: Mapping[str, float] = counts.figures() if isinstance(counts, Counts) else counts
    macro = _chosen("macro memory", tech.macro, conditions.macro or tech.macro_default)
    sram = _chosen("on-chip memory", tech.sram, conditions.sram or tech.sram_default)
    if conditions.sums not in tech.sums:
        raise ExpertileError(f"sums in {conditions.sums!r}: choose one of {', '.join(tech.sums)}")
    place = tech.sums[conditions.sums]
    read = {"cim": macro.read, "sram": sram.read, "dram": tech.dram}[system]
    weights = (n["word_reads"] * WORD_BITS + n["block_sums"] * SCALE_BITS) * read
    missing = n["routed_reads"] * WORD_BITS + n["routed_sums"] * SCALE_BITS
    fetch = {"cim": tech.dram + macro.write, "sram": tech.dram + sram.write, "dram": 0.0}[system]
    update = 0.0 if place is None else SUM_BITS * (place.read + place.write)
    products = BLOCK * n["nibble_passes"]
    if system == "cim":
        registers, multiply = 2 * tech.registers, 2 * tech.product
    else:
        registers, multiply = 0.0, tech.plain
    vector = SCALING * n["block_sums"] + ACTIVATION * n["activations"]
    vector += LOGIT * n["router_rows"] + COMBINE * n["combine_rows"]
    combine = 2 * n["combine_rows"] * SUM_BITS * (tech.buffer.read + tech.buffer.write)
    return {
        "weights": weights,
        "activations": ACT_BITS
        * (n["block_sums"] / conditions.shared * tech.buffer.read + n["act_writes"] * tech.buffer.write),
        "sums": n["block_sums"] * update + combine,
        "registers": products * registers,
        "misses": (1 - conditions.hit_rate) * missing * fetch,
        "products": products * multiply,
        "vector": vector * (tech.product + tech.registers),
    }


def total(parts: Mapping[str, float], *, compute: bool) -> float:
    """pJ of memory accesses, and of compute too if ``compute``."""
    return sum(parts[name] for name in (*MEMORY, *COMPUTE) if compute or name in MEMORY)


def reduction(
    counts: Counts | Mapping[str, float],
    tech: Technology,
    baseline: str,
    conditions: Conditions,
    *,
    compute: bool = False,
) -> float:
    """1 - E_cim / E_baseline."""
    ours, theirs = (total(energy(counts, tech, s, conditions), compute=compute) for s in ("cim", baseline))
    return 1 - ours / theirs
