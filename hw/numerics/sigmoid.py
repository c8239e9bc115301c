"""sigmoid of an unpacked number, Q1.16."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.numerics.scaled import SCALED
from hw.numerics.table import Table
from sw_model.formats import MAG_BITS
from sw_model.tables import PROB_FRACTION, SIGMOID, SIGMOID_FRACTION

__all__ = ["Sigmoid"]


class Sigmoid(wiring.Component):
    """y = 1 / (1 + exp(-x)): |x| truncated to Q4.12 and saturated, looked up, mirrored for negative x.

    Members
    -------
    move : the pipeline advances
    x : SCALED
    y : Q1.16 (17 bits, 0 .. 65536)

    Latency: ``LATENCY`` moves. Equals :func:`sw_model.golden.sigmoid`.
    """

    LATENCY = 2 + Table.LATENCY

    def __init__(self) -> None:
        super().__init__({"move": In(1), "x": In(SCALED), "y": Out(PROB_FRACTION + 1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.table = table = Table(SIGMOID)
        whole = SIGMOID.arg_bits - SIGMOID_FRACTION
        least = MAG_BITS - 1 - SIGMOID_FRACTION - (whole - 1)  # shift of the largest number in range
        most = least + SIGMOID.arg_bits
        shift = Signal(range(most + 1))
        m.d.comb += shift.eq(
            Mux(self.x.top < whole - 1 - SIGMOID.arg_bits, most, MAG_BITS - 1 - SIGMOID_FRACTION - self.x.top)
        )
        negative = Signal(Table.LATENCY + 1)
        with m.If(self.move):
            m.d.sync += [
                table.arg.eq(Mux(self.x.top >= whole, (1 << SIGMOID.arg_bits) - 1, self.x.mag >> shift)),
                negative.eq(Cat(self.x.sign, negative[:-1])),
                self.y.eq(Mux(negative[-1], (1 << PROB_FRACTION) - table.y, table.y)),
            ]
        m.d.comb += table.move.eq(self.move)
        return m
