"""The one final rounding: a wide integer to IEEE 754 binary32."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.numerics.leading import LEADING_STAGES, leading_one, register
from hw.numerics.scaled import round_even, shift_right_sticky
from sw_model.formats import MAG_BITS

__all__ = ["Float32Pack", "unpack"]

EXP_BITS = 13


def unpack(bits: Signal) -> dict[str, object]:
    """Fields of a finite binary32 word as an unpacked number (subnormals: top -126, no leading one)."""
    field, normal = bits[23:31], bits[23:31].any()
    return {
        "sign": bits[31],
        "top": Mux(normal, field, 1).as_unsigned() - C(127, signed(9)),
        "mag": Cat(bits[:23], normal),
    }


class Float32Pack(wiring.Component):
    """``value * 2**exp`` rounded to nearest even binary32; subnormals exact, overflow to infinity.

    Parameters
    ----------
    width : bits of the signed value

    Members
    -------
    i : stream of {value signed(width), exp signed(13), last}
    o : stream of {bits 32, last}

    Latency: ``LATENCY`` cycles. Throughput: one a cycle. The pipeline moves as a whole with ``o.ready``.
    Equals :func:`sw_model.formats.pack_float32`.
    """

    LATENCY = LEADING_STAGES + 2

    def __init__(self, width: int) -> None:
        if width < 2:
            raise ValueError(f"width must be at least 2, not {width}")
        self._width = width
        layout = data.StructLayout({"value": signed(width), "exp": signed(EXP_BITS), "last": 1})
        super().__init__(
            {
                "i": In(stream.Signature(layout)),
                "o": Out(stream.Signature(data.StructLayout({"bits": 32, "last": 1}))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        work = max(self._width, MAG_BITS + 2)
        move = Signal()
        m.d.comb += [move.eq(~self.o.valid | self.o.ready), self.i.ready.eq(move)]
        valid, last = Signal(self.LATENCY), Signal(self.LATENCY)
        m.d.comb += [self.o.valid.eq(valid[-1]), self.o.payload.last.eq(last[-1])]
        with m.If(move):
            m.d.sync += [
                valid.eq(Cat(self.i.valid, valid[:-1])),
                last.eq(Cat(self.i.payload.last, last[:-1])),
            ]
        s = leading_one(m, move, self.i.payload.value, self.i.payload.exp, work)

        # Below 2**-126 the LSB stays at 2**-149: shift the mantissa down before it is rounded.
        drop = work - MAG_BITS - 1
        mantissa = Cat(s["mag"][:drop].any(), s["mag"][drop:])  # sticky, half, then 24 bits
        most = MAG_BITS + 2
        below = Signal(signed(EXP_BITS + 2))
        shift = Signal(range(most + 1))
        m.d.comb += [below.eq(-126 - s["top"]), shift.eq(Mux(below <= 0, 0, Mux(below > most, most, below)))]
        lowered = shift_right_sticky(mantissa, shift, most)
        kept = Cat(lowered[:3].any(), lowered[3:])
        exponent = Signal(signed(EXP_BITS + 1))
        m.d.comb += exponent.eq(Mux(below > 0, -126, s["top"]))
        s = register(m, move, "s4", mant=kept, exponent=exponent, sign=s["sign"], zero=~s["mag"][-1])

        rounded = Signal(MAG_BITS + 1)
        m.d.comb += rounded.eq(round_even(s["mant"], 2))
        carry = rounded[-1]
        # Without the leading one the field is 0; a carry out of the mantissa steps it by itself.
        field = Signal(signed(EXP_BITS + 2))
        m.d.comb += field.eq(Mux(rounded[MAG_BITS - 1] | carry, s["exponent"] + 127 + carry, 0))
        fraction = Mux(carry, 0, rounded[: MAG_BITS - 1])
        bits = Signal(31)
        with m.If(s["zero"]):
            m.d.comb += bits.eq(0)
        with m.Elif(field > 254):
            m.d.comb += bits.eq(0xFF << 23)
        with m.Else():
            m.d.comb += bits.eq(Cat(fraction, field[:8]))
        with m.If(move):
            m.d.sync += self.o.payload.bits.eq(Cat(bits, s["sign"]))
        return m
