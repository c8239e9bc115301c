"""A Verilated design behind its serial line, in this process: bytes in, bytes out, noise on the way."""

from __future__ import annotations

from ctypes import c_uint8, c_uint64, c_void_p
from typing import ClassVar

from sim.pin_line import BYTES, PinLine

__all__ = ["SerialLine"]


class SerialLine(PinLine):
    """A :class:`driver.pipes.Pipe` whose other end is simulated; the library is of
    :func:`sim.build.build_serial`."""

    PREFIX = "serial"
    CALLS: ClassVar = {
        "write": (None, [c_void_p, BYTES, c_uint64]),
        "run": (c_uint64, [c_void_p, c_uint64]),
        "read": (c_uint64, [c_void_p, BYTES, c_uint64]),
    }

    def write(self, data: bytes) -> None:
        """Queue bytes for the line."""
        self._call["write"](self._line, (c_uint8 * len(data)).from_buffer_copy(data), len(data))

    def read(self, seconds: float) -> bytes:
        """Run until all is sent and something has come, for at most ``seconds``; returns what has come."""
        count = self._call["run"](self._line, max(1, round(seconds * self.hertz)))
        data = (c_uint8 * count)()
        self._call["read"](self._line, data, count)
        return bytes(data)
