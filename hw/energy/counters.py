"""Event counters: every event counted exactly, all of them kept in one small memory."""

from collections.abc import Mapping

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

__all__ = ["COUNTER_BITS", "Counters"]

COUNTER_BITS = 48


class Counters(wiring.Component):
    """counter[i] = sum of events[i] over the cycles since ``clear``, modulo 2**``COUNTER_BITS``.

    A round takes a cycle a counter. Over a round each event is added up in a few bits of its own; at its end
    all of these sums are put by at once, and during the next round added, one a cycle, to the counters, which
    lie in a memory. What the host reads is a second memory: a copy that the same round makes, so its counters
    are all of one cycle. ``hold`` keeps it as it is, after one more round.

    Parameters
    ----------
    most : counter -> most that its event counts in a cycle; at least three counters

    Members
    -------
    events : what happens in this cycle, by name
    clear : all counters to 0, this cycle's events included (one cycle)
    hold : keep the copy. ``held``: it is kept, with every event before ``hold``
    addr, en : the counter to read, by its place in ``most``; ``value`` : of the copy, a cycle after ``en``,
        as long as there is no other

    Latency: without ``hold`` the copy is at most 2 rounds and 3 cycles old; ``held`` comes within that time.
    """

    def __init__(self, most: Mapping[str, int]) -> None:
        if len(most) < 3:
            raise ValueError(f"at least three counters are needed, not {len(most)}")
        self._most = dict(most)
        super().__init__(
            {
                "events": In(data.StructLayout({name: range(n + 1) for name, n in most.items()})),
                "clear": In(1),
                "hold": In(1),
                "held": Out(1),
                "addr": In(range(len(most))),
                "en": In(1),
                "value": Out(COUNTER_BITS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        n = len(self._most)
        at, end = Signal(range(n)), Signal()
        m.d.comb += end.eq(at == n - 1)
        m.d.sync += at.eq(Mux(end, 0, at + 1))

        rounds = []  # what happened in the round before
        for name, most in self._most.items():
            now = Signal(range(n * most + 1), name=f"{name.lower()}_now")
            before = Signal.like(now, name=f"{name.lower()}_before")
            m.d.sync += now.eq(Mux(end, 0, now) + self.events[name])
            with m.If(end):
                m.d.sync += before.eq(now)
            with m.If(self.clear):
                m.d.sync += [now.eq(0), before.eq(0)]
            rounds.append(before)

        m.submodules.live = live = Memory(shape=COUNTER_BITS, depth=n, init=[], attrs={"no_rw_check": 1})
        m.submodules.copy = copy = Memory(shape=COUNTER_BITS, depth=n, init=[], attrs={"no_rw_check": 1})
        read, write, kept, seen = live.read_port(), live.write_port(), copy.write_port(), copy.read_port()

        # A stage each: read and choose; add; write. In the first round of all, counters begin at 0.
        fresh, copying = Signal(init=1), Signal(init=1)
        begin, copies, places = Signal(init=1), Signal(2), [Signal.like(at, name=f"at{i}") for i in range(2)]
        part, total = Signal(max(len(b) for b in rounds)), Signal(COUNTER_BITS)
        m.d.comb += [
            read.addr.eq(at),
            read.en.eq(1),
            write.addr.eq(places[1]),
            write.data.eq(total),
            write.en.eq(1),
            kept.addr.eq(places[1]),
            kept.data.eq(total),
            kept.en.eq(copies[1]),
            seen.addr.eq(self.addr),
            seen.en.eq(self.en),
            self.value.eq(seen.data),
        ]
        m.d.sync += [
            part.eq(Array(rounds)[at]),
            begin.eq(fresh),
            total.eq(Mux(begin, 0, read.data) + part),
            copies.eq(Cat(copying, copies[0])),
            places[0].eq(at),
            places[1].eq(places[0]),
        ]
        last_copy = Signal()  # the round began after ``hold``
        with m.If(end):
            m.d.sync += [fresh.eq(0), copying.eq(~self.hold | ~last_copy), last_copy.eq(1)]
        with m.If(~self.hold):
            m.d.sync += last_copy.eq(0)
        with m.If(self.clear):
            m.d.sync += [at.eq(0), fresh.eq(1), begin.eq(1), part.eq(0)]
        m.d.comb += self.held.eq(self.hold & last_copy & ~copying & ~copies.any())
        return m
