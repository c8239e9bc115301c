"""log2 of a positive integer."""

from itertools import pairwise

from amaranth.hdl import C, Cat, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.numerics.scaled import left_normalise
from hw.numerics.table import Table
from sw_model.gate import FRACTION
from sw_model.tables import LOG2

__all__ = ["Log2"]


class Log2(wiring.Component):
    """y = log2(x / 2**fraction) in Q7.8, for x > 0: leading one, then a table of the mantissa.

    Parameters
    ----------
    width : bits of x
    fraction : of them behind the point

    Members: ``x``; ``y``.
    Latency: ``LATENCY``. Throughput: one a cycle. Equals :func:`sw_model.gate.log2_fixed`.
    """

    LATENCY = 1 + Table.LATENCY

    def __init__(self, width: int, fraction: int) -> None:
        self._width = width
        self._fraction = fraction
        super().__init__({"x": In(width), "y": Out(signed(16))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.table = table = Table(LOG2)
        work = max(self._width, LOG2.arg_bits + 1)
        steps = tuple(1 << i for i in reversed(range((work - 1).bit_length())))
        value = Signal(work)
        m.d.comb += value.eq(self.x)
        shifted, zeros = left_normalise(value, C(0, len(steps)), steps)
        whole = [Signal(signed(8), name=f"whole{i}") for i in range(self.LATENCY)]
        m.d.comb += table.move.eq(1)
        m.d.sync += [
            table.arg.eq(shifted[work - 1 - LOG2.arg_bits : work - 1]),
            whole[0].eq(work - 1 - self._fraction - zeros),
            *[b.eq(a) for a, b in pairwise(whole)],
        ]
        m.d.comb += self.y.eq(Cat(C(0, FRACTION), whole[-1]).as_signed() + table.y)
        return m
