"""Serialiser: beats of several items to one item a cycle."""

from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Serialiser", "beat_layout"]


def beat_layout(item: Any, lanes: int, user: int = 1) -> data.StructLayout:
    """The first ``count`` (1 .. lanes) of ``items``; ``last`` of a packet; ``user`` bits for all of them."""
    return data.StructLayout(
        {"items": data.ArrayLayout(item, lanes), "count": range(lanes + 1), "last": 1, "user": user}
    )


class Serialiser(wiring.Component):
    """Items of a beat one after the other, ``last`` with the last one of the packet.

    Parameters
    ----------
    item : shape of an item
    lanes : items of a beat; 1: beats pass as they are
    user : bits that accompany a beat, and each of its items

    Members
    -------
    i : stream of :func:`beat_layout`
    o : stream of {item, last, user}

    Latency: 1 (none for one lane). Throughput: one item a cycle.
    """

    def __init__(self, item: Any, lanes: int, user: int = 1) -> None:
        if lanes < 1:
            raise ValueError(f"lanes must be positive, not {lanes}")
        self._lanes = lanes
        self._beat = beat_layout(item, lanes, user)
        one = data.StructLayout({"item": item, "last": 1, "user": user})
        super().__init__({"i": In(stream.Signature(self._beat)), "o": Out(stream.Signature(one))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beat, left = self.i.payload, Signal(range(self._lanes + 1))  # items of the beat that are left
        if self._lanes == 1:
            m.d.comb += [left.eq(1), self.o.valid.eq(self.i.valid), self.i.ready.eq(self.o.ready)]
        else:
            beat = Signal(self._beat)
            m.d.comb += [
                self.o.valid.eq(left != 0),
                self.i.ready.eq((left == 0) | ((left == 1) & self.o.ready)),
            ]
            with m.If(self.o.valid & self.o.ready):
                m.d.sync += left.eq(left - 1)
                for j in range(self._lanes - 1):
                    m.d.sync += beat["items"][j].eq(beat["items"][j + 1])
            with m.If(self.i.valid & self.i.ready):
                m.d.sync += [beat.eq(self.i.payload), left.eq(self.i.payload.count)]
        m.d.comb += [
            self.o.payload.item.eq(beat["items"][0]),
            self.o.payload.last.eq(beat.last & (left == 1)),
            self.o.payload.user.eq(beat.user),
        ]
        return m
