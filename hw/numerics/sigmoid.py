"""sigmoid of an unpacked number, Q1.24."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.numerics.scaled import SCALED
from hw.numerics.table import Table
from sw_model.formats import MAG_BITS
from sw_model.golden import ALPHA_FRACTION
from sw_model.tables import EXP2_FRACTION, SIGMOID, SIGMOID_FRACTION

__all__ = ["Sigmoid"]


class Sigmoid(wiring.Component):
    """y = 1 / (1 + exp(-alpha x)): alpha |x| truncated to Q4.16 and saturated, looked up, mirrored for x < 0.

    Members
    -------
    move : the pipeline advances
    x : SCALED
    alpha : Q1.16
    y : Q1.24 (25 bits)

    Latency: ``LATENCY`` moves. Equals :func:`sw_model.golden.sigmoid`.
    """

    LATENCY = 3 + Table.LATENCY

    def __init__(self) -> None:
        super().__init__(
            {"move": In(1), "x": In(SCALED), "alpha": In(ALPHA_FRACTION + 1), "y": Out(EXP2_FRACTION + 1)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.table = table = Table(SIGMOID)
        whole = SIGMOID.arg_bits - SIGMOID_FRACTION
        unit = MAG_BITS - 1 + ALPHA_FRACTION - SIGMOID_FRACTION  # shift of a number with top 0
        most = MAG_BITS + ALPHA_FRACTION + 1
        product = Signal(MAG_BITS + ALPHA_FRACTION + 1, reset_less=True)
        shift = Signal(range(most + 1), reset_less=True)
        over = Signal(reset_less=True)
        moved = Signal.like(product)
        negative = Signal(Table.LATENCY + 2)
        m.d.comb += [moved.eq(product >> shift), table.move.eq(self.move)]
        with m.If(self.move):
            m.d.sync += [
                product.eq(self.x.mag * self.alpha),
                shift.eq(Mux(self.x.top < unit - most, most, unit - self.x.top)),
                over.eq(self.x.top >= whole),
                table.arg.eq(Mux(over | moved[SIGMOID.arg_bits :].any(), (1 << SIGMOID.arg_bits) - 1, moved)),
                negative.eq(Cat(self.x.sign, negative[:-1])),
                self.y.eq(Mux(negative[-1], (1 << EXP2_FRACTION) - table.y, table.y)),
            ]
        return m
