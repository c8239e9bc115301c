"""Skid buffer: cuts a chain of ready signals."""

from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Skid"]


class Skid(wiring.Component):
    """Room for two items between two streams, so that ``i.ready`` is a register.

    Parameters
    ----------
    shape : of the payload

    Members: ``i``, ``o`` streams. Latency: 1. Throughput: one item a cycle.
    """

    def __init__(self, shape: Any) -> None:
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        waits, behind = Signal(), Signal.like(self.i.payload, reset_less=True)
        m.d.comb += self.i.ready.eq(~waits)
        with m.If(~self.o.valid | self.o.ready):
            m.d.sync += [self.o.valid.eq(self.i.valid | waits), waits.eq(0)]
            with m.If(waits):
                m.d.sync += self.o.payload.eq(behind)
            with m.Else():
                m.d.sync += self.o.payload.eq(self.i.payload)
        with m.Elif(self.i.valid & ~waits):
            m.d.sync += [behind.eq(self.i.payload), waits.eq(1)]
        return m
