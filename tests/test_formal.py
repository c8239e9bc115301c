"""Proofs by induction, for all inputs and all time: the handshake rules of AXI at the host's blocks."""

import os
from pathlib import Path
from typing import Any

import pytest
from amaranth.back import verilog

from hw.boards.tools import run_yosys
from hw.host.axil import RegisterFile
from hw.host.bridge import Bridge
from hw.host.tokens import TokenInput
from hw.host.weights import WeightLoader
from hw.pe.paging import LOCATION
from hw.skid import Skid
from sw_model.config import load_config

RULES = Path(__file__).parent / "rules"

#: Block: how it is made, registers that its rules look at, and a fault that breaks them: text, replacement.
BLOCKS: dict[str, tuple[Any, tuple[str, ...], tuple[str, str]]] = {
    "register_file": (RegisterFile, ("pending",), ("(bready)", "(1'h1)")),
    "token_input": (
        TokenInput,
        ("count", "fsm_state"),
        ("o__valid = i__valid;", "o__valid = i__valid & o__ready;"),
    ),
    "weight_loader": (
        lambda: WeightLoader(load_config("tiny")),
        ("fsm_state", "left", "alone", "entry"),
        ("i__payload[128] != ", "1'h0 != "),
    ),
    "skid": (lambda: Skid(33), ("behind",), ("= i__valid | ", "= i__valid & ")),
    "bridge": (
        lambda: Bridge(capacity=4, patience=4),
        ("fsm_state", "receiver.valid"),
        ("if (s_axis_x_tready)", "if (1'h1)"),
    ),
}


def prove(work: Path, name: str, design: str, seen: tuple[str, ...]) -> None:
    (work / "design.v").write_text(design)
    (work / "rules.v").write_text((RULES / f"{name}.v").read_text())
    commands = [
        "read_verilog design.v",
        f"hierarchy -top {name}",
        "proc",
        "flatten",
        *(f"expose {name}/w:{wire}" for wire in seen),
        "read_verilog -formal rules.v",
        f"chparam -set LOCATION {LOCATION.size} rules" if name == "weight_loader" else "",
        "prep -flatten -top rules",
        "memory_map",
        "opt -full",
        "async2sync",
        "chformal -lower",
        "sat -verify -tempinduct -maxsteps 4 -seq 1 -prove-asserts -set-assumes -set-at 1 rst 1 rules",
    ]
    run_yosys([c for c in commands if c], work, "prove.log")


@pytest.mark.parametrize("name", BLOCKS)
def test_handshake_rules(name, tmp_path):
    os.environ["AMARANTH_USE_YOSYS"] = "builtin"
    make, seen, (text, replacement) = BLOCKS[name]
    design = verilog.convert(make(), name=name, emit_src=False)
    prove(tmp_path, name, design, seen)
    # The proof can fail.
    broken = design.replace(text, replacement)
    assert broken != design
    with pytest.raises(RuntimeError):
        prove(tmp_path, name, broken, seen)
