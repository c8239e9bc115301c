"""Topology of a pass: how neighbouring tiles share its matrix, and how many cycles that takes.

Groups of ``2**split`` neighbouring tiles share a matrix row. With n = tiles / 2**split groups, row r belongs
to group r mod n; of a row's blocks, the group's tile at position p takes those with b mod 2**split = p. Sums
are exact, so every split gives the same bits; what differs is how much of the array has nothing to do: tiles
without a row where rows are few, tiles without a block where blocks are few.
"""

from __future__ import annotations

from sw_model.formats import INT8, ROUTER_FORMAT, WeightFormat

__all__ = [
    "LOOKUP_SLOTS",
    "SPLIT_BITS",
    "choose_split",
    "entries",
    "pass_cycles",
    "slot_beats",
    "slot_cycles",
    "splits",
]

SPLIT_BITS = 4  # of the topology word: log2 of the tiles that share a row
LOOKUP_SLOTS = 16  # rows of a tile that a block of activations stays for, body "lut"


def splits(columns: int) -> range:
    """The splits that an array of so many columns has."""
    return range(columns.bit_length())


def entries(rows: int, blocks: int, tiles: int, split: int) -> int:
    """Blocks of a matrix in each tile, those of padding included."""
    return -(-rows // (tiles >> split)) * -(-blocks // (1 << split))


def choose_split(rows: int, blocks: int, tiles: int, columns: int) -> int:
    """The split with the fewest blocks in each tile, of equal ones the smallest.

    It has the fewest array cycles, and takes the least memory too; the drain takes the same time for all.
    """
    return min(splits(columns), key=lambda split: entries(rows, blocks, tiles, split))


def slot_cycles(blocks: int, fmt: WeightFormat, split: int, step_cycles: int, high: bool = False) -> int:
    """Cycles of the array for one row slot, a row in every group; ``high``: of INT8 the high nibble alone."""
    steps = 1 if high and fmt is INT8 else fmt.steps
    return -(-blocks // (1 << split)) * steps * (2 if fmt is ROUTER_FORMAT else 1) * step_cycles


def slot_beats(rows: int, tiles: int, split: int, drain: int) -> tuple[int, ...]:
    """Cycles in which the drain gives out the rows of each slot, ``drain`` a cycle."""
    groups = tiles >> split
    return tuple(-(-min(groups, rows - first) // drain) for first in range(0, rows, groups))


def pass_cycles(rows: int, blocks: int, fmt: WeightFormat, tiles: int, split: int, step_cycles: int) -> int:
    """Cycles in which the array works on a pass, where its rows find room; ``step_cycles`` a nibble pass.

    The router's take every block twice, with the high and the low bytes of the token.
    """
    return -(-rows // (tiles >> split)) * slot_cycles(blocks, fmt, split, step_cycles)
