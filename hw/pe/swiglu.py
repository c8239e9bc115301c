"""SwiGLU: pairs of gate and up rows to h."""

from itertools import pairwise

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.numerics.normalise import Normalise
from hw.numerics.scaled import SCALED, round_even
from hw.numerics.sigmoid import Sigmoid
from hw.pe.clamp import pair_layout
from sw_model.formats import MAG_BITS, TOP_BITS
from sw_model.golden import ALPHA_FRACTION
from sw_model.tables import EXP2_FRACTION, PROB_FRACTION

__all__ = ["SwiGlu"]


class SwiGlu(wiring.Component):
    """h = (gate * up) * sigmoid(alpha gate), each product rounded to 24 bits.

    Members
    -------
    i : stream of :func:`~hw.pe.clamp.pair_layout`
    o : stream of {number, user}
    alpha : Q1.16, steady

    Parameters
    ----------
    user : bits that accompany a pair, and its result

    Latency: ``LATENCY``. Throughput: one pair a cycle.
    Equals the products of :func:`sw_model.golden.activate`.
    """

    _FRONT = 1 + Sigmoid.LATENCY + 1  # pair, sigmoid, last product
    LATENCY = _FRONT + Normalise.LATENCY

    def __init__(self, user: int = 1) -> None:
        self._user = user
        result = data.StructLayout({"number": SCALED, "user": user})
        super().__init__(
            {
                "i": In(stream.Signature(pair_layout(user))),
                "o": Out(stream.Signature(result)),
                "alpha": In(ALPHA_FRACTION + 1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        width = MAG_BITS + PROB_FRACTION + 2
        m.submodules.sigmoid = sigmoid = Sigmoid()
        m.submodules.normalise = normalise = Normalise(width, self._user)
        wiring.connect(m, wiring.flipped(self.o), normalise.o)

        move = Signal()
        m.d.comb += [
            move.eq(~normalise.i.valid | normalise.i.ready),
            self.i.ready.eq(move),
            sigmoid.move.eq(move),
            sigmoid.alpha.eq(self.alpha),
        ]
        # Stage 1 holds the pair. The sigmoid starts with it; the product waits for it.
        valid = Signal(self._FRONT)
        m.d.comb += normalise.i.valid.eq(valid[-1])
        users = [Signal(self._user, name=f"user{i}", reset_less=True) for i in range(self._FRONT)]
        up, gate1 = Signal(SCALED, reset_less=True), Signal(SCALED, reset_less=True)
        product = Signal(2 * MAG_BITS, reset_less=True)
        top2, sign2 = Signal(signed(TOP_BITS), reset_less=True), Signal(reset_less=True)
        m.d.comb += sigmoid.x.eq(gate1)
        with m.If(move):
            m.d.sync += [
                valid.eq(Cat(self.i.valid, valid[:-1])),
                *[b.eq(a) for a, b in zip([self.i.payload.user, *users], users, strict=False)],
                gate1.eq(self.i.payload.gate),
                up.eq(self.i.payload.up),
                product.eq(gate1.mag * up.mag),
                top2.eq(gate1.top + up.top),
                sign2.eq(gate1.sign ^ up.sign),
            ]

        # Both magnitudes have their leading one (or are 0), so the product's is in one of two places.
        high = product[-1]
        rounded = Signal(MAG_BITS + 1)
        m.d.comb += rounded.eq(
            Mux(high, round_even(product, MAG_BITS), round_even(product[:-1], MAG_BITS - 1))
        )
        carry = rounded[-1]
        depth = Sigmoid.LATENCY - 1  # from stage 3 to the sigmoid's result
        mag = [Signal(MAG_BITS, name=f"mag{i}", reset_less=True) for i in range(depth)]
        top = [Signal(signed(TOP_BITS), name=f"top{i}", reset_less=True) for i in range(depth)]
        sign = [Signal(name=f"sign{i}", reset_less=True) for i in range(depth)]
        with m.If(move):
            m.d.sync += [
                mag[0].eq(Mux(carry, rounded >> 1, rounded)),
                top[0].eq(top2 + (high | carry)),
                sign[0].eq(sign2),
            ]
            for line in (mag, top, sign):
                m.d.sync += [b.eq(a) for a, b in pairwise(line)]
            share = round_even(sigmoid.y, EXP2_FRACTION - PROB_FRACTION)[: PROB_FRACTION + 1]
            magnitude = mag[-1] * share
            m.d.sync += [
                normalise.i.payload.value.eq(Mux(sign[-1], -magnitude, magnitude)),
                normalise.i.payload.exp.eq(top[-1] - (MAG_BITS - 1) - PROB_FRACTION),
            ]
        m.d.comb += normalise.i.payload.user.eq(users[-1])
        return m
