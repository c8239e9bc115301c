"""What the smallest cores take on an ECP5 board, by synthesis: whether a small device could hold one.

    python examples/smallest_core.py

LUTs are counted as placed: two of a carry cell, six of a distributed memory. Placement trims some carries.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from hw.boards import flow
from hw.boards.board import DEVICES
from hw.boards.catalogue import BOARDS
from sw_model.config import HardwareConfig

LUTS = {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6}


def main() -> None:
    for body in ("dsp", "lut"):
        config = HardwareConfig(
            name=f"smallest_{body}",
            body=body,
            tiles=1,
            words=1024,
            scales=512,
            max_hidden=64,
            max_intermediate=64,
            max_experts=8,
            max_top_k=2,
            max_groups=1,
            max_domains=1,
        )
        with tempfile.TemporaryDirectory() as folder:
            flow.write_verilog(BOARDS["ulx3s_45f"], config, None, Path(folder))
            cells = flow.synthesise(Path(folder), flow.SOURCES, flow.TOP)
        found = {
            "lut": sum(n * cells.get(cell, 0) for cell, n in LUTS.items()),
            "ff": cells["TRELLIS_FF"],
            "bram": cells.get("DP16KD", 0) + cells.get("PDPW16KD", 0),
            "dsp": cells.get("MULT18X18D", 0),
        }
        print(f"{body}: {found}")
    print(f"an LFE5U-25F has {DEVICES['LFE5U-25F'].capacity}")


if __name__ == "__main__":
    main()
