"""The host's view of one accelerator: registers by name, a weight image, tokens in and out."""

from __future__ import annotations

import numpy as np

from hw.host.registers import COUNTERS, REGISTERS, address
from sim.verilator import Core
from sw_model.compiler import Image, resident_packet
from sw_model.config import HardwareConfig
from sw_model.gate import SideBand

__all__ = ["CLEAR", "ENABLE", "Driver", "watchdog"]

ENABLE, CLEAR = (1 << f.lsb for f in REGISTERS["CONTROL"].fields)
_RESPONSES = {0: "OKAY", 1: "EXOKAY", 2: "SLVERR", 3: "DECERR"}


def watchdog(config: HardwareConfig) -> int:
    """Cycles without a handshake that mean a hang: several times what reading all macros takes."""
    return 20_000 + 8 * config.words


class Driver:
    """Drives ``core`` through its ports alone.

    Raises
    ------
    RuntimeError : a register access is refused, or the core hangs
    """

    def __init__(self, core: Core) -> None:
        self.core = core

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
        """Write the layer's registers and enable; the weights are there already."""
        self.write("CONTROL", 0)
        for name, value in image.registers.items():
            self.write(name, value)
        self.write("CONTROL", ENABLE | CLEAR)

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

    def set_resident(self, resident: np.ndarray) -> None:
        """Tell the gate which experts (bool [E]) are on chip; between batches."""
        self.core.send_weights([resident_packet(resident)])
        self.core.finish()

    def counters(self) -> dict[str, int]:
        """All counters by name."""
        return {name: self.read(name) for name in COUNTERS}
