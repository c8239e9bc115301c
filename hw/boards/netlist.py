"""Carry chains of an ECP5 netlist, made cheaper before placement.

A CCU2C is two LUTs with a carry:

    S = L ^ carry_in,  carry_out = carry_in if L else G      L = LUT4(A, B, C, D),  G = LUT2(A, B)

where G reads the low four bits of L's table. The placer spends two LUTs at the end of every chain whose carry
out is connected, used or not, and two at the start of every chain whose carry in is, constant or not.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

__all__ = ["trim_carries"]

INPUTS = ("A", "B", "C", "D")
CONSTANT = ("0", "1", "x")
UNCONNECTED = ["x"]


def trim_carries(module: dict[str, Any]) -> dict[str, int]:
    """Cut what carry chains do not need, in a module of a Yosys JSON netlist; the function stays the same.

    - A carry out or sum that nobody reads is disconnected.
    - A constant carry in is folded into the first half of the cell, when C and D of that half are constant:
      its LUT then only generates the carry, and a LUT4 of its own computes the sum, if that is read.

    Returns the counts of both: {"out": .., "in": ..}.
    """
    cells = module["cells"]
    used: Counter[Any] = Counter()
    for cell in cells.values():
        for port, bits in cell["connections"].items():
            if cell["port_directions"][port] != "output":
                used.update(bits)
    for port in module["ports"].values():
        used.update(port["bits"])

    trimmed = {"out": 0, "in": 0}
    sums = {}
    for name, cell in cells.items():
        if cell["type"] != "CCU2C":
            continue
        for port in ("COUT", "S0", "S1"):
            bits = cell["connections"].get(port, UNCONNECTED)
            if bits != UNCONNECTED and not used[bits[0]]:
                cell["connections"][port] = UNCONNECTED
                trimmed["out"] += port == "COUT"
        carry = cell["connections"].get("CIN", UNCONNECTED)[0]
        if carry in CONSTANT:
            sum_lut = _fold_carry_in(cell, int(carry == "1"))
            if sum_lut is not False:
                trimmed["in"] += 1
                if sum_lut:
                    sums[f"{name}_s0"] = sum_lut
    cells.update(sums)
    return trimmed


def _fold_carry_in(cell: dict[str, Any], carry: int) -> dict[str, Any] | bool | None:
    """Make ``cell`` independent of its carry in.

    Returns the LUT of its first sum (None if that is unread), or False if it cannot be done.
    """
    wires, parameters = cell["connections"], cell["parameters"]
    if parameters.get("INJECT1_0", "NO") != "NO":
        return False
    fixed = [wires[f"{i}0"][0] for i in INPUTS]
    if any(bit not in CONSTANT for bit in fixed[2:]):
        return False
    table = int(parameters["INIT0"], 2)
    high = sum((bit == "1") << (2 + i) for i, bit in enumerate(fixed[2:]))
    lut = [table >> (high + ab) & 1 for ab in range(4)]  # L of (A, B)
    generate = [table >> ab & 1 for ab in range(4)]
    carry_out = [carry if l else g for l, g in zip(lut, generate, strict=True)]

    sum_lut = None
    if wires.get("S0", UNCONNECTED) != UNCONNECTED:
        init = sum((l ^ carry) << ab for ab, l in enumerate(lut))
        sum_lut = {
            "hide_name": 1,
            "type": "LUT4",
            "parameters": {"INIT": f"{init * 0x1111:016b}"},
            "attributes": {},
            "port_directions": {**{i: "input" for i in INPUTS}, "Z": "output"},
            "connections": {
                "A": wires["A0"],
                "B": wires["B0"],
                "C": ["0"],
                "D": ["0"],
                "Z": wires["S0"],
            },
        }
        wires["S0"] = UNCONNECTED
    # With C = D = 1, L is 0 whatever A and B are, so the carry out is G.
    parameters["INIT0"] = f"{sum(c << ab for ab, c in enumerate(carry_out)):016b}"
    wires["C0"] = wires["D0"] = ["1"]
    wires["CIN"] = UNCONNECTED
    return sum_lut
