"""The Verilog of a configuration is the same text in every process."""

import os
import subprocess
import sys

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
