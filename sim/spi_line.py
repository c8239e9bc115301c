"""A Verilated design behind its SPI pins, in this process: the host's side of every transfer, and noise."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_uint8, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path

__all__ = ["SpiLine"]

_SIGNATURES = {
    "create": (c_void_p, [c_uint64, c_uint32, c_uint32]),
    "destroy": (None, [c_void_p]),
    "cycle": (c_uint64, [c_void_p]),
    "lamps": (c_uint32, [c_void_p]),
    "transfer": (None, [c_void_p, POINTER(c_uint8), c_uint64]),
}


@cache
def _load(path: Path) -> dict[str, ctypes._CFuncPtr]:
    library = ctypes.CDLL(str(path))
    functions = {}
    for name, (result, arguments) in _SIGNATURES.items():
        functions[name] = getattr(library, f"spi_{name}")
        functions[name].restype, functions[name].argtypes = result, arguments
    return functions


class SpiLine:
    """A :class:`driver.spi_pipe.SpiBus` whose device is simulated; its time is simulated time.

    Parameters
    ----------
    library : what :func:`sim.build.build_spi` returned
    divisor : clock cycles a bit
    clock_mhz : of the design: what a second is
    noise : probability that a bit is inverted, in either direction
    seed : of the noise, and of the signals that no reset sets
    """

    def __init__(
        self, library: Path, *, divisor: int, clock_mhz: float, noise: float = 0.0, seed: int = 0
    ) -> None:
        if not 0 <= noise < 1:
            raise ValueError(f"noise must be a probability below 1, not {noise}")
        self._call = _load(library)
        self._hertz = clock_mhz * 1e6
        self._host = c_void_p(self._call["create"](seed, divisor, int(noise * 2**32)))

    @property
    def lamps(self) -> int:
        """The board's lamps, a bit each."""
        return int(self._call["lamps"](self._host))

    def now(self) -> float:
        """Simulated seconds."""
        return int(self._call["cycle"](self._host)) / self._hertz

    def transfer(self, data: bytes) -> bytes:
        """Clock bytes out; returns as many that came in."""
        both = (c_uint8 * len(data)).from_buffer_copy(data)
        self._call["transfer"](self._host, both, len(data))
        return bytes(both)

    def close(self) -> None:
        """Free the model. Further calls are errors."""
        if self._host:
            self._call["destroy"](self._host)
            self._host = c_void_p()

    def __del__(self) -> None:
        if hasattr(self, "_host"):
            self.close()
