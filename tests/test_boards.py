# amaranth: UnusedElaboratable=no
"""Boards: pins, PLL, netlist surgery, and what synthesis makes of memories and multipliers."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from amaranth.hdl import ClockSignal, Signal
from amaranth_boards.ulx3s import ULX3S_85F_Platform
from designs import SMALL

from hw import verilog
from hw.boards import ecp5_pll, flow
from hw.boards.board import pins
from hw.boards.catalogue import BOARDS
from hw.boards.ecp5 import ECP5
from hw.boards.family import resources
from hw.boards.netlist import absorb_operands, trim_carries
from hw.boards.serial_top import SerialTop
from hw.boards.tools import Tool, run_tool, run_yosys
from sw_model.config import HardwareConfig, load_config
from sw_model.errors import ExpertileError

#: Adders with every kind of carry in and out.
ADDERS = """
module adders(input clk, input [8:0] a, b, input [4:0] c, output [8:0] sum, difference, output [9:0] wide,
              output less, output reg [6:0] count, output [5:0] next, output signed [6:0] negative);
  assign sum = a + b;
  assign difference = a - b;
  assign wide = a + b;
  assign less = $signed(a) < $signed(b);
  assign next = c + 1;
  assign negative = -$signed({1'b0, c}) - 3;
  always @(posedge clk) count <= count + 7'd3;
endmodule
"""


def test_unknown_board(tmp_path):
    with pytest.raises(ExpertileError, match=r"'nope'.*ulx3s_85f"):
        flow.build("nope", SMALL, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("board", BOARDS.values(), ids=list(BOARDS))
def test_every_pin_is_constrained(board):
    top = SerialTop(SMALL, board)
    ports = set()
    for name, member in top.signature.members.items():
        ports |= {name} if member.shape == 1 else {f"{name}[{i}]" for i in range(member.shape)}
    assert ports == {pin.port for pin in board.pins}
    assert len({pin.site for pin in board.pins}) == len(ports)
    lines = [re.split(r"[ ;]+", line.replace('"', "")) for line in board.family.pins(board).splitlines()]
    assert all(any({pin.port, pin.site} <= set(line) for line in lines) for pin in board.pins)
    board.family.pll(Signal(), board.oscillator_mhz, [(ClockSignal(), board.clock_mhz)], Signal())
    rate = board.clock_mhz * 1e6 / round(board.clock_mhz * 1e6 / board.baud)
    assert abs(rate / board.baud - 1) < 0.02


def test_pins_are_those_of_the_boards():
    text = ECP5.pins(BOARDS["ulx3s_85f"])
    for line in (
        'FREQUENCY PORT "clk" 25 MHZ;',
        'LOCATE COMP "clk" SITE "G2";',
        'LOCATE COMP "led[7]" SITE "H3";',
        'IOBUF PORT "uart_rx" IO_TYPE=LVCMOS33;',
    ):
        assert line in text
    crab = {pin.port: pin for pin in BOARDS["orangecrab_85f"].pins}
    assert (crab["uart_rx"].site, crab["uart_tx"].site) == ("N17", "M18")  # through the header's names
    assert crab["button_reset"].inverted and crab["led[0]"].inverted and not crab["uart_tx"].inverted
    assert not any(pin.inverted for pin in BOARDS["ulx3s_85f"].pins)


def test_unknown_pin():
    with pytest.raises(KeyError, match="cts"):
        pins(ULX3S_85F_Platform, {"x": ("uart", 0, "cts")})


@pytest.mark.parametrize(
    "clocks",
    [(25,), (37.5,), (50,), (62.5,), (75,), (100,), (125,), (37.5, 75), (37.5, 150), (25, 125, 62.5)],
)
def test_pll(clocks):
    d = ecp5_pll.dividers(25, *clocks)
    assert 25 * d.feedback / d.input == clocks[0]
    inside = clocks[0] * d.output[0]
    assert ecp5_pll.VCO[0] <= inside <= ecp5_pll.VCO[1]
    assert [inside / divider for divider in d.output] == list(clocks)


def test_pll_out_of_reach():
    with pytest.raises(ValueError, match=r"33\.123 MHz"):
        ecp5_pll.dividers(25, 33.123)
    with pytest.raises(ValueError, match=r"37\.5 MHz and 70 MHz"):
        ecp5_pll.dividers(25, 37.5, 70)


def prove_equal(work: Path, original: dict, changed: dict, models: str = "") -> None:
    """By Yosys's SAT solver: same outputs and next states for all inputs, whatever loose inputs read."""
    for loose in "01":
        gate = copy.deepcopy(changed)
        for cell in gate["cells"].values():
            for port, bits in list(cell["connections"].items()):
                if bits == ["x"]:
                    cell["connections"][port] = [loose]
                    if cell["port_directions"][port] == "output":
                        del cell["connections"][port]
        pair = {name: m | {"attributes": {}} for name, m in (("gold", original), ("gate", gate))}
        (work / "pair.json").write_text(json.dumps({"modules": pair}))
        (work / "models.v").write_text(models)
        commands = [
            "read_verilog models.v",
            "read_verilog -nooverwrite +/lattice/cells_sim_ecp5.v",
            "read_json pair.json",
            "hierarchy",
            "proc",
            "miter -equiv -make_outputs -flatten gold gate miter",
            "async2sync",
            "sat -verify -tempinduct -prove trigger 0 -set-init-zero miter",
        ]
        run_yosys(commands, work, "prove.log")


#: A wire with the name of another's bit, as Amaranth names the fields of a layout.
NAMES = r"""
module names(input clk, input [2:0] a, input [1:0] b, output reg [2:0] x, output reg [1:0] y);
  reg [2:0] word;
  reg WIDTH \word[1] ;
  always @(posedge clk) begin
    word <= a;
    \word[1] <= b;
    x <= word ^ \word[1] ;
    y <= {&word, ^\word[1] };
  end
endmodule
"""


@pytest.mark.parametrize("width", ["", "[1:0]"])
def test_a_wire_is_not_taken_for_the_bit_of_another(tmp_path, width):
    (tmp_path / "names.v").write_text(verilog.name_elements(NAMES.replace("WIDTH", width)))
    run_yosys(["read_verilog names.v", "proc", "write_json rtl.json"], tmp_path, "rtl.log")
    flow.synthesise(tmp_path, ["names.v"], "names", BOARDS["ulx3s_85f"])
    rtl, mapped = (
        json.loads((tmp_path / file).read_text())["modules"]["names"] for file in ("rtl.json", "names.json")
    )
    prove_equal(tmp_path, rtl, mapped)


def test_carry_chains_keep_their_function(tmp_path):
    (tmp_path / "adders.v").write_text(ADDERS)
    flow.synthesise(tmp_path, ["adders.v"], "adders", BOARDS["ulx3s_85f"])
    original = json.loads((tmp_path / "adders.json").read_text())["modules"]["adders"]
    changed = copy.deepcopy(original)
    trimmed = trim_carries(changed)
    assert trimmed["in"] >= 5 and trimmed["out"] >= 4
    prove_equal(tmp_path, original, changed)
    # The proof can fail.
    cell = next(c for c in changed["cells"].values() if c["type"] == "LUT4")
    cell["parameters"]["INIT"] = cell["parameters"]["INIT"].translate(str.maketrans("01", "10"))
    with pytest.raises(RuntimeError):
        prove_equal(tmp_path, original, changed)


def mapped(work: Path, config: HardwareConfig) -> tuple[dict[str, set[str]], dict[str, int]]:
    """Synthesis of a board as far as hard blocks: the primitives of every memory, and the number of cells.

    Nothing may emulate a memory's ports, no large memory be flip-flops, no product be in LUTs.
    """
    flow.write_verilog(BOARDS["ulx3s_85f"], config, None, work)
    commands = [
        f"read_verilog {' '.join(flow.SOURCES)}",
        f"synth_ecp5 -top {flow.TOP} -run begin:map_gates",
        "tee -o stat.json stat -json",
        "tee -o emulated.txt select -list c:*emulate*",
    ]
    run_yosys(commands, work, "yosys.log")
    assert (work / "emulated.txt").read_text().strip() == ""
    log = (work / "yosys.log").read_text()
    kinds: dict[str, set[str]] = {}
    for name, kind in re.findall(r"mapping memory (\S+) via \$__(\w+?)_\s", log):
        kinds.setdefault(name.removeprefix(f"{flow.TOP}.accelerator.core."), set()).add(kind)
    # What is left for flip-flops are tables, which need none, and memories of a few bits.
    left = re.findall(
        r"Mapping memory (\S+) in module.*?created (\d+) \$dff cells .*? of width (\d+)", log, re.DOTALL
    )
    large = {name for name, depth, width in left if int(depth) * int(width) > 64 and "rom" not in name}
    assert left and not large
    cells = json.loads((work / "stat.json").read_text())["design"]["num_cells_by_type"]
    assert not {name for name in cells if name in ("$mul", "$__soft_mul")}
    return kinds, cells


LANES = 32
BLOCK_RAM = {"DP16KD", "PDPW16KD"}
#: Of everything but the array: the gate, the router's weights and sigmoid, sequencer, combine, SwiGLU.
PRODUCTS = {"combine": 3, "swiglu": 6}


def test_memories_and_multipliers_are_hard_blocks(tmp_path):
    """No silent fall-back: what should be block RAM is, nothing emulates its ports, products are DSPs."""
    kinds, cells = mapped(tmp_path, SMALL)
    for tile in range(SMALL.tiles):
        for memory in ("macro.sram", "scales"):
            name = f"array.tile{tile}.{memory}"
            found = set().union(*(kind for memory, kind in kinds.items() if memory.startswith(name)))
            assert found and found <= BLOCK_RAM, name
    scale = 2
    assert cells["MULT18X18D"] >= SMALL.tiles * (LANES + scale) + sum(PRODUCTS.values())
    assert cells["DP16KD"] < 30


#: Block RAMs of the FIFO in which blocks wait for the large array.
WAITING = 9


def test_lookup_tiles_are_hard_blocks(tmp_path):
    """Of a pair of tiles of the preset's depths: words and scales in 9 block RAMs, every table, accumulator
    and finished row in LUT RAM, two products a tile."""
    config = replace(load_config("ecp5_85f_lut"), tiles=2)
    kinds, cells = mapped(tmp_path, config)
    tile = "array.engine.tile0."
    where = {memory: kind for memory, kind in kinds.items() if memory.startswith(tile)}
    # The tile's module may be mapped under its own name, before it is put in place.
    where |= {
        f"{tile}{m.removeprefix('expertile_tile.')}": k for m, k in kinds.items() if "expertile_tile" in m
    }
    for c in range(config.columns):
        for near in range(4):
            assert where.pop(f"{tile}macro{c}.sram{near}") <= BLOCK_RAM
        for k in range(4):
            for g in range(8):
                assert where.pop(f"{tile}macro{c}.group{g}.table{k}") == {"TRELLIS_DPR16X4"}
    assert where.pop(f"{tile}scales") <= BLOCK_RAM
    assert where.pop(f"{tile}accs") == where.pop(f"{tile}rows") == {"TRELLIS_DPR16X4"}
    assert not where
    assert kinds["h_buffer.code8_0"] <= BLOCK_RAM and kinds["array.blocks.items"] <= BLOCK_RAM
    assert cells["MULT18X18D"] >= 2 * config.tiles + sum(PRODUCTS.values())
    assert 9 * config.tiles // 2 + WAITING < cells["DP16KD"] < 9 * config.tiles // 2 + WAITING + 30


@pytest.mark.slow
def test_preset_of_the_large_array(tmp_path):
    """The whole preset takes the block RAM and multipliers that the claims above add up to, and fits."""
    config = load_config("ecp5_85f_lut")
    board = BOARDS["ulx3s_85f"]
    flow.write_verilog(board, config, None, tmp_path)
    cells = flow.synthesise(tmp_path, flow.SOURCES, flow.TOP, board)
    assert 9 * config.tiles // 2 + WAITING < cells["DP16KD"] < 9 * config.tiles // 2 + WAITING + 30
    assert 2 * config.tiles + sum(PRODUCTS.values()) <= cells["MULT18X18D"] < 2 * config.tiles + 60


#: LUTs of the device that a cell takes.
LUTS = dict.fromkeys(("LUT1", "LUT2", "LUT3", "LUT4", "ALU", "SB_LUT4"), 1)
LUTS |= {"CCU2C": 2, "TRELLIS_DPR16X4": 6, "RAM16SDP4": 8}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("preset", sorted({board.preset for board in BOARDS.values()}))
def test_presets_fit(preset, tmp_path):
    """The boards that they are listed for; products and memories are in hard blocks."""
    config, boards = load_config(preset), [board for board in BOARDS.values() if board.preset == preset]
    flow.write_verilog(boards[0], config, None, tmp_path)
    cells = flow.synthesise(tmp_path, flow.SOURCES, flow.TOP, boards[0])
    need = resources(boards[0].family.synthesised, cells)
    need["lut"] = sum(n * cells.get(name, 0) for name, n in LUTS.items())
    for board in boards:
        assert all(need[resource] <= board.capacity[resource] for resource in need), board.name
    if config.body == "micro":  # rows of 64 bits: two a word, one for two scales
        products, bits = 8, 64 * (2 * config.words + config.scales // 2)
    else:
        products = config.tiles * (2 if config.body == "lut" else LANES + 2) + sum(PRODUCTS.values())
        bits = config.tiles * (config.words * 4 * LANES + config.scales * 18)
    assert need["dsp"] >= products
    assert (need["bram"] * 18 + need.get("spram", 0) * 256) * 1024 >= bits


#: Sums of what fits into an adder's tables, of what does not, and of LUTs that something else reads too.
OPERANDS = """
module operands(input clk, input [7:0] a, b, c, input x, y, z, w, output reg [8:0] signs, far, both, odd,
                output [7:0] also, output reg [8:0] shared, four);
  wire [7:0] turned = a ^ {8{x}};
  assign also = b & {8{z}};
  always @(posedge clk) begin
    signs <= (a ^ {8{x}}) + (b ^ {8{y}});
    far <= a + (x ? b : c);
    both <= (a & {8{x}}) + (b | {8{y}});
    odd <= a - (b ^ ~{8{z}});
    shared <= turned + also;
    four <= a + ((b & c) ^ {8{z ^ w}});
  end
endmodule
"""


def test_operands_move_into_adders(tmp_path):
    (tmp_path / "operands.v").write_text(OPERANDS)
    flow.synthesise(tmp_path, ["operands.v"], "operands", BOARDS["ulx3s_85f"])
    original = json.loads((tmp_path / "operands.json").read_text())["modules"]["operands"]
    changed = copy.deepcopy(original)
    gone = absorb_operands(changed)
    left = [sum(c["type"] == "LUT4" for c in m["cells"].values()) for m in (original, changed)]
    assert left[0] - left[1] == gone >= 8 * 4
    prove_equal(tmp_path, original, changed)
    trim_carries(changed)
    prove_equal(tmp_path, original, changed)
    cell = next(c for c in changed["cells"].values() if c["parameters"].get("INIT0") == f"{0x6996:016b}")
    cell["parameters"]["INIT0"] = f"{0x6999:016b}"
    with pytest.raises(RuntimeError):
        prove_equal(tmp_path, original, changed)


@pytest.mark.slow
def test_bitstream(tmp_path):
    said = []
    report = flow.build("ulx3s_85f", load_config("tiny"), tmp_path / "fpga", said.append)
    files = {p.name for p in (tmp_path / "fpga").iterdir()}
    assert {"ulx3s_85f.bit", "report.json", "board_top.v", "expertile_top.v", "nextpnr.log"} <= files
    assert not {name for name in files if name.startswith(".build-")}
    assert json.loads((tmp_path / "fpga" / "report.json").read_text()) == report
    assert report["timing_met"] and report["fmax_mhz"] >= report["clock_mhz"]
    assert report["macs_per_cycle"] == 64
    assert (tmp_path / "fpga" / "ulx3s_85f.bit").stat().st_size > 100_000
    assert said[0] == "generating Verilog" and any("routing" in line for line in said)


def test_too_big_is_said_before_placement(tmp_path, monkeypatch):
    monkeypatch.setattr(flow, "write_verilog", lambda *_: None)
    monkeypatch.setattr(flow, "synthesise", lambda *_: {"DP16KD": 200, "PDPW16KD": 9, "MULT18X18D": 3})
    with pytest.raises(ExpertileError, match=r"'small': needs 209 bram of the 208 on ulx3s_85f"):
        flow.build("ulx3s_85f", SMALL, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        (
            "print('ERROR: Unable to place cell'); raise SystemExit(1)",
            ExpertileError,
            "'small'.*Unable to place",
        ),
        ("print('trap'); raise SystemExit(3)", RuntimeError, "exit code 3.*trap"),
    ],
)
def test_failing_tools(tmp_path, script, error, message):
    with pytest.raises(error, match=message):
        run_tool(Tool("nextpnr-ecp5", script), tmp_path, [], SMALL, lambda _: None)


@pytest.mark.parametrize(("preset", "router"), [("ecp5_25f", False), ("ecp5_85f_lut", True)])
def test_router_of_large_arrays(preset, router, tmp_path, monkeypatch):
    asked: list[list[str]] = []
    monkeypatch.setattr(flow, "run_tool", lambda tool, work, arguments, *_: asked.append(arguments))
    flow._place_and_route(BOARDS["ulx3s_85f"], load_config(preset), tmp_path, lambda _: None)
    assert ("router2" in asked[0]) == router


def test_native_tool(tmp_path, monkeypatch):
    """A program named by the environment is started in the wheel's place, in the build's folder."""
    tool = tmp_path / "nextpnr"
    tool.write_text('#!/bin/sh\necho "Info: $1 in $(pwd)"\n')
    tool.chmod(0o755)
    (work := tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEXTPNR_ECP5", "./nextpnr")
    lines: list[str] = []
    run_tool(ECP5.nextpnr, work, ["--85k"], SMALL, lines.append)
    assert lines == [f"Info: --85k in {work}\n"]


def test_native_tool_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("NEXTPNR_ECP5", str(tmp_path / "nowhere"))
    with pytest.raises(ExpertileError, match=r"NEXTPNR_ECP5=.*nowhere: no such program; unset it"):
        run_tool(ECP5.nextpnr, tmp_path, [], SMALL, lambda _: None)
