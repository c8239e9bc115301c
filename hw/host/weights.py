"""Weight loader: packets of the weight stream to writes into the tiles."""

from amaranth.hdl import Cat, Module, Shape, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from sw_model.compiler import NARROW, Kind

__all__ = ["WeightLoader"]


class WeightLoader(wiring.Component):
    """A packet is a header beat (tile [15:0], kind [18:16], start address [63:32]), then data up to ``last``.

    Kinds (:class:`sw_model.compiler.Kind`): a macro word or a context a beat; entries of the other tables
    four a beat, one in each 32-bit lane, lowest first.

    Members: ``i`` stream of {data 128, last}; registered: ``tile``, ``addr``, ``word`` and ``lane`` (the
    data), and an enable for each kind, ``words_en`` and so on.
    Throughput: a beat a cycle, or a lane a cycle.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"data": 128, "last": 1}))),
                "tile": Out(16),
                "addr": Out(32),
                "word": Out(128),
                "lane": Out(32),
                **{f"{kind.name.lower()}_en": Out(1) for kind in Kind},
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beat = self.i.payload
        kind, lane = Signal(Shape.cast(range(max(Kind) + 1))), Signal(2)
        narrow = Signal()
        m.d.comb += narrow.eq(Cat(kind == k for k in sorted(NARROW)).any())
        following = Signal(32)
        write = Signal()
        m.d.sync += [getattr(self, f"{k.name.lower()}_en").eq(write & (kind == k)) for k in Kind]
        with m.If(write):
            m.d.sync += [
                self.addr.eq(following),
                following.eq(following + 1),
                self.word.eq(beat.data),
                self.lane.eq(beat.data.word_select(lane, 32)),
            ]
        with m.FSM():
            with m.State("HEADER"):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += lane.eq(0)
                with m.If(self.i.valid):
                    m.d.sync += [
                        self.tile.eq(beat.data[:16]),
                        kind.eq(beat.data[16:19]),
                        following.eq(beat.data[32:64]),
                    ]
                    with m.If(~beat.last):
                        m.next = "DATA"
            with m.State("DATA"):
                m.d.comb += [write.eq(self.i.valid), self.i.ready.eq(~narrow | (lane == 3))]
                with m.If(self.i.valid):
                    m.d.sync += lane.eq(lane + 1)
                    with m.If(self.i.ready & beat.last):
                        m.next = "HEADER"
        return m
