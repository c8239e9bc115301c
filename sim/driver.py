"""The host's view of one accelerator: registers by name, a weight image, tokens in and out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hw.host.registers import COUNTERS, REGISTERS, address
from sim.verilator import Core
from sw_model.config import HardwareConfig
from sw_model.gate import SideBand
from sw_model.image import Image, resident_packet

__all__ = ["CLEAR", "ENABLE", "FLUSH", "Driver", "PageMemory", "watchdog"]

ENABLE, CLEAR, FLUSH = (1 << f.lsb for f in REGISTERS["CONTROL"].fields)
_RESPONSES = {0: "OKAY", 1: "EXOKAY", 2: "SLVERR", 3: "DECERR"}


def watchdog(config: HardwareConfig) -> int:
    """Cycles without a handshake that mean a hang: several times what reading all macros takes."""
    return 20_000 + 8 * config.words


@dataclass(frozen=True, kw_only=True)
class PageMemory:
    """Where experts come from that are not on chip.

    latency : cycles from a request to the first beat of its page
    bandwidth : beats (16 bytes) a cycle, at most
    """

    latency: int = 0
    bandwidth: float = 1.0


class Driver:
    """Drives ``core`` through its ports alone; requests for pages are answered from ``memory``.

    Raises
    ------
    RuntimeError : a register access is refused, or the core hangs
    """

    def __init__(self, core: Core, memory: PageMemory | None = None) -> None:
        self.core = core
        self._memory = memory or PageMemory()
        self._experts = 0
        self._seen = 0  # requests since serve_pages
        self._slots: dict[int, int] = {}  # slot -> expert

    def write(self, name: str, value: int) -> None:
        """Write a register by name."""
        response = self.core.write(address(name), value)
        if response:
            raise RuntimeError(f"write of {name}: {_RESPONSES[response]}")

    def read(self, name: str) -> int:
        """Read a register by name."""
        value, response = self.core.read(address(name))
        if response:
            raise RuntimeError(f"read of {name}: {_RESPONSES[response]}")
        return value

    def configure(self, image: Image) -> None:
        """Write the layer's registers and enable; the weights are there already, but no pages."""
        self.write("CONTROL", 0)
        for name, value in image.registers.items():
            self.write(name, value)
        pages = [list(image.pages.packets(e)) for e in range(len(image.page_sizes))]
        self.core.serve_pages(pages, latency=self._memory.latency, bandwidth=self._memory.bandwidth)
        self._experts, self._seen, self._slots = image.registers["EXPERTS"], 0, {}
        self.write("CONTROL", ENABLE | CLEAR | FLUSH)

    def load(self, image: Image) -> None:
        """Make the accelerator the layer of ``image``: registers, weights, enable."""
        self.write("CONTROL", 0)
        self.core.send_weights(image.packets())
        self.core.finish()
        self.configure(image)

    def run(self, x: np.ndarray, side: SideBand | None = None) -> np.ndarray:
        """Tokens float32 [T, H], counters cleared before; returns y float32 [T, H]."""
        self.write("CONTROL", ENABLE | CLEAR)
        if not len(x):
            return np.zeros_like(x)
        return self.core.run(x, None if side is None else side.pack())

    def resident(self) -> np.ndarray:
        """Experts, bool [E], that have a page slot."""
        requests = self.core.page_requests(self._seen)
        self._seen += len(requests)
        self._slots |= {slot: expert for expert, slot in requests}
        return np.isin(np.arange(self._experts), list(self._slots.values()))

    def set_resident(self, resident: np.ndarray) -> None:
        """Tell the gate which experts (bool [E]) are on chip; between batches."""
        self.core.send_weights([resident_packet(resident)])
        self.core.finish()

    def counters(self) -> dict[str, int]:
        """All counters by name."""
        return {name: self.read(name) for name in COUNTERS}
