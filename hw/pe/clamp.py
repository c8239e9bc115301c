"""Clamp: the limits of gpt_oss's activation, and its u + 1; anything else passes unchanged."""

from itertools import pairwise

from amaranth.hdl import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.numerics.fixed import FIXED_BITS, ToFixed
from hw.numerics.normalise import Normalise
from hw.numerics.scaled import SCALED
from sw_model.formats import TOP_BITS
from sw_model.golden import UP_FRACTION

__all__ = ["Clamp"]


class Clamp(wiring.Component):
    """gate -> min(gate, limit);  up -> clip(up, +-limit) + 1, worked out in Q7.24.

    Members
    -------
    i, o : streams of {number, user}; gate, up, gate, up, ...
    enable : off: numbers pass unchanged (with the same latency)
    limit : SCALED, positive

    Latency: ``LATENCY``. Throughput: one number a cycle. Equals the clamped part of
    :func:`sw_model.golden.activate`.
    """

    LATENCY = 1 + ToFixed.LATENCY + 1 + Normalise.LATENCY

    def __init__(self, user: int = 2) -> None:
        self._user = user
        layout = data.StructLayout({"number": SCALED, "user": user})
        super().__init__(
            {
                "i": In(stream.Signature(layout)),
                "o": Out(stream.Signature(layout)),
                "enable": In(1),
                "limit": In(SCALED),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        aside = data.StructLayout({"number": SCALED, "user": self._user, "replace": 1})
        m.submodules.fixed = fixed = ToFixed(UP_FRACTION)
        m.submodules.normalise = normalise = Normalise(FIXED_BITS + 1, aside.size)

        move = Signal()
        is_up = Signal()
        m.d.comb += [
            move.eq(~normalise.i.valid | normalise.i.ready),
            self.i.ready.eq(move),
            fixed.move.eq(move),
        ]
        number = self.i.payload.number
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += is_up.eq(~is_up)

        # Normalised numbers compare by (top, magnitude).
        bias = 1 << (TOP_BITS - 1)
        key = Cat(number.mag, (number.top + bias)[:TOP_BITS])
        limit_key = Cat(self.limit.mag, (self.limit.top + bias)[:TOP_BITS])
        over = self.enable & (key > limit_key) & (is_up | ~number.sign)
        depth = 1 + ToFixed.LATENCY + 1
        line = [Signal(aside, name=f"aside{i}", reset_less=True) for i in range(depth)]
        valid = Signal(depth)
        sum_ = Signal(signed(FIXED_BITS + 1), reset_less=True)
        m.d.comb += [
            fixed.x.eq(line[0].number),
            normalise.i.valid.eq(valid[-1]),
            normalise.i.payload.value.eq(sum_),
            normalise.i.payload.exp.eq(-UP_FRACTION),
            normalise.i.payload.user.eq(line[-1]),
        ]
        with m.If(move):
            m.d.sync += [
                valid.eq(Cat(self.i.valid, valid[:-1])),
                line[0].number.sign.eq(number.sign),
                line[0].number.top.eq(Mux(over, self.limit.top, number.top)),
                line[0].number.mag.eq(Mux(over, self.limit.mag, number.mag)),
                line[0].user.eq(self.i.payload.user),
                line[0].replace.eq(self.enable & is_up),
                *[b.eq(a) for a, b in pairwise(line)],
                sum_.eq(fixed.y + C(1 << UP_FRACTION)),
            ]
        out = data.View(aside, normalise.o.payload.user)
        m.d.comb += [
            self.o.valid.eq(normalise.o.valid),
            normalise.o.ready.eq(self.o.ready),
            self.o.payload.number.eq(Mux(out.replace, normalise.o.payload.number, out.number)),
            self.o.payload.user.eq(out.user),
        ]
        return m
