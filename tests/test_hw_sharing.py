"""A shared component is one module, the same text whatever Python's hashes are."""

import os
import re
import subprocess
import sys

from sim.tools import ROOT

#: Two clocks: a set of their names has its order from the hashes.
SCRIPT = """
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from hw.sharing import Sharing

class Two(wiring.Component):
    i: In(4)
    o: Out(4)

    def elaborate(self, platform):
        m = Module()
        held = Signal(4)
        m.d.load += held.eq(self.i)
        m.d.sync += self.o.eq(held)
        return m

sharing = Sharing()
for _ in range(2):
    sharing.instance("two", Two(), ("load",))
print(*sharing.modules.values())
"""


def test_the_same_text_whatever_the_hashes() -> None:
    texts = set()
    for seed in range(5):
        env = os.environ | {"PYTHONHASHSEED": str(seed), "AMARANTH_USE_YOSYS": "builtin"}
        command = [sys.executable, "-c", SCRIPT]
        ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
        texts.add(ran.stdout)
    assert len(texts) == 1
    modules = re.findall(r"module two\(([^)]*)\);", texts.pop())
    assert [set(ports.split(", ")) for ports in modules] == [{"clk", "rst", "load_clk", "load_rst", "i", "o"}]
