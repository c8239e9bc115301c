"""Router scores: unpacked numbers to fixed-point logits."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.numerics.scaled import SCALED, round_even, shift_right_sticky
from sw_model.formats import MAG_BITS
from sw_model.golden import LOGIT_FRACTION, LOGIT_MAX

__all__ = ["LOGIT_BITS", "ToLogit"]

LOGIT_BITS = LOGIT_MAX.bit_length() + 1


class ToLogit(wiring.Component):
    """logit = clip(round_even(x * 2**16)), signed Q15.16, saturated symmetrically.

    Members: ``x`` SCALED; ``logit``.
    Latency: ``LATENCY``. Throughput: one a cycle. Equals :func:`sw_model.golden.to_logit`.
    """

    LATENCY = 2

    def __init__(self) -> None:
        super().__init__({"x": In(SCALED), "logit": Out(signed(LOGIT_BITS))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        whole = LOGIT_BITS - 1 - LOGIT_FRACTION  # integer bits
        extra = LOGIT_BITS - 1 - MAG_BITS
        most = LOGIT_BITS
        distance = whole - 1 - self.x.top
        shift = Signal(range(most + 1))
        m.d.comb += shift.eq(Mux(distance > most, most, distance))
        moved = Signal(LOGIT_BITS + 1, reset_less=True)
        sign, over = Signal(reset_less=True), Signal(reset_less=True)
        m.d.sync += [
            moved.eq(shift_right_sticky(Cat(C(0, extra), self.x.mag), shift, most)),
            sign.eq(self.x.sign),
            over.eq(self.x.top > whole - 1),
        ]
        mag = Signal(LOGIT_BITS)
        m.d.comb += mag.eq(Mux(over, LOGIT_MAX, round_even(moved, 2)))
        m.d.sync += self.logit.eq(Mux(sign, -mag, mag))
        return m
