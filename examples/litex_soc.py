"""A LiteX system with an accelerator in it, reached over LiteX's own serial bridge to its bus.

    pip install -e '.[litex]'
    python examples/litex_soc.py build/litex

writes the system's Verilog and prints its memory map. Weights and tokens go through registers and FIFOs here;
a system with memory would put DMA engines at the same streams.
"""

from __future__ import annotations

import sys
from pathlib import Path

from litex.build.generic_platform import Pins, Subsignal
from litex.build.io import CRG
from litex.build.sim import SimPlatform
from litex.gen import LiteXModule
from litex.soc.integration.soc import SoCRegion
from litex.soc.integration.soc_core import SoCCore
from litex.soc.interconnect import stream
from litex.soc.interconnect.csr import CSRStatus, CSRStorage

from hw.litex_core import Expertile
from sw_model.config import HardwareConfig, load_config

PINS = [
    ("sys_clk", 0, Pins(1)),
    ("serial", 0, Subsignal("tx", Pins(1)), Subsignal("rx", Pins(1))),
]
BASE = 0x3000_0000  # of the accelerator's registers
CLOCKS_A_BIT = 8


class Feeder(LiteXModule):
    """Registers before a stream: a beat leaves when its lowest word is written.

    beat : the data; flags : last [0], user [16:1]; room : the FIFO takes another beat
    """

    def __init__(self, width: int, user: bool = False, depth: int = 16) -> None:
        layout = [("data", width), *([("user", 16)] if user else [])]
        self.fifo = fifo = stream.SyncFIFO(layout, depth, buffered=True)
        self.source = fifo.source
        self.flags = CSRStorage(17)
        self.beat = CSRStorage(width)
        self.room = CSRStatus()
        self.sync += fifo.sink.valid.eq(self.beat.re)
        self.comb += [
            fifo.sink.data.eq(self.beat.storage),
            fifo.sink.last.eq(self.flags.storage[0]),
            self.room.status.eq(fifo.sink.ready),
        ]
        if user:
            self.comb += fifo.sink.user.eq(self.flags.storage[1:])


class Collector(LiteXModule):
    """Registers behind a stream: there : a beat waits; beat : it, and reading it takes it."""

    def __init__(self, depth: int = 512) -> None:
        self.fifo = fifo = stream.SyncFIFO([("data", 32)], depth, buffered=True)
        self.sink = fifo.sink
        self.there = CSRStatus()
        self.beat = CSRStatus(32)
        self.comb += [
            self.there.status.eq(fifo.source.valid),
            self.beat.status.eq(fifo.source.data),
            fifo.source.ready.eq(self.beat.we),
        ]


class System(SoCCore):
    """No processor: a host at the serial line reads and writes the bus."""

    def __init__(self, platform: SimPlatform, config: HardwareConfig, folder: Path) -> None:
        clock = 8_000_000
        self.crg = CRG(platform.request("sys_clk"))
        SoCCore.__init__(
            self,
            platform,
            clk_freq=clock,
            cpu_type=None,
            ident="",
            with_uart=False,
            with_timer=False,
            integrated_rom_size=0,
            integrated_sram_size=0,
        )
        self.add_uartbone(baudrate=clock // CLOCKS_A_BIT)
        self.expertile = core = Expertile(platform, config, folder)
        self.bus.add_slave("expertile", core.bus, SoCRegion(origin=BASE, size=core.SPAN, cached=False))
        self.tokens, self.weights = Feeder(32, user=True), Feeder(128)
        self.results, self.pages = Collector(), Collector(16)
        self.comb += [
            self.tokens.source.connect(core.x),
            self.weights.source.connect(core.w),
            core.y.connect(self.results.sink),
            core.page.connect(self.pages.sink),
        ]


def build(config: HardwareConfig, folder: Path) -> dict[str, int]:
    """Write litex_system.v and expertile_top.v; returns the addresses of the system's registers."""
    folder.mkdir(parents=True, exist_ok=True)
    platform = SimPlatform("SIM", PINS, name="litex_system")
    system = System(platform, config, folder)
    system.finalize()
    platform.get_verilog(system, name="litex_system").write(str(folder / "litex_system.v"))
    return {
        f"{bank}_{csr.name}": region.origin + 4 * at
        for bank, region in system.csr.regions.items()
        if isinstance(region.obj, list)
        for csr, at in _places(region.obj)
    }


def _places(bank: list) -> list[tuple]:
    """Registers of a bank and the number of their first word."""
    found, at = [], 0
    for csr in bank:
        found.append((csr, at))
        at += (csr.size + 31) // 32
    return found


if __name__ == "__main__":
    for name, address in build(load_config("tiny"), Path(sys.argv[1])).items():
        print(f"{address:#010x} {name}")
