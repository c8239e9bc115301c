"""The small core in an iCE40's own cells: what they compute, and that nothing falls back to others."""

import json
import subprocess
from pathlib import Path

import pyosys
import pytest

from hw.boards import flow, ice40
from hw.boards.family import resources
from hw.boards.tools import run_yosys
from hw.micro.lanes import MODULE, TwoProducts
from hw.sharing import Sharing, shared
from sw_model.config import load_config

CELLS = Path(ice40.__file__).with_name("ice40_cells.v")
#: Its models of cells give ports defaults, which Icarus does not take.
PLAIN = ["-DNO_ICE40_DEFAULT_ASSIGNMENTS"]
BENCH = """
module bench;
  reg clk = 0;
  reg [31:0] x = 1;
  reg [7:0] al, ah, bl, bh;
  wire [15:0] low, high, own_low, own_high;
  integer i, wrong = 0;
  plain_two_products plain (.clk(clk), .rst(1'b0), .a_low(al), .a_high(ah), .b_low(bl), .b_high(bh),
                            .low(low), .high(high));
  expertile_two_products own (.clk(clk), .rst(1'b0), .a_low(al), .a_high(ah), .b_low(bl), .b_high(bh),
                              .low(own_low), .high(own_high));
  initial begin
    for (i = 0; i < 3000; i = i + 1) begin
      x = x ^ (x << 13); x = x ^ (x >> 17); x = x ^ (x << 5);
      {al, ah, bl, bh} = x;
      #1 clk = 1; #1 clk = 0;
      if (i > 2 && {low, high} !== {own_low, own_high}) wrong = wrong + 1;
    end
    $display("%0d wrong, last %h %h", wrong, low, high);
    $finish;
  end
endmodule
"""


@pytest.mark.sim
def test_two_products_of_an_ice40(tmp_path: Path) -> None:
    platform = Sharing()
    shared(TwoProducts(), MODULE, platform)
    plain = platform.modules[MODULE].replace(MODULE, "plain_two_products")
    primitives = Path(pyosys.__file__).parent / "share" / "ice40" / "cells_sim.v"
    (tmp_path / "bench.v").write_text(BENCH + plain + CELLS.read_text())
    program = tmp_path / "bench.vvp"
    subprocess.run(
        ["iverilog", "-g2012", *PLAIN, "-o", program, tmp_path / "bench.v", primitives],
        check=True,
        timeout=60,
    )
    run = subprocess.run(["vvp", program], check=True, capture_output=True, text=True, timeout=60)
    assert run.stdout.startswith("0 wrong, last "), run.stdout
    assert "x" not in run.stdout.splitlines()[0].partition("last")[2]


def test_memories_and_products_are_hard_blocks(tmp_path: Path) -> None:
    """As the board's flow synthesises it, as far as such cells are chosen: LUTs come later, and take long."""
    board, config = flow.find("icebreaker"), load_config("icebreaker")
    flow.write_verilog(board, config, None, tmp_path)
    *before, synthesis = board.family.synthesis(board, flow.TOP)
    sources = [f"read_verilog {name}" for name in flow.SOURCES]
    stat = "tee -o stat.json stat -json"
    run_yosys([*sources, *before, f"{synthesis} -run begin:map_gates", stat], tmp_path, "yosys.log")
    cells = json.loads((tmp_path / "stat.json").read_text())["design"]["num_cells_by_type"]
    need = resources(board.family.synthesised, cells)
    assert {name: need[name] for name in ("bram", "dsp", "spram")} == {"bram": 29, "dsp": 8, "spram": 4}
    assert not any(name.startswith("$mem") for name in cells), cells
