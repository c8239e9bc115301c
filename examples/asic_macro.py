"""Gates of one bit-serial macro, its SRAM a black box: Yosys, generic cells.

    .venv/bin/python examples/asic_macro.py [--words 4608] [--rows 1] [--lanes 32] [--bits 1 2 4 8] [-o DIR]

Writes the macro's Verilog to DIR (build/asic), synthesises it for each number of activation bits a cycle, and
prints cells, flip-flops and Yosys' estimate of transistors (stat -tech cmos), the SRAM not counted.
"""

import argparse
import json
from pathlib import Path

from amaranth.back import verilog

from hw.boards.tools import run_yosys
from hw.cim.serial import SerialMacro
from hw.sharing import Sharing

ROOT = Path(__file__).resolve().parent.parent


def gates(folder: Path, words: int, bits: int, rows: int, lanes: int) -> dict[str, int]:
    """Cells by type of one macro, and "transistors"."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"macro_{rows}x{lanes}_{bits}"
    platform = Sharing()
    macro = verilog.convert(
        SerialMacro(words, bits, rows=rows, lanes=lanes), name=name, platform=platform, emit_src=False
    )
    (folder / f"{name}.v").write_text("\n".join([macro, *platform.modules.values()]))
    (store,) = platform.modules
    commands = [f"read_verilog {name}.v", f"blackbox {store}", f"synth -flatten -top {name}"]
    run_yosys([*commands, f"tee -o {name}.json stat -tech cmos -json"], folder, f"{name}.log")
    stat = json.loads((folder / f"{name}.json").read_text())["design"]
    cells = {kind: n for kind, n in stat["num_cells_by_type"].items() if kind.startswith("$_")}
    return cells | {"transistors": int(str(stat["estimated_num_transistors"]).rstrip("+"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--words", type=int, default=4608)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=32)
    parser.add_argument("--bits", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--output", "-o", type=Path, default=ROOT / "build" / "asic")
    options = parser.parse_args()
    print(f"{options.rows} rows x {options.lanes} lanes x {options.words} words")
    print(f"{'bits':>4} {'MACs/cycle':>10} {'cells':>7} {'FFs':>6} {'transistors':>11} {'a MAC/cycle':>11}")
    for bits in options.bits:
        cells = gates(options.output, options.words, bits, options.rows, options.lanes)
        transistors = cells.pop("transistors")
        macs = options.rows * options.lanes * bits / 8
        flops = sum(n for kind, n in cells.items() if "DFF" in kind)
        total, each = sum(cells.values()), transistors / macs
        print(f"{bits:4} {macs:10g} {total:7} {flops:6} {transistors:11} {each:11.0f}")


if __name__ == "__main__":
    main()
