"""2**-d, the softmax's exponential in the log2 domain."""

from itertools import pairwise

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.numerics.fixed import FIXED_BITS
from hw.numerics.scaled import round_even, shift_right_sticky
from hw.numerics.table import Table
from sw_model.golden import LOGIT_FRACTION
from sw_model.tables import EXP2

__all__ = ["Exp2"]


class Exp2(wiring.Component):
    """y = 2**-d in Q1.24 for d >= 0 in Q16.16; 0 from d = 32 on.

    Members: ``d``; ``y``.
    Latency: ``LATENCY``. Throughput: one a cycle. Equals :func:`sw_model.golden.exp2_neg`.
    """

    LATENCY = Table.LATENCY + 1
    LIMIT = 32

    def __init__(self) -> None:
        super().__init__({"d": In(FIXED_BITS), "y": Out(EXP2.out_bits)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.table = table = Table(EXP2)
        whole = self.d[LOGIT_FRACTION:]
        m.d.comb += [table.move.eq(1), table.arg.eq(self.d[:LOGIT_FRACTION])]
        shift = [Signal(range(self.LIMIT + 1), name=f"shift{i}") for i in range(Table.LATENCY)]
        value = round_even(shift_right_sticky(table.y, shift[-1], self.LIMIT), 2)
        m.d.sync += [
            shift[0].eq(Mux(whole > self.LIMIT - 1, self.LIMIT, whole)),
            *[b.eq(a) for a, b in pairwise(shift)],
            self.y.eq(Mux(shift[-1] == self.LIMIT, 0, value)),
        ]
        return m
