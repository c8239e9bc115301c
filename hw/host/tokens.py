"""Token input: AXI4-Stream beats to tokens of exactly HIDDEN elements; all others are dropped whole."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.layer import TOKEN

__all__ = ["TokenInput"]


class TokenInput(wiring.Component):
    """Passes tokens on, and takes back those whose ``last`` is not at element ``hidden - 1``.

    ``discard`` comes with the element at which a token turns out to be too short (its last one) or too long
    (element ``hidden - 1``): whoever collects the token forgets it. The rest of a long one goes nowhere.
    ``length_error`` says the same once, in the cycle in which that element is taken.

    Members: ``i``, ``o`` streams of elements; ``discard``; ``hidden``; ``length_error``.
    Latency: none. Throughput: one element a cycle.
    """

    def __init__(self) -> None:
        super().__init__(
            {"i": In(TOKEN), "o": Out(TOKEN), "discard": Out(1), "hidden": In(16), "length_error": Out(1)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        count = Signal(16)
        full = count == self.hidden - 1
        m.d.comb += self.o.payload.eq(self.i.payload)
        with m.FSM():
            with m.State("PASS"):
                m.d.comb += [
                    self.o.valid.eq(self.i.valid),
                    self.i.ready.eq(self.o.ready),
                    self.discard.eq(self.i.payload.last != full),
                ]
                with m.If(self.i.valid & self.o.ready):
                    m.d.sync += count.eq(count + 1)
                    m.d.comb += self.length_error.eq(self.discard)
                    with m.If(self.i.payload.last | full):
                        m.d.sync += count.eq(0)
                    with m.If(full & ~self.i.payload.last):
                        m.next = "DROP"
            with m.State("DROP"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(self.i.valid & self.i.payload.last):
                    m.next = "PASS"
        return m
