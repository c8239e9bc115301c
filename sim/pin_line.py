"""What simulated lines share: a Verilated design behind a few pins, its time simulated time."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_uint8, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import ClassVar

__all__ = ["BYTES", "PinLine"]

BYTES = POINTER(c_uint8)

_SHARED = {
    "create": (c_void_p, [c_uint64, c_uint32, c_uint32]),
    "destroy": (None, [c_void_p]),
    "cycle": (c_uint64, [c_void_p]),
    "lamps": (c_uint32, [c_void_p]),
}


@cache
def _load(line: type[PinLine], path: Path) -> dict[str, ctypes._CFuncPtr]:
    library = ctypes.CDLL(str(path))
    functions = {}
    for name, (result, arguments) in (_SHARED | line.CALLS).items():
        functions[name] = getattr(library, f"{line.PREFIX}_{name}")
        functions[name].restype, functions[name].argtypes = result, arguments
    return functions


class PinLine:
    """A design behind a line, with noise on it.

    Parameters
    ----------
    library : what the line's function of :mod:`sim.build` returned
    divisor : clock cycles a bit
    clock_mhz : of the design: what a second is
    noise : probability that a bit on the line is inverted, in either direction
    seed : of the noise, and of the signals that no reset sets

    Attributes
    ----------
    hertz : clock cycles a simulated second
    """

    #: Of the library's functions the common beginning, and those beside the shared ones.
    PREFIX: ClassVar[str]
    CALLS: ClassVar[dict[str, tuple]]

    def __init__(
        self, library: Path, *, divisor: int, clock_mhz: float, noise: float = 0.0, seed: int = 0
    ) -> None:
        if not 0 <= noise < 1:
            raise ValueError(f"noise must be a probability below 1, not {noise}")
        self._call = _load(type(self), library)
        self.hertz = clock_mhz * 1e6
        self._line = c_void_p(self._call["create"](seed, divisor, int(noise * 2**32)))

    @property
    def cycle(self) -> int:
        """Clock cycles since the instance was made."""
        return int(self._call["cycle"](self._line))

    @property
    def lamps(self) -> int:
        """The board's lamps, a bit each."""
        return int(self._call["lamps"](self._line))

    def now(self) -> float:
        """Simulated seconds."""
        return self.cycle / self.hertz

    def close(self) -> None:
        """Free the model. Further calls are errors."""
        if self._line:
            self._call["destroy"](self._line)
            self._line = c_void_p()

    def __del__(self) -> None:
        if hasattr(self, "_line"):
            self.close()
