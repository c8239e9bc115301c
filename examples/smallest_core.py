"""What a core takes on an ECP5 board with and without the blocks that it may lack, by synthesis.

    python examples/smallest_core.py

One tile of body "lut"; the last line is of body "dsp". LUTs are counted as placed: two of a carry cell, six of
a distributed memory, after carry chains are fitted.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from hw.boards import flow
from hw.boards.board import DEVICES
from hw.boards.catalogue import BOARDS
from sw_model.config import HardwareConfig

LUTS = {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6}

WHOLE = HardwareConfig(
    name="whole", tiles=1, words=1024, scales=1024, max_hidden=64, max_intermediate=64, max_experts=8,
    max_top_k=2, weight_spread=7, body="lut",
)  # fmt: skip
LEAST = {"gate": False, "governor": False, "clamp": False, "max_groups": 1}
DESIGNS = {
    "with every block": {},
    "without governor": {"governor": False},
    "without governor and gate": {"governor": False, "gate": False},
    "without clamp": {"clamp": False},
    "for one group of experts": {"max_groups": 1},
    "without all of these": LEAST,
    "the same, body dsp": {**LEAST, "body": "dsp"},
}


def main() -> None:
    for name, changes in DESIGNS.items():
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            flow.write_verilog(BOARDS["ulx3s_45f"], replace(WHOLE, **changes), None, work)
            flow.synthesise(work, flow.SOURCES, flow.TOP)
            flow.fit_carries(work)
            cells = json.loads((work / f"{flow.TOP}.json").read_text())["modules"][flow.TOP]["cells"]
        count = Counter(cell["type"] for cell in cells.values())
        found = {"lut": sum(n * count[cell] for cell, n in LUTS.items())}
        found |= {r: sum(count[t] for t in types) for r, types in flow.SYNTHESISED.items()}
        print(f"{name}: {found}", flush=True)
    print(f"an LFE5U-25F has {DEVICES['LFE5U-25F'].capacity}")


if __name__ == "__main__":
    main()
