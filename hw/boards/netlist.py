"""Carry chains of an ECP5 netlist, made cheaper before placement.

A CCU2C is two LUTs with a carry:

    S = L ^ carry_in,  carry_out = carry_in if L else G      L = LUT4(A, B, C, D),  G = LUT2(A, B)

where G reads the low four bits of L's table. The placer spends two LUTs at the end of every chain whose carry
out is connected, used or not, and two at the start of every chain whose carry in is, constant or not.
"""

from __future__ import annotations

from collections import Counter
from itertools import permutations, product
from typing import Any

__all__ = ["absorb_operands", "trim_carries"]

INPUTS = ("A", "B", "C", "D")
CONSTANT = ("0", "1", "x")
UNCONNECTED = ["x"]


#: The table that Yosys gives both halves of an adder: L = A ^ B ^ C, G = A, with D = 1.
_ADD = 0x96AA


def absorb_operands(module: dict[str, Any]) -> int:
    """Take LUTs that compute an operand of an adder and nothing else into the adder's own, in a module of a
    Yosys JSON netlist; the function stays the same.

    An adder's half has four inputs and uses two: a sign to exclusive-or, or a multiplexer, fits in as well.

    Returns the number of LUTs that are gone.
    """
    cells = module["cells"]
    luts = {cell["connections"]["Z"][0]: name for name, cell in cells.items() if cell["type"] == "LUT4"}
    loads: Counter[Any] = Counter()
    for port in module["ports"].values():
        loads.update(port["bits"])
    for cell in cells.values():
        for port, bits in cell["connections"].items():
            if cell["port_directions"][port] != "output":
                loads.update(bits)
    halves = [
        (cell, half)
        for cell in cells.values()
        if cell["type"] == "CCU2C"
        for half in "01"
        if int(cell["parameters"][f"INIT{half}"], 2) == _ADD
        and cell["connections"][f"C{half}"] == ["0"]
        and cell["connections"][f"D{half}"] == ["1"]
        and cell["parameters"].get(f"INJECT1_{half}", "NO") == "NO"
    ]
    at: dict[Any, int] = Counter(cell["connections"][f"{i}{half}"][0] for cell, half in halves for i in "AB")
    inside = {bit for bit in luts if loads[bit] and loads[bit] == at[bit]}
    while True:
        fits, fail = [], set()
        for cell, half in halves:
            operands = [cell["connections"][f"{i}{half}"][0] for i in "AB"]
            mine = [bit for bit in operands if bit in inside]
            if not mine:
                continue
            functions = [_function(cells, luts, bit, bit in inside) for bit in operands]
            found = _adder(*functions)
            if found:
                fits.append((cell, half, found))
            else:
                fail.add(mine[0])
        if not fail:
            break
        inside -= fail
    for cell, half, (table, wires) in fits:
        cell["parameters"][f"INIT{half}"] = f"{table:016b}"
        for i, wire in zip(INPUTS, wires, strict=True):
            cell["connections"][f"{i}{half}"] = [wire]
    for bit in inside:
        del cells[luts[bit]]
    return len(inside)


def _function(
    cells: dict[str, Any], luts: dict[Any, str], bit: Any, inside: bool
) -> tuple[tuple[Any, ...], dict[tuple[int, ...], int]]:
    """The wires that ``bit`` depends on, and its value for each of theirs."""
    if bit in CONSTANT:
        return (), {(): int(bit == "1")}
    if not inside:
        return (bit,), {(0,): 0, (1,): 1}
    cell = cells[luts[bit]]
    pins = [cell["connections"].get(i, ["0"])[0] for i in INPUTS]
    wires = tuple(dict.fromkeys(pin for pin in pins if pin not in CONSTANT))
    table = int(cell["parameters"]["INIT"], 2)
    values = {}
    for state in product((0, 1), repeat=len(wires)):
        given = dict(zip(wires, state, strict=True)) | {"0": 0, "1": 1, "x": 0}
        values[state] = table >> sum(given[pin] << k for k, pin in enumerate(pins)) & 1
    return wires, values


def _adder(
    a: tuple[tuple[Any, ...], dict[tuple[int, ...], int]],
    b: tuple[tuple[Any, ...], dict[tuple[int, ...], int]],
) -> tuple[int, tuple[Any, ...]] | None:
    """Table and inputs of a half that adds the functions ``a`` and ``b``, if there is one."""
    wires = tuple(dict.fromkeys((*a[0], *b[0])))
    if len(wires) > len(INPUTS):
        return None
    for pins in permutations((*wires, *"1" * (len(INPUTS) - len(wires)))):
        table, generate = 0, {}
        reached = [n for n in range(16) if all(n >> k & 1 for k, pin in enumerate(pins) if pin == "1")]
        agree = True
        for n in reached:
            given = {pin: n >> k & 1 for k, pin in enumerate(pins)}
            p, q = (values[tuple(given[w] for w in inputs)] for inputs, values in (a, b))
            table |= (p ^ q) << n
            if p == q:
                agree &= generate.setdefault(n & 3, p) == p
        for low, carry in generate.items():
            if low in reached:
                agree &= table >> low & 1 == carry
            else:
                table |= carry << low
        if agree:
            return table, pins
    return None


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
