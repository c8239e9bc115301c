"""Function tables: piecewise linear, integers only; the ROMs of the hardware hold these very numbers.

    f(i + u / 2**frac_bits)  ~=  base[i] + ((slope[i] * u + 2**(frac_bits - 1)) >> frac_bits)

``SIGMOID``: |x| in Q4.16 (0 .. 16) to Q1.24, 256 segments; negative x through sigmoid(-x) = 1 - sigmoid(x).
``EXP2``: 2**-f for f in Q0.16 (0 .. 1) to Q1.24, 64 segments.
``LOG2``: log2(1 + f) for f in Q0.12 (0 .. 1) to Q1.8, 32 segments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class LinearTable:
    """A piecewise linear function of an unsigned argument of ``index_bits + frac_bits`` bits."""

    name: str
    base: tuple[int, ...]
    slope: tuple[int, ...]
    frac_bits: int

    @property
    def index_bits(self) -> int:
        return (len(self.base) - 1).bit_length()

    @property
    def arg_bits(self) -> int:
        return self.index_bits + self.frac_bits

    @property
    def out_bits(self) -> int:
        """Bits of the result, which lies between the ends of a segment."""
        ends = [b + s for b, s in zip(self.base, self.slope, strict=True)]
        return max(*self.base, *ends).bit_length()

    def __call__(self, arg: np.ndarray) -> np.ndarray:
        """Evaluate for int64 arguments in 0 .. 2**arg_bits - 1."""
        index = arg >> self.frac_bits
        u = arg & ((1 << self.frac_bits) - 1)
        base, slope = np.array(self.base, dtype=np.int64), np.array(self.slope, dtype=np.int64)
        return base[index] + ((slope[index] * u + (1 << (self.frac_bits - 1))) >> self.frac_bits)


def _table(
    name: str, f: Callable[[Decimal], Decimal], *, span: int, segments: int, frac_bits: int, out_frac: int
) -> LinearTable:
    """Knots in decimal arithmetic, which is the same on every machine (a libm is not)."""
    knots = [
        int((f(Decimal(i * span) / segments) * 2**out_frac).to_integral_value(ROUND_HALF_EVEN))
        for i in range(segments + 1)
    ]
    slopes = tuple(b - a for a, b in pairwise(knots))
    return LinearTable(name, tuple(knots[:-1]), slopes, frac_bits)


SIGMOID_FRACTION = 16  # argument Q4.16
PROB_FRACTION = 16  # fraction bits of a routing weight
WEIGHT_BITS = PROB_FRACTION + 7  # routing weights reach 64
EXP2_FRACTION = 24  # results of both tables, Q1.24

SIGMOID = _table(
    "sigmoid",
    lambda x: 1 / (1 + (-x).exp()),
    span=16,
    segments=256,
    frac_bits=12,
    out_frac=EXP2_FRACTION,
)
EXP2 = _table("exp2", lambda f: Decimal(2) ** -f, span=1, segments=64, frac_bits=10, out_frac=EXP2_FRACTION)
LOG2 = _table(
    "log2",
    lambda f: (1 + f).ln() / Decimal(2).ln(),
    span=1,
    segments=32,
    frac_bits=7,
    out_frac=8,
)
