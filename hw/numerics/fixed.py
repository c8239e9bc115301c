"""Unpacked numbers to fixed point."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.numerics.scaled import SCALED, round_even, shift_right_sticky
from sw_model.formats import MAG_BITS
from sw_model.golden import FIXED_MAX

__all__ = ["FIXED_BITS", "ToFixed"]

FIXED_BITS = FIXED_MAX.bit_length() + 1


class ToFixed(wiring.Component):
    """y = clip(round_even(x * 2**fraction)), 32 bits, saturated symmetrically.

    Parameters
    ----------
    fraction : bits behind the point

    Members: ``move``, the pipeline advances; ``x`` SCALED; ``y``.
    Latency: ``LATENCY`` moves. Equals :func:`sw_model.golden.to_fixed`.
    """

    LATENCY = 3

    def __init__(self, fraction: int) -> None:
        if not 0 <= fraction < FIXED_BITS - 1:
            raise ValueError(f"fraction must be 0 .. {FIXED_BITS - 2}, not {fraction}")
        self._fraction = fraction
        super().__init__({"move": In(1), "x": In(SCALED), "y": Out(signed(FIXED_BITS))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        whole = FIXED_BITS - 1 - self._fraction
        most = FIXED_BITS
        # Distance, shift, rounding: a stage each.
        distance = whole - 1 - self.x.top
        shift = Signal(range(most + 1), reset_less=True)
        x_mag = Signal(MAG_BITS, reset_less=True)
        moved = Signal(FIXED_BITS + 1, reset_less=True)
        sign, over = (Signal(2, name=name, reset_less=True) for name in ("sign", "over"))
        rounded, mag = Signal(FIXED_BITS), Signal(FIXED_BITS)
        m.d.comb += [
            rounded.eq(round_even(moved, 2)),
            mag.eq(Mux(over[1] | (rounded > FIXED_MAX), FIXED_MAX, rounded)),
        ]
        with m.If(self.move):
            m.d.sync += [
                shift.eq(Mux(distance > most, most, distance)),
                x_mag.eq(self.x.mag),
                moved.eq(shift_right_sticky(Cat(C(0, FIXED_BITS - 1 - MAG_BITS), x_mag), shift, most)),
                sign.eq(Cat(self.x.sign, sign[0])),
                over.eq(Cat(self.x.top > whole - 1, over[0])),
                self.y.eq(Mux(sign[1], -mag, mag)),
            ]
        return m
