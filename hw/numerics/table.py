"""Piecewise linear function table, contents from :mod:`sw_model.tables`."""

from amaranth.hdl import Array, C, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sw_model.tables import LinearTable

__all__ = ["Table"]


class Table(wiring.Component):
    """y = base[arg >> frac_bits] + ((slope[..] * fraction + half) >> frac_bits).

    Parameters
    ----------
    table : the contents and the split of the argument

    Members
    -------
    move : the pipeline advances
    arg : unsigned argument, ``table.arg_bits``
    y : result, ``table.out_bits``

    Latency: ``LATENCY`` moves. Throughput: one a move. Equals calling ``table``.
    """

    LATENCY = 2

    def __init__(self, table: LinearTable) -> None:
        self._table = table
        super().__init__({"move": In(1), "arg": In(table.arg_bits), "y": Out(table.out_bits)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        t = self._table
        slope_bits = max(abs(s) for s in t.slope).bit_length() + 1
        bases = Array(C(b, t.out_bits) for b in t.base)
        slopes = Array(C(s, signed(slope_bits)) for s in t.slope)

        index = self.arg[t.frac_bits :]
        base = Signal(t.out_bits, reset_less=True)
        slope = Signal(signed(slope_bits), reset_less=True)
        fraction = Signal(t.frac_bits, reset_less=True)
        with m.If(self.move):
            m.d.sync += [
                base.eq(bases[index]),
                slope.eq(slopes[index]),
                fraction.eq(self.arg[: t.frac_bits]),
                self.y.eq(base + ((slope * fraction + (1 << (t.frac_bits - 1))) >> t.frac_bits)),
            ]
        return m
