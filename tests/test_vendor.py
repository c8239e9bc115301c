"""The Verilog in other vendors' fabrics, by Yosys: no warnings, block RAM and multipliers in place."""

import json
import re

import pytest
from designs import SMALL

from hw import verilog
from hw.boards.tools import run_yosys

LANES, SCALE = 32, 2  # multipliers of a tile

#: Synthesis, the stage by which memories and multipliers are mapped, and the cells that they become.
FABRICS = {
    # Flattened first: Yosys stumbles over names when it maps the modules one by one.
    "xc7": (
        "synth_xilinx -family xc7 -flatten -noiopad",
        "map_ffram",
        ("RAMB18E1", "RAMB36E1"),
        ("DSP48E1",),
    ),
    "xcup": (
        "synth_xilinx -family xcup -flatten -noiopad",
        "map_ffram",
        ("RAMB18E2", "RAMB36E2"),
        ("DSP48E2",),
    ),
    "cyclonev": (
        "synth_intel_alm -family cyclonev -noiopad",
        "map_lutram",
        ("MISTRAL_M10K",),
        ("MISTRAL_MUL9X9", "MISTRAL_MUL18X18", "MISTRAL_MUL27X27"),
    ),
}
#: Bits that a block RAM of each kind holds: what a kilobyte of words must at most become.
RAM_BITS = {"RAMB18E1": 18, "RAMB36E1": 36, "RAMB18E2": 18, "RAMB36E2": 36, "MISTRAL_M10K": 10}
#: What Yosys says of its own library, of RAMB18E2 and RAMB36E2 too, whose ports it maps wider than they are,
#: and ABC of parts of every design.
THEIRS = re.compile(
    r"ABC: Warning: The network is combinational|/share/\S+:\d+\) is not recognized unless|"
    r"Resizing cell port \S+\.(ADDR(ARD|BWR)ADDR|DIN(P?)[AB]DIN\3|DOUT(P?)[AB]DOUT\4) from (16|64|8) bits"
)


@pytest.fixture(scope="module")
def text():
    return verilog.generate(SMALL)


def synthesise(work, text, commands):
    """Cells by type, and the warnings, of Yosys commands."""
    (work / "expertile_top.v").write_text(text)
    run_yosys(["read_verilog expertile_top.v", *commands, "tee -o s.json stat -json"], work, "yosys.log")
    log = (work / "yosys.log").read_text().splitlines()
    warnings = [line for line in log if re.search("warning", line, re.I) and not THEIRS.search(line)]
    return json.loads((work / "s.json").read_text())["design"]["num_cells_by_type"], warnings


def check(cells, rams, dsps, products):
    memory = SMALL.words * 4 * LANES + SMALL.scales * 20
    assert memory <= sum(cells.get(ram, 0) * RAM_BITS[ram] * 1024 for ram in rams)
    assert sum(cells.get(ram, 0) for ram in rams) < 30
    assert products <= sum(cells.get(dsp, 0) for dsp in dsps) < 80
    assert not {"$mul", "$__soft_mul"} & cells.keys()


def test_elaborates_without_warnings(text, tmp_path):
    commands = [f"hierarchy -check -top {verilog.MODULE}", "proc", "flatten", "opt_clean", "check -assert"]
    cells, warnings = synthesise(tmp_path, text, commands)
    assert cells and not warnings


def test_a_warning_is_seen(tmp_path):
    text = "module expertile_top(output [1:0] y); assign y[0] = absent; assign y[0] = 1'b0; endmodule"
    assert synthesise(tmp_path, text, ["hierarchy -top expertile_top", "proc", "check"])[1]


@pytest.mark.parametrize("fabric", FABRICS)
def test_memories_and_multipliers_are_hard_blocks(fabric, text, tmp_path):
    """Of the array, which has the macros."""
    command, stage, rams, dsps = FABRICS[fabric]
    commands = [f"{command} -top {verilog.MODULE}.core.array -run begin:{stage}"]
    cells, warnings = synthesise(tmp_path, text, commands)
    check(cells, rams, dsps, LANES + SCALE)
    assert not warnings


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fabric", FABRICS)
def test_whole_synthesis(fabric, text, tmp_path):
    command, _, rams, dsps = FABRICS[fabric]
    cells, warnings = synthesise(tmp_path, text, [f"{command} -top {verilog.MODULE}"])
    combine, swiglu = 3, 6
    check(cells, rams, dsps, LANES + SCALE + combine + swiglu)
    assert not warnings
    assert not [name for name in cells if name.startswith("$") and name != "$scopeinfo"]
