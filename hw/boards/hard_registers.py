"""Registers of an ECP5's block RAMs and multipliers, which synthesis leaves unused.

A flip-flop behind a block RAM's output or a multiplier's product, or before its operand, moves into the block
that has a register in just that place: the block's own clock-to-output time is then short (a block RAM's
without it is 5.8 ns), and the flip-flops are free for others.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

__all__ = ["use_hard_registers"]

CONSTANT = ("0", "1", "x")


class _Netlist:
    """Who drives and who reads a net; which flip-flops do nothing but delay."""

    def __init__(self, module: dict[str, Any]) -> None:
        self.cells = module["cells"]
        self.readers: dict[Any, list[tuple[str, str]]] = defaultdict(list)
        self.driver: dict[Any, str] = {}
        for name, cell in self.cells.items():
            for port, bits in cell["connections"].items():
                if cell["port_directions"][port] == "output":
                    self.driver[bits[0]] = name
                else:
                    self.readers[bits[0]].append((name, port))
        for port in module["ports"].values():
            for bit in port["bits"]:
                self.readers[bit].append(("", ""))

    def plain(self, name: str | None) -> bool:
        """A flip-flop without reset or enable."""
        cell = self.cells.get(name or "", {"type": ""})
        if cell["type"] != "TRELLIS_FF":
            return False
        wires, parameters = cell["connections"], cell["parameters"]
        return (
            parameters.get("CEMUX", "CE").strip() == "1"
            and parameters.get("CLKMUX") == "CLK"
            and wires.get("LSR", ["0"])[0] in CONSTANT[::2]
        )

    def behind(self, cell: dict[str, Any], prefix: str, most: int) -> dict[str, str] | None:
        """Output port -> the flip-flop that is all that reads it; None if one is read by something else."""
        found = {}
        for i in range(most):
            bit = cell["connections"].get(f"{prefix}{i}", ["x"])[0]
            if bit == "x" or not self.readers[bit]:
                continue
            (name, port), *others = self.readers[bit]
            if others or port != "DI" or not self.plain(name):
                return None
            found[f"{prefix}{i}"] = name
        return found

    def before(self, cell: dict[str, Any], prefix: str, most: int) -> dict[str, str] | None:
        """Input port -> the flip-flop that drives it and nothing else; None if one is driven otherwise."""
        found = {}
        for i in range(most):
            bit = cell["connections"].get(f"{prefix}{i}", ["x"])[0]
            if bit in CONSTANT:
                continue
            name = self.driver.get(bit)
            mine = all(
                reader and self.cells[reader] is cell and port[0] == prefix
                for reader, port in self.readers[bit]
            )
            if name is None or not mine or not self.plain(name):
                return None
            found[f"{prefix}{i}"] = name
        return found

    def clock(self, registers: dict[str, str]) -> Any:
        """The one clock of flip-flops, or None."""
        clocks = {self.cells[name]["connections"]["CLK"][0] for name in registers.values()}
        return clocks.pop() if len(clocks) == 1 else None


def use_hard_registers(module: dict[str, Any]) -> dict[str, int]:
    """Move flip-flops into the blocks beside them, in a module of a Yosys JSON netlist.

    The function stays the same, but for what they hold before the first clock.

    Returns how many ports have a register now: {"bram": .., "dsp": ..}.
    """
    net = _Netlist(module)
    gone: set[str] = set()
    count = {"bram": 0, "dsp": 0}
    for cell in list(net.cells.values()):
        wires, parameters = cell["connections"], cell["parameters"]
        if cell["type"] == "DP16KD":
            for side in "AB":
                found = net.behind(cell, f"DO{side}", 18)
                if found and net.clock(found) == wires[f"CLK{side}"][0]:
                    parameters[f"REGMODE_{side}"] = "OUTREG"
                    gone |= _take_outputs(net, cell, found)
                    count["bram"] += 1
        elif cell["type"] == "MULT18X18D":
            found = net.behind(cell, "P", 36)
            if found and _clocked(net, cell, found, "OUTPUT"):
                gone |= _take_outputs(net, cell, found)
                count["dsp"] += 1
            for side in "AB":
                found = net.before(cell, side, 18)
                if found and not gone & set(found.values()) and _clocked(net, cell, found, f"INPUT{side}"):
                    for port, name in found.items():
                        wires[port] = net.cells[name]["connections"]["DI"]
                    gone |= set(found.values())
                    count["dsp"] += 1
    for name in gone:
        del net.cells[name]
    return count


def _take_outputs(net: _Netlist, cell: dict[str, Any], found: dict[str, str]) -> set[str]:
    for port, name in found.items():
        cell["connections"][port] = net.cells[name]["connections"]["Q"]
        # What the flip-flop drove, the block drives now.
        net.driver[cell["connections"][port][0]] = ""
    return set(found.values())


def _clocked(net: _Netlist, cell: dict[str, Any], found: dict[str, str], place: str) -> bool:
    """Switch the registers of ``place`` of a multiplier on, if its one clock is theirs."""
    clock = net.clock(found)
    wires, parameters = cell["connections"], cell["parameters"]
    if clock is None or wires.get("CLK0", [clock])[0] not in (clock, "0", "x"):
        return False
    for name, value in (("CLK0", clock), ("CE0", "1"), ("RST0", "0")):
        wires[name] = [value]
        cell["port_directions"][name] = "input"
    for what, value in (("CLK", "CLK0"), ("CE", "CE0"), ("RST", "RST0")):
        parameters[f"REG_{place}_{what}"] = value
    return True
