"""Piecewise linear function table, contents from :mod:`sw_model.tables`."""

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
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

    LATENCY = 4

    def __init__(self, table: LinearTable) -> None:
        self._table = table
        super().__init__({"move": In(1), "arg": In(table.arg_bits), "y": Out(table.out_bits)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        t = self._table
        slope_bits = max(abs(s) for s in t.slope).bit_length() + 1
        entry = data.StructLayout({"base": t.out_bits, "slope": signed(slope_bits)})
        segments = [{"base": b, "slope": s} for b, s in zip(t.base, t.slope, strict=True)]
        m.submodules.rom = rom = Memory(shape=entry, depth=len(segments), init=segments)
        segment = rom.read_port()
        half = 1 << (t.frac_bits - 1)
        # Memory, its output register, product, sum: a stage each.
        fraction = [Signal(t.frac_bits, name=f"fraction{i}", reset_less=True) for i in range(2)]
        held = Signal(entry, reset_less=True)
        base = Signal(t.out_bits, reset_less=True)
        product = Signal(signed(slope_bits + t.frac_bits + 1), reset_less=True)
        m.d.comb += [segment.addr.eq(self.arg[t.frac_bits :]), segment.en.eq(self.move)]
        with m.If(self.move):
            m.d.sync += [
                fraction[0].eq(self.arg[: t.frac_bits]),
                fraction[1].eq(fraction[0]),
                held.eq(segment.data),
                base.eq(held.base),
                product.eq(held.slope * fraction[1]),
                self.y.eq(base + ((product + half) >> t.frac_bits)),
            ]
        return m
