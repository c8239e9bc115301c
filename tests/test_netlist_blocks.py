"""Block RAMs and multipliers of a netlist: their registers, and their places."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from test_boards import prove_equal

from hw.boards import flow
from hw.boards.block_registers import absorb_registers
from hw.boards.catalogue import BOARDS
from hw.boards.ecp5 import ECP5
from hw.boards.floorplan import anchor_tiles, block_ram_sites

#: What a block has a register for, and what it must leave: registers that are read elsewhere or reset.
REGISTERS = """
module registers(input clk, other, reset, input [8:0] at, input signed [11:0] a, b, c,
                 output reg signed [23:0] all, half, output [23:0] bare, output reg [35:0] word, kept, turned,
                 output reg signed [11:0] seen);
  reg signed [11:0] a_in, b_in, d;
  reg [35:0] read, read_too, zero;
  (* no_rw_check *) reg [35:0] memory [511:0], cleared [511:0], reset_there [511:0];
  assign bare = b * c;
  always @(posedge clk) begin
    a_in <= a; b_in <= b; all <= a_in * b_in;
    d <= c; seen <= d; half <= d * a;
    read <= memory[at]; word <= read;
    read_too <= cleared[at];
    if (reset) kept <= 0; else kept <= read_too;
    if (reset) zero <= 0; else zero <= reset_there[at];
    turned <= zero;
  end
  always @(posedge other) begin
    memory[b[8:0]] <= {a, b, c}; cleared[b[8:0]] <= {c, b, a}; reset_there[b[8:0]] <= {b, c, a};
  end
endmodule
"""
MODES = ("REGMODE_A", "REGMODE_B", "REG_INPUTA_CLK", "REG_INPUTB_CLK", "REG_OUTPUT_CLK")


def bus(name: str, width: int = 18) -> str:
    return ", ".join(f"{name}{i}" for i in reversed(range(width)))


#: The blocks as far as their registers tell: in a proof, any function of the operands or address will do.
BLOCKS = f"""
module DP16KD(input {bus("DIA")}, {bus("DIB")}, {bus("ADA", 14)}, {bus("ADB", 14)},
              {bus("CSA", 3)}, {bus("CSB", 3)}, CEA, OCEA, CLKA, WEA, RSTA, CEB, OCEB, CLKB, WEB, RSTB,
              output {bus("DOA")}, {bus("DOB")});
  parameter REGMODE_A = "NOREG", REGMODE_B = "NOREG";
  wire [13:0] address = {{{bus("ADB", 14)}}};
  reg [35:0] word, later;
  always @(posedge CLKB) begin
    word <= RSTB ? 36'b0 : {{4{{address[13:5]}}}}; later <= word;
  end
  assign {{{bus("DOA")}}} = REGMODE_A == "OUTREG" ? OCEA ? later[35:18] : 18'b0 : word[35:18];
  assign {{{bus("DOB")}}} = REGMODE_B == "OUTREG" ? OCEB ? later[17:0] : 18'b0 : word[17:0];
endmodule
module MULT18X18D(input {bus("A")}, {bus("B")}, {bus("C")}, SIGNEDA, SIGNEDB, SOURCEA, SOURCEB,
                  CLK0, CE0, RST0, output {bus("P", 36)});
  parameter REG_INPUTA_CLK = "NONE", REG_INPUTB_CLK = "NONE", REG_OUTPUT_CLK = "NONE";
  wire [17:0] a = {{{bus("A")}}}, b = {{{bus("B")}}};
  reg [17:0] a_in, b_in;
  reg [35:0] product;
  wire [35:0] now = {{REG_INPUTA_CLK == "CLK0" ? a_in : a, REG_INPUTB_CLK == "CLK0" ? b_in : b}};
  always @(posedge CLK0)
    if (RST0) product <= 0;
    else if (CE0) begin a_in <= a; b_in <= b; product <= now; end
  assign {{{bus("P", 36)}}} = REG_OUTPUT_CLK == "CLK0" ? product : now;
endmodule
"""


def provable(module: dict[str, Any]) -> dict[str, Any]:
    """A copy whose blocks have the parameters and ports that :data:`BLOCKS` knows."""
    copied = copy.deepcopy(module)
    for cell in copied["cells"].values():
        if cell["type"] in ("DP16KD", "MULT18X18D"):
            cell["parameters"] = {k: v for k, v in cell["parameters"].items() if k in MODES}
            for port in list(cell["connections"]):
                if f" {port}," not in BLOCKS.replace("(", " ").replace(")", ",").replace("{", " ").replace(
                    "}", ","
                ):
                    del cell["connections"][port]
    return copied


def test_registers_move_into_blocks(tmp_path: Path) -> None:
    (tmp_path / "registers.v").write_text(REGISTERS)
    flow.synthesise(tmp_path, ["registers.v"], "registers", BOARDS["ulx3s_85f"])
    original = json.loads((tmp_path / "registers.json").read_text())["modules"]["registers"]
    changed = copy.deepcopy(original)
    count = [0, 0]
    gone = absorb_registers(changed)
    for n, module in enumerate((original, changed)):
        count[n] = sum(cell["type"] == "TRELLIS_FF" for cell in module["cells"].values())
    assert gone == count[0] - count[1] == 12 + 12 + 24 + 24 + 36
    modes = [tuple(cell["parameters"].get(mode) for mode in MODES) for cell in changed["cells"].values()]
    assert modes.count(("OUTREG", "OUTREG", None, None, None)) == 1
    assert modes.count(("NOREG", "NOREG", None, None, None)) == 2
    assert modes.count((None, None, "CLK0", "CLK0", "CLK0")) == 1
    assert modes.count((None, None, None, None, "CLK0")) == 1
    prove_equal(tmp_path, provable(original), provable(changed), BLOCKS)
    # The proof can fail.
    cell = next(c for c in changed["cells"].values() if c["parameters"].get("REGMODE_A") == "NOREG")
    cell["parameters"]["REGMODE_A"] = "OUTREG"
    with pytest.raises(RuntimeError):
        prove_equal(tmp_path, provable(original), provable(changed), BLOCKS)


@pytest.mark.parametrize("part", ECP5.devices)
def test_block_ram_sites(part: str) -> None:
    sites = [site for row in block_ram_sites(part) for site in row]
    assert len(set(sites)) == len(sites) == ECP5.devices[part].capacity["bram"]


def tiles(number: int, block_rams: int) -> dict[str, Any]:
    cells = {
        f"core.engine.tile{n}.sram{k}.0": {"type": "DP16KD", "attributes": {}}
        for n in range(number)
        for k in range(block_rams)
    }
    return {"cells": {**cells, "core.table.0": {"type": "DP16KD", "attributes": {}}}}


def test_neighbours_lie_side_by_side() -> None:
    rows = block_ram_sites("LFE5U-85F")
    module = tiles(16, 9)
    assert anchor_tiles(module, rows) == 16 * 9
    where = {site: (y, x) for y, row in enumerate(rows) for x, site in enumerate(row)}
    at: dict[int, list[tuple[int, int]]] = {n: [] for n in range(16)}
    for name, cell in module["cells"].items():
        if "engine" in name:
            at[int(name.split(".")[2].removeprefix("tile"))].append(where[cell["attributes"]["BEL"]])
    assert not module["cells"]["core.table.0"]["attributes"]
    assert len({place for places in at.values() for place in places}) == 16 * 9
    for n, places in at.items():
        (row,), columns = {y for y, _ in places}, sorted(x for _, x in places)
        assert columns == list(range(columns[0], columns[0] + 9))
        if n:
            before = at[n - 1]
            step = (abs(row - before[0][0]), abs(columns[0] - min(x for _, x in before)))
            assert step in ((0, 9), (1, 0))


@pytest.mark.parametrize(("number", "block_rams"), [(0, 9), (24, 9), (5, 53)])
def test_what_does_not_fit_is_left(number: int, block_rams: int) -> None:
    module = tiles(number, block_rams)
    assert anchor_tiles(module, block_ram_sites("LFE5U-85F")) == 0
    assert not any(cell["attributes"] for cell in module["cells"].values())
