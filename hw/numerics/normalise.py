"""Signed integer to unpacked number: leading-one search, shift, rounding to 24 bits."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.numerics.scaled import SCALED, left_normalise, round_even
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

    LATENCY = 4

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
        work = max(self._width, MAG_BITS + 2)  # magnitude, leading one to be moved to bit work - 1
        steps = tuple(1 << i for i in reversed(range((work - 1).bit_length())))
        half = len(steps) // 2

        move = Signal()
        m.d.comb += [move.eq(~self.o.valid | self.o.ready), self.i.ready.eq(move)]
        valid = Signal(self.LATENCY)
        m.d.comb += self.o.valid.eq(valid[-1])
        with m.If(move):
            m.d.sync += valid.eq(Cat(self.i.valid, valid[:-1]))

        def stage(index: int, **signals: object) -> dict[str, Signal]:
            out = {}
            for name, value in signals.items():
                out[name] = Signal.like(value, name=f"s{index}_{name}", reset_less=True)
                with m.If(move):
                    m.d.sync += out[name].eq(value)
            return out

        value = self.i.payload.value
        mag = Signal(work)
        m.d.comb += mag.eq(Mux(value < 0, -value, value))
        s = stage(1, mag=mag, sign=value < 0, exp=self.i.payload.exp, user=self.i.payload.user)

        bits = len(steps)
        shifted, zeros = left_normalise(s["mag"], C(0, bits), steps[:half])
        s = stage(2, mag=shifted, zeros=zeros, sign=s["sign"], exp=s["exp"], user=s["user"])
        shifted, zeros = left_normalise(s["mag"], s["zeros"], steps[half:])
        top = Signal(signed(TOP_BITS))
        m.d.comb += top.eq(s["exp"] + (work - 1) - zeros)
        s = stage(3, mag=shifted, top=top, sign=s["sign"], user=s["user"])

        rounded = Signal(MAG_BITS + 1)
        m.d.comb += rounded.eq(round_even(s["mag"], work - MAG_BITS))
        carry = rounded[-1]
        out = Signal(SCALED)
        m.d.comb += [
            out.sign.eq(s["sign"]),
            out.mag.eq(Mux(carry, rounded >> 1, rounded)),
            out.top.eq(Mux(s["mag"][-1], s["top"] + carry, TOP_MIN)),
        ]
        with m.If(move):
            m.d.sync += [self.o.payload.number.eq(out), self.o.payload.user.eq(s["user"])]
        return m
