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

__all__ = ["Clamp", "pair_layout"]


def pair_layout(user: int) -> data.StructLayout:
    """A gate row and its up row, with what accompanies them."""
    return data.StructLayout({"gate": SCALED, "up": SCALED, "user": user})


class Clamp(wiring.Component):
    """gate -> min(gate, limit);  up -> clip(up, +-limit) + 1, worked out in Q7.24.

    Parameters
    ----------
    user : bits that accompany a pair

    Members
    -------
    i, o : streams of :func:`pair_layout`
    enable : steady; off: ``i`` is ``o``
    limit : SCALED, positive

    Latency: ``LATENCY`` where it is enabled. Throughput: one pair a cycle. Equals the clamped part of
    :func:`sw_model.golden.activate`.
    """

    _FRONT = 1 + ToFixed.LATENCY + 1  # limits, fixed point, plus 1
    LATENCY = _FRONT + Normalise.LATENCY

    def __init__(self, user: int = 1) -> None:
        self._user = user
        layout = pair_layout(user)
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
        beside = data.StructLayout({"gate": SCALED, "user": self._user})
        m.submodules.fixed = fixed = ToFixed(UP_FRACTION)
        m.submodules.normalise = normalise = Normalise(FIXED_BITS + 1, beside.size)
        move = Signal()
        m.d.comb += [move.eq(~normalise.i.valid | normalise.i.ready), fixed.move.eq(move)]

        # Normalised numbers compare by (top, magnitude).
        bias = 1 << (TOP_BITS - 1)
        limit_key = Cat(self.limit.mag, (self.limit.top + bias)[:TOP_BITS])

        def limited(number: data.View, both: bool) -> dict[str, object]:
            over = Cat(number.mag, (number.top + bias)[:TOP_BITS]) > limit_key
            if not both:
                over &= ~number.sign
            return {
                "sign": number.sign,
                "top": Mux(over, self.limit.top, number.top),
                "mag": Mux(over, self.limit.mag, number.mag),
            }

        valid = Signal(self._FRONT)
        line = [Signal(beside, name=f"beside{i}", reset_less=True) for i in range(self._FRONT)]
        up = Signal(SCALED, reset_less=True)
        sum_ = Signal(signed(FIXED_BITS + 1), reset_less=True)
        m.d.comb += [
            fixed.x.eq(up),
            normalise.i.valid.eq(valid[-1]),
            normalise.i.payload.value.eq(sum_),
            normalise.i.payload.exp.eq(-UP_FRACTION),
            normalise.i.payload.user.eq(line[-1]),
        ]
        pair = self.i.payload
        with m.If(move):
            m.d.sync += [
                valid.eq(Cat(self.i.valid & self.enable, valid[:-1])),
                *[line[0].gate[name].eq(v) for name, v in limited(pair.gate, both=False).items()],
                *[up[name].eq(v) for name, v in limited(pair.up, both=True).items()],
                line[0].user.eq(pair.user),
                *[b.eq(a) for a, b in pairwise(line)],
                sum_.eq(fixed.y + C(1 << UP_FRACTION)),
            ]
        out = data.View(beside, normalise.o.payload.user)
        m.d.comb += [
            self.o.payload.eq(pair),
            self.o.valid.eq(self.i.valid),
            self.i.ready.eq(self.o.ready),
            normalise.o.ready.eq(self.o.ready),
        ]
        with m.If(self.enable):
            m.d.comb += [
                self.o.payload.gate.eq(out.gate),
                self.o.payload.up.eq(normalise.o.payload.number),
                self.o.payload.user.eq(out.user),
                self.o.valid.eq(normalise.o.valid),
                self.i.ready.eq(move),
            ]
        return m
