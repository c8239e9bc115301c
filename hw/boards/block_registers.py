"""Registers beside block RAMs and multipliers of an ECP5 netlist, moved into those that the blocks have.

Yosys never uses them. A block RAM gives its word 5.8 ns after the clock without, in 1 ns with its output
register; a multiplier takes 7 ns without registers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

__all__ = ["absorb_registers"]

CONSTANT = ("0", "1", "x")
#: What a flip-flop must be to be moved: always enabled, never reset.
_PLAIN = {"CLKMUX": "CLK", "GSR": "DISABLED", "REGSET": "RESET"}
_WIDTH = 18


def absorb_registers(module: dict[str, Any]) -> int:
    """Move flip-flops into block RAMs and multipliers, in a module of a Yosys JSON netlist; the function
    stays the same.

    A block's output register is used if all outputs that are read are read by flip-flops alone, of its own
    clock; a multiplier's input registers if flip-flops of one clock that drive nothing else drive all inputs
    of both operands.

    Returns the number of flip-flops that are gone.
    """
    return _Netlist(module).absorb()


class _Netlist:
    def __init__(self, module: dict[str, Any]) -> None:
        self.cells = module["cells"]
        self.driver: dict[Any, str] = {}
        self.loads: dict[Any, set[tuple[str, str]]] = defaultdict(set)
        for name, cell in self.cells.items():
            for port, bits in cell["connections"].items():
                for n, bit in enumerate(bits):
                    if cell["port_directions"][port] == "output":
                        self.driver[bit] = name
                    else:
                        self.loads[bit].add((name, f"{port}{n}"))
        for port in module["ports"].values():
            for n, bit in enumerate(port["bits"]):
                self.loads[bit].add(("", f"port{n}"))
        self.gone = 0

    def absorb(self) -> int:
        blocks: dict[str, list[str]] = defaultdict(list)
        for name, cell in self.cells.items():
            blocks[cell["type"]].append(name)
        for name in blocks["DP16KD"]:
            self._block_ram(name)
        for name in blocks["MULT18X18D"]:
            self._operands(name)
        for name in blocks["MULT18X18D"]:
            self._product(name)
        return self.gone

    def _block_ram(self, name: str) -> None:
        """With a port that writes 36 bits and one that reads as many, never reset, in the latter's clock."""
        cell = self.cells[name]
        parameters, wires = cell["parameters"], cell["connections"]
        if int(parameters["DATA_WIDTH_A"], 2) != 2 * _WIDTH or wires["WEB"] != ["0"]:
            return
        if wires["RSTA"] != ["0"] or wires["RSTB"] != ["0"]:
            return
        if self._outputs(name, [f"DO{port}{n}" for port in "AB" for n in range(_WIDTH)], wires["CLKB"][0]):
            parameters.update(REGMODE_A="OUTREG", REGMODE_B="OUTREG")
            wires.update(OCEA=["1"], OCEB=["1"])

    def _product(self, name: str) -> None:
        cell = self.cells[name]
        clock = next((self._clock_of(bit) for bit in cell["connections"].get("P0", [])), None)
        if self._outputs(name, [f"P{n}" for n in range(2 * _WIDTH)], clock):
            self._use(cell, clock, "OUTPUT")

    def _operands(self, name: str) -> None:
        cell = self.cells[name]
        ports = [f"{operand}{n}" for operand in "AB" for n in range(_WIDTH)]
        wires = {port: cell["connections"][port][0] for port in ports}
        registers = {bit: self.driver.get(bit, "") for bit in wires.values() if bit not in CONSTANT}
        clocks = {self._plain(register) for register in registers.values()}
        if len(clocks) != 1 or None in clocks:
            return
        if any(load[0] != name for bit in registers for load in self.loads[bit]):
            return
        for port, bit in wires.items():
            if bit not in CONSTANT:
                before = self.cells[registers[bit]]["connections"]["DI"][0]
                cell["connections"][port] = [before]
                self.loads[before].add((name, f"{port}0"))
        self._remove(registers.values())
        self._use(cell, clocks.pop(), "INPUTA", "INPUTB")

    def _use(self, cell: dict[str, Any], clock: Any, *registers: str) -> None:
        for register in registers:
            for what in ("CLK", "CE", "RST"):
                cell["parameters"][f"REG_{register}_{what}"] = f"{what}0"
        for port, bit in {"CLK0": clock, "CE0": "1", "RST0": "0"}.items():
            cell["connections"][port] = [bit]
            cell["port_directions"][port] = "input"

    def _outputs(self, name: str, ports: list[str], clock: Any) -> bool:
        """Let the outputs ``ports`` of a block drive what flip-flops behind them do, if all can be moved."""
        wires = self.cells[name]["connections"]
        read = {port: wires[port][0] for port in ports if self.loads[wires.get(port, ["x"])[0]]}
        if not read or clock is None or any(self._clock_of(bit) != clock for bit in read.values()):
            return False
        for port, bit in read.items():
            ((register, _),) = self.loads[bit]
            after = self.cells[register]["connections"]["Q"][0]
            wires[port] = [after]
            self._remove([register])
            self.driver[after] = name
        return True

    def _clock_of(self, bit: Any) -> Any:
        """The clock of the flip-flop that alone reads ``bit``, if it can be moved."""
        if bit in CONSTANT or len(self.loads[bit]) != 1:
            return None
        ((register, port),) = self.loads[bit]
        return self._plain(register) if port == "DI0" else None

    def _plain(self, name: str) -> Any:
        """The clock of the cell ``name`` if it is a flip-flop that can be moved."""
        cell = self.cells.get(name)
        if not cell or cell["type"] != "TRELLIS_FF":
            return None
        parameters, wires = cell["parameters"], cell["connections"]
        if any(parameters.get(key) != value for key, value in _PLAIN.items()):
            return None
        enabled = parameters.get("CEMUX", "").strip() == "1" or wires.get("CE") == ["1"]
        if not enabled or wires.get("LSR", ["0"]) != ["0"] or "DI" not in wires:
            return None
        return wires["CLK"][0]

    def _remove(self, registers: Iterable[str]) -> None:
        for name in set(registers):
            for port, bits in self.cells.pop(name)["connections"].items():
                for n, bit in enumerate(bits):
                    self.loads[bit].discard((name, f"{port}{n}"))
            self.gone += 1
