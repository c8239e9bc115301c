"""The unpacked number that travels between blocks, and the two rounding expressions that all of them use.

value = (-1)**sign * mag * 2**(top - 23), as :class:`sw_model.formats.Scaled` has it.
"""

from amaranth.hdl import C, Cat, Mux, Value, signed
from amaranth.lib import data

from sw_model.formats import MAG_BITS, TOP_BITS

__all__ = ["SCALED", "left_normalise", "round_even", "shift_right_sticky"]

SCALED = data.StructLayout({"sign": 1, "top": signed(TOP_BITS), "mag": MAG_BITS})


def round_even(value: Value, drop: int) -> Value:
    """``value >> drop``, rounded to nearest even; one bit wider than ``value`` less ``drop`` bits."""
    keep = value[drop:]
    if drop == 0:
        return keep
    half = value[drop - 1]
    rest = value[: drop - 1].any() if drop > 1 else C(0)
    return keep + (half & (rest | keep[0]))


def shift_right_sticky(value: Value, shift: Value, most: int) -> Value:
    """``value >> shift`` for shift 0 .. most, with two more bits below: the half and the sticky rest.

    ``round_even(result, 2)`` is then the rounded quotient.
    """
    wide = Cat(C(0, most), value) >> shift
    below = wide[:most]
    half = below[-1]
    rest = below[:-1].any() if most > 1 else C(0)
    return Cat(rest, half, wide[most:])


def left_normalise(value: Value, zeros: Value, steps: tuple[int, ...]) -> tuple[Value, Value]:
    """Shift left by each of ``steps`` (powers of two, falling) where that many top bits are zero.

    Returns the shifted value and the leading zeros removed so far, added to ``zeros``.
    """
    width = len(value)
    for step in steps:
        empty = ~value[width - step :].any()
        value = Mux(empty, Cat(C(0, step), value[: width - step]), value)
        zeros = zeros | Mux(empty, C(step), 0)
    return value, zeros
