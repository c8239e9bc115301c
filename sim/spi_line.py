"""A Verilated design behind its SPI pins, in this process: the host's side of every transfer, and noise."""

from __future__ import annotations

from ctypes import c_uint8, c_uint64, c_void_p
from typing import ClassVar

from sim.pin_line import BYTES, PinLine

__all__ = ["SpiLine"]


class SpiLine(PinLine):
    """A :class:`driver.spi_pipe.SpiBus` whose device is simulated; the library is of
    :func:`sim.build.build_spi`."""

    PREFIX = "spi"
    CALLS: ClassVar = {"transfer": (None, [c_void_p, BYTES, c_uint64])}

    def transfer(self, data: bytes) -> bytes:
        """Clock bytes out; returns as many that came in."""
        both = (c_uint8 * len(data)).from_buffer_copy(data)
        self._call["transfer"](self._line, both, len(data))
        return bytes(both)
