"""A Verilated design behind its serial line, in this process: bytes in, bytes out, noise on the way."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_uint8, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path

__all__ = ["SerialLine"]

_BYTES = POINTER(c_uint8)
_SIGNATURES = {
    "create": (c_void_p, [c_uint64, c_uint32, c_uint32]),
    "destroy": (None, [c_void_p]),
    "cycle": (c_uint64, [c_void_p]),
    "write": (None, [c_void_p, _BYTES, c_uint64]),
    "run": (c_uint64, [c_void_p, c_uint64]),
    "read": (c_uint64, [c_void_p, _BYTES, c_uint64]),
}


@cache
def _load(path: Path) -> dict[str, ctypes._CFuncPtr]:
    library = ctypes.CDLL(str(path))
    functions = {}
    for name, (result, arguments) in _SIGNATURES.items():
        functions[name] = getattr(library, f"serial_{name}")
        functions[name].restype, functions[name].argtypes = result, arguments
    return functions


class SerialLine:
    """A :class:`driver.pipes.Pipe` whose other end is simulated; its time is simulated time.

    Parameters
    ----------
    library : what :func:`sim.build.build_serial` returned
    divisor : clock cycles a bit
    clock_mhz : of the design: what a second is
    noise : probability that a bit on the line is inverted, in either direction
    seed : of the noise, and of the signals that no reset sets
    """

    def __init__(
        self, library: Path, *, divisor: int, clock_mhz: float, noise: float = 0.0, seed: int = 0
    ) -> None:
        if not 0 <= noise < 1:
            raise ValueError(f"noise must be a probability below 1, not {noise}")
        self._call = _load(library)
        self._hertz = clock_mhz * 1e6
        self._line = c_void_p(self._call["create"](seed, divisor, int(noise * 2**32)))

    @property
    def cycle(self) -> int:
        """Clock cycles since the instance was made."""
        return int(self._call["cycle"](self._line))

    def now(self) -> float:
        """Simulated seconds."""
        return self.cycle / self._hertz

    def write(self, data: bytes) -> None:
        """Queue bytes for the line."""
        self._call["write"](self._line, (c_uint8 * len(data)).from_buffer_copy(data), len(data))

    def read(self, seconds: float) -> bytes:
        """Run until all is sent and something has come, for at most ``seconds``; returns what has come."""
        count = self._call["run"](self._line, max(1, round(seconds * self._hertz)))
        data = (c_uint8 * count)()
        self._call["read"](self._line, data, count)
        return bytes(data)

    def close(self) -> None:
        """Free the model. Further calls are errors."""
        if self._line:
            self._call["destroy"](self._line)
            self._line = c_void_p()

    def __del__(self) -> None:
        if hasattr(self, "_line"):
            self.close()
