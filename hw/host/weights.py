"""Weight loader: packets of the weight stream to writes into the tiles and tables."""

from amaranth.hdl import Cat, Module, Mux, Shape, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.pe.contexts import CONTEXT
from hw.pe.paging import LOCATION
from sw_model.config import HardwareConfig
from sw_model.packets import HEADER, NARROW, Kind, capacities

__all__ = ["WeightLoader"]


class WeightLoader(wiring.Component):
    """A packet is a header beat (:data:`sw_model.packets.HEADER`), then as many data beats as it says.

    Kinds (:class:`sw_model.packets.Kind`): a macro word or a context a beat; entries of the other tables
    four a beat, one in each 32-bit lane, lowest first. Up to three entries may stand behind the end of such a
    table, to fill the beat; they are not written.

    A paged packet is part of the page of the expert that its header names. Its addresses, and those in its
    context, count from the slot that the expert was given; kind PAGE, a header alone, says that all of the
    page is there.

    Parameters
    ----------
    config : what there is room for

    Members
    -------
    i : stream of {data 128, last}
    tile, addr, word, lane : registered; ``word`` and ``lane`` are the data
    words_en, ... : an enable for each kind
    error : one cycle: a packet was refused, or its ``last`` came early or late
    page, locate : expert of a paged packet, and that its slot is looked for (one cycle); ``located``,
        ``location`` (:data:`~hw.pe.paging.LOCATION`): the answer
    page_words, page_scales : size of a slot
    page_done : all of the page of expert ``page`` is there (one cycle)

    A packet for a place that the design does not have, or for a page that was not asked for, is dropped
    whole. One whose ``last`` comes early stands as far as it came; what comes after its length is dropped. A
    page any of whose packets had an error is not taken for whole: the host sends it again.

    Throughput: a beat a cycle, or a lane a cycle, and three cycles for a header.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"data": 128, "last": 1}))),
                "tile": Out(16),
                "addr": Out(32),
                "word": Out(128),
                "lane": Out(32),
                **{f"{kind.name.lower()}_en": Out(1) for kind in capacities(config)},
                "error": Out(1),
                "page": Out(HEADER["expert"]),
                "locate": Out(1),
                "located": In(1),
                "location": In(LOCATION),
                "page_words": In(24),
                "page_scales": In(24),
                "page_done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beat, place = self.i.payload, self.location
        layout = data.StructLayout(HEADER)
        head = data.View(layout, beat.data[: layout.size])
        kind = Signal(Shape.cast(range(max(Kind) + 1)))
        entry = Signal(2)  # of the beat
        paged, alone = Signal(), Signal()
        narrow = Signal()
        m.d.comb += narrow.eq(Cat(kind == k for k in sorted(NARROW)).any())
        following, left = Signal(32), Signal(32)
        end = Signal(35)  # entry behind the packet's last
        room, write = Signal(32), Signal()
        limits = capacities(self._config)
        m.d.sync += [
            getattr(self, f"{k.name.lower()}_en").eq(write & (kind == k) & (room != 0)) for k in limits
        ]
        with m.If(write):
            m.d.sync += [
                self.addr.eq(following),
                following.eq(following + 1),
                room.eq(room - (room != 0)),
                self.word.eq(beat.data),
                self.lane.eq(beat.data.word_select(entry, 32)),
            ]
            with m.If(paged & (kind == Kind.CONTEXTS)):
                given, placed = data.View(CONTEXT, beat.data), data.View(CONTEXT, self.word)
                for part in ("gate_up", "down"):
                    m.d.sync += [
                        placed[part].word.eq(given[part].word + place.word),
                        placed[part].scale.eq(given[part].scale + place.scale),
                    ]

        spoiled = Signal()  # a packet of the page that is coming had an error
        with m.If(self.error):
            m.d.sync += spoiled.eq(1)
        limit, first, known, tiled = Signal(32), Signal(32), Signal(), Signal()
        with m.Switch(Cat(kind, paged)):
            for k, entries in limits.items():
                with m.Case(k):
                    m.d.comb += [limit.eq(entries), first.eq(following), known.eq(1)]
            paged_bit = 1 << len(kind)
            with m.Case(paged_bit | Kind.WORDS):
                m.d.comb += [limit.eq(self.page_words), first.eq(following + place.word), known.eq(1)]
            with m.Case(paged_bit | Kind.SCALES):
                m.d.comb += [limit.eq(self.page_scales), first.eq(following + place.scale), known.eq(1)]
            with m.Case(paged_bit | Kind.CONTEXTS):
                m.d.comb += [limit.eq(1), first.eq(self.page), known.eq(1)]
        m.d.comb += tiled.eq((kind == Kind.WORDS) | (kind == Kind.SCALES))

        with m.FSM():
            with m.State("HEADER"):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += entry.eq(0)
                with m.If(self.i.valid):
                    m.d.sync += [
                        self.tile.eq(head.tile),
                        kind.eq(head.kind),
                        paged.eq(head.paged),
                        self.page.eq(head.expert),
                        following.eq(head.start),
                        left.eq(head.beats),
                        alone.eq(beat.last),
                    ]
                    m.next = "SIZE"
            with m.State("SIZE"):
                m.d.sync += end.eq(following + Mux(narrow, left << 2, left))
                m.d.comb += self.locate.eq(paged)
                m.next = "JUDGE"
                with m.If(paged):
                    m.next = "LOCATE"
            with m.State("LOCATE"):
                with m.If(self.located):
                    m.next = "JUDGE"
            with m.State("JUDGE"):
                fits = (end <= limit + Mux(narrow, 3, 0)) & (~tiled | (self.tile < self._config.tiles))
                m.d.sync += [following.eq(first), room.eq(limit - following)]
                m.next = "DATA"
                with m.If(alone):
                    m.next = "HEADER"
                    with m.If(paged & (kind == Kind.PAGE) & place.wanted & ~spoiled):
                        m.d.comb += self.page_done.eq(1)
                    with m.Else():
                        m.d.comb += self.error.eq(1)
                    with m.If(kind == Kind.PAGE):
                        m.d.sync += spoiled.eq(0)
                with m.Elif(~(known & fits & (left != 0) & (~paged | place.wanted))):
                    m.d.comb += self.error.eq(1)
                    m.next = "DROP"
            with m.State("DATA"):
                m.d.comb += [write.eq(self.i.valid), self.i.ready.eq(~narrow | (entry == 3))]
                with m.If(self.i.valid):
                    m.d.sync += entry.eq(entry + 1)
                    with m.If(self.i.ready):
                        m.d.sync += left.eq(left - 1)
                        m.d.comb += self.error.eq(beat.last != (left == 1))
                        with m.If(beat.last):
                            m.next = "HEADER"
                        with m.Elif(left == 1):
                            m.next = "DROP"
            with m.State("DROP"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(self.i.valid & beat.last):
                    m.next = "HEADER"
        return m
