"""LUTs of an ECP5 netlist that fit into the carry chains or hard blocks they feed or are fed by.

Every half of a CCU2C has a LUT of four inputs, and the adders that synthesis makes use two or three of them
(:mod:`hw.boards.netlist` has the cell's equations). What comes before an operand, an inversion by a second
signal or a mask, fits beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, permutations, product
from typing import Any

__all__ = ["absorb_luts"]

INPUTS = ("A", "B", "C", "D")
CONSTANT = {"0": 0, "1": 1, "x": 0}
_Function = Callable[[dict[Any, int]], int]


def absorb_luts(module: dict[str, Any]) -> int:
    """Move LUTs that only feed carry chains into these, in a module of a Yosys JSON netlist, where they fit.

    The function stays the same. Returns how many LUTs are gone.
    """
    cells = module["cells"]
    luts = {cell["connections"]["Z"][0]: cell for cell in cells.values() if cell["type"] == "LUT4"}
    readers: dict[Any, set[tuple[str, str]]] = defaultdict(set)
    for name, cell in cells.items():
        for port, bits in cell["connections"].items():
            if cell["port_directions"][port] != "output":
                for bit in bits:
                    readers[bit].add((name, port))
    for port in module["ports"].values():
        for bit in port["bits"]:
            readers[bit].add(("", ""))

    def in_chains(bit: Any) -> bool:
        return all(n and cells[n]["type"] == "CCU2C" and p[0] in INPUTS for n, p in readers[bit])

    for name, cell in cells.items():
        if cell["type"] != "CCU2C":
            continue
        for half in "01":
            if cell["parameters"].get(f"INJECT1_{half}", "NO") != "NO":
                continue
            wires = [cell["connections"][f"{i}{half}"][0] for i in INPUTS]
            found = [w for w in dict.fromkeys(wires) if w in luts and in_chains(w)]
            table = int(cell["parameters"][f"INIT{half}"], 2)
            for chosen in _subsets(found):
                new = _merge(table, wires, {w: luts[w] for w in chosen})
                if new is None:
                    continue
                init, inputs = new
                cell["parameters"][f"INIT{half}"] = f"{init:016b}"
                for i, wire in zip(INPUTS, inputs, strict=True):
                    cell["connections"][f"{i}{half}"] = [wire]
                    readers[wire].add((name, f"{i}{half}"))
                for w in chosen:
                    readers[w] -= {(name, f"{i}{half}") for i in INPUTS}
                break
    gone = [n for n, c in cells.items() if c["type"] == "LUT4" and not readers[c["connections"]["Z"][0]]]
    for name in gone:
        del cells[name]
    return len(gone)


def _subsets(items: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """All but the empty one, the largest first."""
    for n in range(len(items), 0, -1):
        yield from combinations(items, n)


def _lookup(table: int, wires: Sequence[Any]) -> _Function:
    def value(at: dict[Any, int]) -> int:
        index = sum((CONSTANT[w] if w in CONSTANT else at[w]) << i for i, w in enumerate(wires))
        return table >> index & 1

    return value


def _merge(table: int, wires: Sequence[Any], luts: dict[Any, Any]) -> tuple[int, list[Any]] | None:
    """Table and inputs of a half with ``luts`` in front of its inputs, or None if there is no such table.

    The low four bits of the table, by A and B alone, are the carry where the sum's LUT gives 0.
    """
    lut, generate = _lookup(table, wires), _lookup(table & 15, [*wires[:2], "0", "0"])
    before = {
        w: _lookup(int(c["parameters"]["INIT"], 2), [c["connections"][i][0] for i in INPUTS])
        for w, c in luts.items()
    }
    inner = [c["connections"][i][0] for c in luts.values() for i in INPUTS]
    variables = [v for v in dict.fromkeys([*wires, *inner]) if v not in CONSTANT and v not in luts]
    if len(variables) > len(INPUTS):
        return None
    cases = []
    for bits in product((0, 1), repeat=len(variables)):
        at = dict(zip(variables, bits, strict=True))
        whole = at | {w: f(at) for w, f in before.items()}
        cases.append((at, lut(whole), generate(whole)))
    spare = len(INPUTS) - len(variables)
    # Constant inputs are 1 and come last, so that the low four bits are free where there is one.
    for order in permutations(variables):
        inputs = [*order, *["1"] * spare]
        init, known = 0, 0
        fits = True
        for at, total, carry in cases:
            index = sum((1 if w == "1" else at[w]) << i for i, w in enumerate(inputs))
            wanted = [(index, total)] if total else [(index, total), (index & 3, carry)]
            for bit, value in wanted:
                if known >> bit & 1 and init >> bit & 1 != value:
                    fits = False
                known |= 1 << bit
                init |= value << bit
        if fits:
            return init, inputs
    return None
