"""Signed integer to unpacked number: leading-one search, shift, rounding to 24 bits."""

from itertools import pairwise

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.numerics.leading import LEADING_STAGES, leading_one
from hw.numerics.scaled import SCALED, round_even
from sw_model.formats import MAG_BITS, TOP_BITS, TOP_MIN

__all__ = ["Normalise"]


class Normalise(wiring.Component):
    """Normalise ``value * 2**exp`` to 24 bits.

    mag = round_even(abs(value) / 2**(length - 24)),  top = length - 1 + exp (+1 if the rounding carried)

    Parameters
    ----------
    width : bits of the signed value
    user : bits that accompany an item untouched

    Members
    -------
    i : stream of {value signed(width), exp signed(TOP_BITS), user}
    o : stream of {number SCALED, user}

    Latency: ``LATENCY`` cycles without stalls. Throughput: one item a cycle. ``i.ready`` follows ``o.ready``
    combinationally; the pipeline moves as a whole.

    Numerics: zero gives mag 0 and top TOP_MIN. Equals :func:`sw_model.formats.normalise`.
    """

    LATENCY = LEADING_STAGES + 1

    def __init__(self, width: int, user: int = 1) -> None:
        if width < 2:
            raise ValueError(f"width must be at least 2, not {width}")
        self._width = width
        self._user = user
        super().__init__(
            {
                "i": In(
                    stream.Signature(
                        data.StructLayout({"value": signed(width), "exp": signed(TOP_BITS), "user": user})
                    )
                ),
                "o": Out(stream.Signature(data.StructLayout({"number": SCALED, "user": user}))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        work = max(self._width, MAG_BITS + 2)
        move = Signal()
        m.d.comb += [move.eq(~self.o.valid | self.o.ready), self.i.ready.eq(move)]
        valid = Signal(self.LATENCY)
        users = [Signal(self._user, name=f"user{i}", reset_less=True) for i in range(LEADING_STAGES)]
        m.d.comb += self.o.valid.eq(valid[-1])
        s = leading_one(m, move, self.i.payload.value, self.i.payload.exp, work)

        rounded = Signal(MAG_BITS + 1)
        m.d.comb += rounded.eq(round_even(s["mag"], work - MAG_BITS))
        carry = rounded[-1]
        number = self.o.payload.number
        with m.If(move):
            m.d.sync += [
                valid.eq(Cat(self.i.valid, valid[:-1])),
                *[b.eq(a) for a, b in pairwise([self.i.payload.user, *users, self.o.payload.user])],
                number.sign.eq(s["sign"]),
                number.mag.eq(Mux(carry, rounded >> 1, rounded)),
                number.top.eq(Mux(s["mag"][-1], s["top"] + carry, TOP_MIN)),
            ]
        return m
