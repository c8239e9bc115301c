"""The LiteX core in a LiteX system, simulated: the driver at LiteX's serial bridge runs a layer."""

import warnings

import numpy as np
import pytest
from random_layers import random_tokens
from sim_layers import Case, random_quantised, same_bits

from driver.accelerator import Driver
from sim.build import build_serial
from sim.serial_line import SerialLine
from sw_model import compiler, golden
from sw_model.config import HardwareConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs
    pytest.importorskip("litex", reason="needs the extra litex")
    from litex_soc import BASE, CLOCKS_A_BIT, build

pytestmark = pytest.mark.sim

CONFIG = HardwareConfig(
    name="litex", tiles=1, words=2048, scales=1024, max_hidden=32, max_intermediate=32, max_experts=8,
    max_top_k=2, page_slots=4,
)  # fmt: skip
PINS = """
module serial_top (input clk, input uart_rx, output uart_tx, output [7:0] led);
  litex_system system (.sys_clk(clk), .serial_rx(uart_rx), .serial_tx(uart_tx), .sim_trace(1'b0));
  assign led = 0;
endmodule
"""


class SerialBridge:
    """A bus of the driver's through LiteX's UARTBone, and the FIFOs of the example."""

    READ, WRITE = 2, 1
    OKAY = 0  # the bridge does not tell

    def __init__(self, line, places):
        self.line, self.at = line, places
        line.read(1e-4)  # the line is low until LiteX's first clock, which reads as a byte

    def peek(self, address, words=1):
        self.line.write(bytes([self.READ, words]) + (address // 4).to_bytes(4, "big"))
        data = b""
        while len(data) < 4 * words:
            got = self.line.read(10)  # what is to be sent before takes its time
            assert got, "no answer"
            data += got
        return [int.from_bytes(data[i : i + 4], "big") for i in range(0, len(data), 4)]

    def poke(self, address, *words):
        data = b"".join(int(word).to_bytes(4, "big") for word in words)
        self.line.write(bytes([self.WRITE, len(words)]) + (address // 4).to_bytes(4, "big") + data)

    def write(self, address, value):
        self.poke(BASE + address, value)
        return self.OKAY

    def read(self, address):
        return self.peek(BASE + address)[0], self.OKAY

    def send_weights(self, packets):
        for packet in packets:
            for i, beat in enumerate(packet):
                if i in (0, len(packet) - 1):
                    self.poke(self.at["weights_flags"], int(i == len(packet) - 1))
                self.poke(self.at["weights_beat"], *beat[::-1])

    def finish(self):
        assert self.peek(self.at["weights_room"]) == [1]

    def serve_pages(self, pages):
        self.pages = pages

    def run(self, x, user=None):
        assert user is None
        y = np.zeros_like(x).view(np.uint32)
        for token, result in zip(x.view(np.uint32), y, strict=True):
            for i, word in enumerate(token):
                self.poke(self.at["tokens_flags"], int(i == len(token) - 1))
                self.poke(self.at["tokens_beat"], word)
            for i in range(len(token)):
                while not self.peek(self.at["results_there"])[0]:
                    if self.peek(self.at["pages_there"])[0]:
                        self.send_weights(self.pages[self.peek(self.at["pages_beat"])[0] & 0xFFFF])
                result[i] = self.peek(self.at["results_beat"])[0]
        return y.view(np.float32)


@pytest.mark.parametrize("slots", [None, 2], ids=["whole", "paged"])
def test_a_layer(slots, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "litex"
    places = build(CONFIG, folder)
    text = "\n".join([(folder / f"{name}.v").read_text() for name in ("litex_system", "expertile_top")])
    # Its first lines tell the time of day.
    text = "\n".join(line for line in text.splitlines() if not line.startswith("//"))
    line = SerialLine(build_serial(text + PINS), divisor=CLOCKS_A_BIT, clock_mhz=8.0)
    driver = Driver(SerialBridge(line, places))
    driver.require(CONFIG)
    layer = random_quantised(
        Case(fmt="int4", shape={"hidden": 32, "experts": 4, "shared": 32}), CONFIG, seed=3
    )
    driver.load(compiler.compile(layer, CONFIG, slots=slots))
    x = random_tokens(np.random.default_rng(4), 4, 32)
    assert same_bits(driver.run(x), golden.run(layer, x, CONFIG).y)
    counters = driver.counters()
    assert counters["TOKENS"] == 4 and (counters["PAGE_MISSES"] > 0) == (slots is not None)
