"""Weight loader: packets of the weight stream to writes into the tiles."""

from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from sw_model.compiler import KIND_SCALES
from sw_model.formats import SCALE_BITS

__all__ = ["WeightLoader"]


class WeightLoader(wiring.Component):
    """A packet is a header beat (tile [15:0], kind [16], start address [63:32]), then data up to ``last``.

    Kind 0: a macro word a beat. Kind 1: four scale entries a beat, one in the low bits of each 32-bit lane.

    Members: ``i`` stream of {data 128, last}; to the array, registered: ``tile``, ``addr``,
    ``word``/``word_en``, ``scale``/``scale_en``.
    Throughput: a word a cycle, or a scale entry a cycle.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"data": 128, "last": 1}))),
                "tile": Out(16),
                "addr": Out(32),
                "word": Out(128),
                "word_en": Out(1),
                "scale": Out(SCALE_BITS),
                "scale_en": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beat = self.i.payload
        scales, lane = Signal(), Signal(2)
        following = Signal(32)
        write = Signal()
        m.d.sync += [self.word_en.eq(write & ~scales), self.scale_en.eq(write & scales)]
        with m.If(write):
            m.d.sync += [
                self.addr.eq(following),
                following.eq(following + 1),
                self.word.eq(beat.data),
                self.scale.eq(beat.data.word_select(lane, 32)),
            ]
        with m.FSM():
            with m.State("HEADER"):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += lane.eq(0)
                with m.If(self.i.valid):
                    m.d.sync += [
                        self.tile.eq(beat.data[:16]),
                        scales.eq(beat.data[16] == KIND_SCALES),
                        following.eq(beat.data[32:64]),
                    ]
                    with m.If(~beat.last):
                        m.next = "DATA"
            with m.State("DATA"):
                m.d.comb += [write.eq(self.i.valid), self.i.ready.eq(~scales | (lane == 3))]
                with m.If(self.i.valid):
                    m.d.sync += lane.eq(lane + 1)
                    with m.If(self.i.ready & beat.last):
                        m.next = "HEADER"
        return m
