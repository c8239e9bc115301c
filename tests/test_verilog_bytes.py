"""The Verilog of a configuration: the same text in every process, and names that no tool takes for others."""

import os
import re
import subprocess
import sys
from dataclasses import replace

from designs import SMALL

from hw import verilog
from hw.boards import flow
from hw.boards.catalogue import BOARDS
from sim.tools import ROOT

SCRIPT = """
import sys
from designs import SMALL
from hw.verilog import generate
sys.stdout.write(generate(SMALL))
"""


def test_the_same_text_whatever_the_hashes():
    """Sets of names have another order with every seed of Python's hashes."""
    texts = set()
    for seed in range(3):
        paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
        env = os.environ | {"PYTHONHASHSEED": str(seed), "PYTHONPATH": paths}
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True
        )
        texts.add(run.stdout)
    assert len(texts) == 1 and "module expertile_top(" in texts.pop()


def test_no_wire_is_named_like_a_bit():
    """Of another one. Lookup tiles have arrays of layouts, whose elements Amaranth names so."""
    text = verilog.generate(replace(SMALL, body="lut")) + flow.top_verilog(BOARDS["ulx3s_85f"], SMALL)
    assert not re.search(r"\\\S*\[", text)
    assert re.search(r"\\\S*\.columns\.0\.table\.u\.7 ", text)
