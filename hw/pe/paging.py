"""Paging: which experts are on chip, which leave for those that are missing, and requests for these."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from hw.router.admission import candidates_layout
from sw_model.config import HardwareConfig

__all__ = ["LOCATION", "REQUEST", "Paging"]

ADDRESS_BITS = 24  # of macro words and scale entries

#: Where a page goes: first macro word and scale entry of its slot; ``wanted``: asked for, not there yet.
LOCATION = data.StructLayout({"wanted": 1, "word": ADDRESS_BITS, "scale": ADDRESS_BITS})

#: A page that is asked for, and the slot that it will fill.
REQUEST = data.StructLayout({"expert": 16, "slot": 16})


class Paging(wiring.Component):
    """Least recently used replacement over equal page slots.

    A token's experts that have a slot are used first, best first; then each of the others, best first, takes
    the slot of the least recently used expert that the token does not need, and is asked for at once. If a
    token before still needs that one, it waits, so that what is replaced does not depend on time. Equals
    :class:`sw_model.pages.PageTable`.

    The table is a row of entries, the most recently used in front: to use one moves it there.

    Parameters
    ----------
    config : ``config.page_slots`` entries

    Members
    -------
    slots : page slots in use; 0: no paging, the route passes unchanged in the same cycle
    slot_words, slot_scales, base_words, base_scales : size of a slot, and where slot 0 begins
    flush : forget all pages (one cycle; no token is in the core)
    i, i_done, ack : chosen experts of a token, that they stand, that they are done with
    o, o_done : the same, those on chip first; ``here``: of each of them, whether it may be computed
    release : the last routed expert of a token has been computed (one cycle, once a token)
    request : stream of :data:`REQUEST`
    page, locate : an expert whose page comes, one cycle before; ``located``, ``location``: the answer
    page_done : the page of ``page`` is whole (one cycle)
    hit, miss : an expert was found, was asked for (one cycle each)

    Latency: 2 cycles for every expert and 2 more for a missing one. At most two tokens hold pages.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        self._depth = depth = config.page_slots
        self._layout = candidates_layout(config)
        expert = self._layout["expert"].shape.elem_shape
        self._entry = data.StructLayout(
            {"valid": 1, "loaded": 1, "expert": expert, "slot": range(max(2, depth)), "held": 2}
        )
        super().__init__(
            {
                "slots": In(range(depth + 1)),
                "slot_words": In(ADDRESS_BITS),
                "slot_scales": In(ADDRESS_BITS),
                "base_words": In(ADDRESS_BITS),
                "base_scales": In(ADDRESS_BITS),
                "flush": In(1),
                "i": In(self._layout),
                "i_done": In(1),
                "ack": In(1),
                "o": Out(self._layout),
                "o_done": Out(1),
                "here": Out(config.max_top_k),
                "release": In(1),
                "request": Out(stream.Signature(REQUEST)),
                "page": In(expert),
                "locate": In(1),
                "located": Out(1),
                "location": Out(LOCATION),
                "page_done": In(1),
                "hit": Out(1),
                "miss": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        k = self._config.max_top_k
        table = [Signal(self._entry, name=f"entry{i}", init={"slot": i}) for i in range(self._depth)]
        owner, oldest = Signal(), Signal()  # of the token that comes next, that is released next
        holding = Signal(2)

        # What the table is in this cycle: with what loads and releases change.
        now = [Signal(self._entry, name=f"now{i}") for i in range(self._depth)]
        for entry, seen in zip(table, now, strict=True):
            m.d.comb += [
                seen.eq(entry),
                seen.loaded.eq(entry.loaded | (self.page_done & (entry.expert == self.page))),
                seen.held.eq(entry.held & ~(self.release << oldest)),
            ]

        rank = Signal(range(k + 1))
        expert, weight = Signal.like(self.i.expert[0]), Signal.like(self.i.weight[0])
        missing = Signal(k)
        found, victim = Signal(self._depth), Signal(self._depth)
        m.d.comb += [
            found.eq(Cat(e.valid & (e.expert == expert) for e in table)),
            victim.eq(
                self._last(Cat((i < self.slots) & ~e.held.bit_select(owner, 1) for i, e in enumerate(table)))
            ),
        ]
        chosen, moving = Signal(self._depth), Signal()
        front, taken = Signal(self._entry), Signal(self._entry)
        m.d.comb += [
            taken.eq(Array(now)[self._number(chosen)]),
            front.eq(taken),
            front.held.eq(taken.held | 1 << owner),
        ]
        for i, entry in enumerate(table):
            source = now[i - 1] if i else front
            m.d.sync += entry.eq(Mux(moving & chosen[i:].any(), source, now[i]))

        m.submodules.requests = requests = SyncFIFO(width=REQUEST.size, depth=k)
        asked = data.View(REQUEST, requests.w_data)
        m.d.comb += [
            asked.expert.eq(expert),
            asked.slot.eq(taken.slot),
            self.request.payload.eq(requests.r_data),
            self.request.valid.eq(requests.r_rdy),
            requests.r_en.eq(self.request.ready),
        ]

        # The list that goes on: filled from the front, first with those that were found.
        chosen_experts = Signal(self._layout)
        here, done = Signal(k), Signal()
        off = self.slots == 0
        m.d.comb += [
            self.o.eq(Mux(off, self.i, chosen_experts)),
            self.o_done.eq(Mux(off, self.i_done, done)),
            self.here.eq(Mux(off, ~0, here)),
        ]
        for j in range(k):
            with m.If(self.page_done & (chosen_experts.expert[j] == self.page)):
                m.d.sync += here[j].eq(1)

        def append(loaded: Value | int) -> None:
            m.d.comb += moving.eq(1)
            m.d.sync += chosen_experts.count.eq(chosen_experts.count + 1)
            for j in range(k):
                with m.If(chosen_experts.count == j):
                    m.d.sync += [
                        chosen_experts.expert[j].eq(expert),
                        chosen_experts.weight[j].eq(weight),
                        here[j].eq(loaded),
                    ]

        last = rank == self.i.count
        m.d.sync += [
            expert.eq(Array(self.i.expert[j] for j in range(k))[rank]),
            weight.eq(Array(self.i.weight[j] for j in range(k))[rank]),
        ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [rank.eq(0), chosen_experts.count.eq(0), missing.eq(0)]
                with m.If(self.i_done & ~off & ~holding.bit_select(owner, 1)):
                    m.d.sync += holding.bit_select(owner, 1).eq(1)
                    m.next = "NEXT"
            with m.State("NEXT"):
                m.next = "FIND"
                with m.If(last):
                    m.d.sync += rank.eq(0)
                    m.next = "NEXT_MISSING"
            with m.State("FIND"):
                m.d.comb += chosen.eq(found)
                m.d.sync += rank.eq(rank + 1)
                with m.If(found.any()):
                    m.d.comb += self.hit.eq(1)
                    append(taken.loaded)
                with m.Else():
                    m.d.sync += missing.bit_select(rank, 1).eq(1)
                m.next = "NEXT"
            with m.State("NEXT_MISSING"):
                m.next = "REPLACE"
                with m.If(last):
                    m.d.sync += [done.eq(1), owner.eq(~owner)]
                    m.next = "DONE"
                with m.Elif(~missing.bit_select(rank, 1)):
                    m.d.sync += rank.eq(rank + 1)
                    m.next = "NEXT_MISSING"
            with m.State("REPLACE"):
                m.d.comb += chosen.eq(victim)
                with m.If(victim.any() & (taken.held == 0) & requests.w_rdy):
                    m.d.comb += [
                        self.miss.eq(1),
                        requests.w_en.eq(1),
                        front.valid.eq(1),
                        front.loaded.eq(0),
                        front.expert.eq(expert),
                    ]
                    append(0)
                    m.d.sync += rank.eq(rank + 1)
                    m.next = "NEXT_MISSING"
            with m.State("DONE"):
                with m.If(self.ack):
                    m.d.sync += done.eq(0)
                    m.next = "IDLE"

        with m.If(self.release & ~off):
            m.d.sync += [holding.bit_select(oldest, 1).eq(0), oldest.eq(~oldest)]
        with m.If(self.flush):
            m.d.sync += [holding.eq(0), oldest.eq(owner)]
            for i, entry in enumerate(table):
                m.d.sync += [entry.eq(0), entry.slot.eq(i)]

        self._locate(m, now)
        return m

    @staticmethod
    def _last(bits: Value) -> Value:
        """The highest bit that is set, alone."""
        return Cat(bits[i] & ~bits[i + 1 :].any() for i in range(len(bits)))

    @staticmethod
    def _number(one_hot: Value) -> Value:
        """Index of the one bit that is set; 0 without one."""
        bits = (len(one_hot) - 1).bit_length()
        return Cat(
            Cat(one_hot[i] for i in range(len(one_hot)) if i >> b & 1).any() for b in range(max(1, bits))
        )

    def _locate(self, m: Module, table: list[Signal]) -> None:
        """Slot of ``page``, and base + slot * size: a bit of the slot each cycle."""
        of_page = Signal(self._depth)
        m.d.comb += of_page.eq(Cat(e.valid & (e.expert == self.page) for e in table))
        mine = Array(table)[self._number(of_page)]
        slot, count = Signal.like(mine.slot), Signal(range(len(mine.slot) + 2))
        words, scales = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS)
        with m.If(self.locate):
            m.d.sync += [
                self.location.wanted.eq(of_page.any() & ~mine.loaded),
                self.location.word.eq(self.base_words),
                self.location.scale.eq(self.base_scales),
                slot.eq(mine.slot),
                words.eq(self.slot_words),
                scales.eq(self.slot_scales),
                count.eq(len(slot) + 1),
            ]
        with m.Elif(count != 0):
            m.d.sync += [count.eq(count - 1), slot.eq(slot >> 1)]
            m.d.sync += [words.eq(words << 1), scales.eq(scales << 1)]
            with m.If(slot[0]):
                m.d.sync += [
                    self.location.word.eq(self.location.word + words),
                    self.location.scale.eq(self.location.scale + scales),
                ]
        m.d.comb += self.located.eq(count == 1)
