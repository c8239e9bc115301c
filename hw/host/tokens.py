"""Token input: AXI4-Stream beats to tokens of exactly HIDDEN elements."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.layer import TOKEN

__all__ = ["TokenInput"]


class TokenInput(wiring.Component):
    """Passes a token on with ``last`` at element ``hidden - 1``, whatever its own ``last`` says.

    A token that ends early is filled up with zeros; the rest of one that ends late is dropped. Either raises
    ``length_error`` for one cycle, and the core goes on with the next token.

    Members: ``i``, ``o`` streams of elements; ``hidden``; ``length_error``.
    Latency: none. Throughput: one element a cycle.
    """

    def __init__(self) -> None:
        super().__init__({"i": In(TOKEN), "o": Out(TOKEN), "hidden": In(16), "length_error": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        count = Signal(16)
        last = count == self.hidden - 1
        m.d.comb += self.o.payload.last.eq(last)
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += count.eq(count + 1)
            with m.If(last):
                m.d.sync += count.eq(0)
        with m.FSM():
            with m.State("PASS"):
                m.d.comb += [
                    self.o.payload.bits.eq(self.i.payload.bits),
                    self.o.valid.eq(self.i.valid),
                    self.i.ready.eq(self.o.ready),
                ]
                with m.If(self.i.valid & self.o.ready & (self.i.payload.last != last)):
                    m.d.comb += self.length_error.eq(1)
                    m.next = "FILL"
                    with m.If(last):
                        m.next = "DROP"
            with m.State("FILL"):
                m.d.comb += self.o.valid.eq(1)
                with m.If(self.o.ready & last):
                    m.next = "PASS"
            with m.State("DROP"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(self.i.valid & self.i.payload.last):
                    m.next = "PASS"
        return m
