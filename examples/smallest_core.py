"""What the blocks of a small core take on an ECP5 board, by synthesis, and what is left without some of them.

    python examples/smallest_core.py

Modules are synthesised one by one, so that each can be counted; LUTs as placed (two of a carry cell, six of a
distributed memory). A build merges across their borders and fits carry chains, and comes out smaller.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

from hw.boards import flow
from hw.boards.catalogue import BOARDS
from hw.boards.ecp5 import ECP5, SYNTHESIS
from hw.boards.family import resources
from hw.boards.tools import run_yosys
from sw_model.config import HardwareConfig

LUTS = {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6}
LEAST = 300  # LUTs of a block that is told

WHOLE = HardwareConfig(
    name="whole", tiles=1, words=1024, scales=512, max_hidden=64, max_intermediate=64, max_experts=8,
    max_top_k=2, max_groups=1, max_domains=1, body="lut",
)  # fmt: skip
SLIM = replace(WHOLE, name="slim", gate=False, governor=False, clamp=False)


def modules(config: HardwareConfig) -> dict[str, dict[str, int]]:
    """Cells by type of every module of a board with ``config``."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        flow.write_verilog(BOARDS["ulx3s_45f"], config, None, work)
        commands = [
            f"read_verilog {' '.join(flow.SOURCES)}",
            f"hierarchy -top {flow.TOP}",
            "rename -hide w:*",  # Yosys stumbles over names when it maps modules one by one
            f"synth_ecp5 -noflatten -top {flow.TOP} {SYNTHESIS}",
            "tee -o stat.json stat -json",
        ]
        run_yosys(commands, work, "yosys.log")
        found = json.loads((work / "stat.json").read_text())["modules"]
    return {name.lstrip("\\"): m["num_cells_by_type"] for name, m in found.items()}


def tell(config: HardwareConfig) -> None:
    """Print the tree of blocks, each with all that is in it."""
    found = modules(config)

    @cache
    def total(name: str) -> Counter[str]:
        count: Counter[str] = Counter()
        for cell, n in found[name].items():
            for kind, m in (total(cell) if cell in found else {cell: 1}).items():
                count[kind] += n * m
        return count

    def row(name: str, depth: int) -> None:
        count = total(name)
        lut = sum(n * count[cell] for cell, n in LUTS.items())
        if lut < LEAST:
            return
        others = [f"{n} {resource}" for resource, n in resources(ECP5.synthesised, count).items()]
        print("  " * depth + f"{name.rpartition('.')[2]}: {lut} LUT", *others)
        for cell in sorted(found[name].keys() & found.keys(), key=lambda c: -total(c)["LUT4"]):
            row(cell, depth + 1)

    print(config.name)
    row(flow.TOP, 1)


if __name__ == "__main__":
    for design in (WHOLE, SLIM):
        tell(design)
