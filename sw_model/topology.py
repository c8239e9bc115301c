"""Topology of a pass: how neighbouring tiles share its matrix, and how many cycles that takes.

Groups of ``2**split`` neighbouring tiles share a matrix row. With n = tiles / 2**split groups, row r belongs
to group r mod n; of a row's blocks, the group's tile at position p takes those with b mod 2**split = p. Sums
are exact, so every split gives the same bits; what differs is how much of the array has nothing to do: tiles
without a row where rows are few, tiles without a block where blocks are few.
"""

from __future__ import annotations

from sw_model.formats import ROUTER_FORMAT, WeightFormat

__all__ = ["LOOKUP_SLOTS", "SPLIT_BITS", "choose_split", "entries", "pass_cycles", "splits"]

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


def pass_cycles(rows: int, blocks: int, fmt: WeightFormat, tiles: int, split: int, step_cycles: int) -> int:
    """Cycles in which the array works on a pass, where its rows find room; ``step_cycles`` a nibble pass.

    The router's passes take every block twice, with the high and the low bytes of the token.
    """
    sets = 2 if fmt is ROUTER_FORMAT else 1
    return entries(rows, blocks, tiles, split) * fmt.steps * sets * step_cycles
