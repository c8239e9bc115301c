# amaranth: UnusedElaboratable=no
"""The whole board, pins to pins: a layer and tokens down the serial line, results as golden has them."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from random_layers import random_tokens
from sim_layers import Case, random_quantised

from hw.boards import flow, ulx3s
from hw.host.frames import Decoder, Frame, Kind, encode
from hw.host.registers import ID_VALUE, address
from sim.tools import sim_environment, verilator
from sw_model import compiler, golden
from sw_model.config import HardwareConfig
from sw_model.image import Image
from sw_model.packets import pieces

pytestmark = pytest.mark.sim

CONFIG = HardwareConfig(
    name="link",
    tiles=1,
    words=1024,
    scales=512,
    max_hidden=32,
    max_intermediate=32,
    max_experts=2,
    max_top_k=1,
)


class Script:
    """What the bench plays, and what has to come back."""

    def __init__(self):
        self.lines = []
        self.want = []
        self._bytes = 0

    def ask(self, kind, words, *answers):
        """Send a frame, and go on when ``answers`` (kind, words) are there."""
        tag = len(self.want) % 256
        self.lines += [f"{byte:x}" for byte in encode(kind, tag, words)]
        for answer, payload in answers:
            frame = Frame(answer, tag, tuple(payload))
            self.want.append(frame)
            self._bytes += len(encode(answer, tag, payload))
        self.lines.append(f"{0x100 + self._bytes:x}")


def load(script: Script, image: Image) -> None:
    for name, value in image.registers.items():
        script.ask(Kind.WRITE, [address(name), value], (Kind.DONE, []))
    for packet in image.packets():
        for part in pieces(packet, CONFIG.max_hidden // 4):
            script.ask(Kind.WEIGHTS, part.ravel().tolist(), (Kind.DONE, []))
    script.ask(Kind.READ, [address("STATUS")], (Kind.DONE, [0]))
    script.ask(Kind.WRITE, [address("CONTROL"), 1], (Kind.DONE, []))


def play(script: Script, work: Path) -> list[Frame]:
    flow.write_verilog(ulx3s.ULX3S_85F, CONFIG, None, work)
    (work / "in.hex").write_text("\n".join(script.lines) + "\n")
    bench = Path(__file__).with_name("board_bench.v")
    build = [str(verilator()), "--binary", "--timing", "--x-initial", "unique", "--top-module", "bench"]
    build += ["-Wno-lint", "-Wno-style", "-Wno-fatal", "-j", "2", "-O3"]
    build += ["-CFLAGS", "-O1 -std=gnu++20 -fcoroutines", str(bench), *flow.SOURCES]
    environment = os.environ | sim_environment()
    done = subprocess.run(build, cwd=work, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    run = [str(work / "obj_dir" / "Vbench"), "+in=in.hex", "+out=out.hex", "+verilator+seed+5"]
    done = subprocess.run(run, cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    return Decoder().feed(bytes(int(line, 16) for line in (work / "out.hex").read_text().split()))


def test_a_layer_through_the_serial_line(tmp_path, monkeypatch):
    monkeypatch.setattr(ulx3s, "BAUD", ulx3s.CLOCK_MHZ * 1e6 / 8)  # as the bench has it
    case = Case(fmt="int4", shape={"hidden": 32, "experts": 2, "top_k": 1})
    layer = random_quantised(case, CONFIG, seed=3)
    x = random_tokens(np.random.default_rng(4), 2, case.hidden)
    want = golden.run(layer, x, CONFIG).y

    script = Script()
    script.ask(Kind.RESET, [], (Kind.DONE, [CONFIG.max_hidden + 4]))
    script.ask(Kind.READ, [address("ID")], (Kind.DONE, [ID_VALUE]))
    load(script, compiler.compile(layer, CONFIG))
    for token, y in zip(x, want, strict=True):
        result = y.astype(np.float32).view(np.uint32).tolist()
        script.ask(Kind.TOKEN, [0, *token.view(np.uint32).tolist()], (Kind.DONE, []))
        script.ask(Kind.FETCH, [], (Kind.RESULT, result))
    script.ask(Kind.READ, [address("TOKENS")], (Kind.DONE, [len(x)]))
    assert play(script, tmp_path) == script.want
