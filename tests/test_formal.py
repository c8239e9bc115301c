"""Proofs by induction, for all inputs and all time: the AXI4-Lite rules of the register file."""

import os
from pathlib import Path

import pytest
from amaranth.back import verilog

from hw.boards.flow import run_yosys
from hw.host.axil import RegisterFile

RULES = Path(__file__).with_name("axil_rules.v")


def prove(work: Path, design: str) -> None:
    (work / "design.v").write_text(design)
    (work / "rules.v").write_text(RULES.read_text())
    commands = [
        "read_verilog design.v",
        "read_verilog -formal rules.v",
        "prep -flatten -top rules",
        "memory_map",
        "opt -full",
        "async2sync",
        "chformal -lower",
        "sat -verify -tempinduct -seq 1 -prove-asserts -set-at 1 rst 1 rules",
    ]
    run_yosys(commands, work, "prove.log")


def test_axi4_lite_rules(tmp_path):
    os.environ["AMARANTH_USE_YOSYS"] = "builtin"
    design = verilog.convert(RegisterFile(), name="register_file", emit_src=False)
    prove(tmp_path, design)
    # The proof can fail: a response that is not held until it is taken.
    broken = design.replace("(bready)", "(1'h1)")
    assert broken != design
    with pytest.raises(RuntimeError):
        prove(tmp_path, broken)
