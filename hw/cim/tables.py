"""Activation tables: every signed sum of four activations, written once a block for all tiles."""

from itertools import pairwise

from amaranth.hdl import Array as Choice
from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from sw_model.formats import BLOCK

__all__ = ["GROUP", "GROUPS", "PARITY", "TABLE_WRITE", "BlockSums", "TableGenerator", "add_carry"]

GROUP = 4
GROUPS = BLOCK // GROUP
ENTRY_BITS = 8
#: Of the largest sum of the groups' halved sums, with its sign.
OFFSET_BITS = 13

#: One entry of every group's table: bits 8 .. 1 of u, in a bank.
TABLE_WRITE = data.StructLayout(
    {"en": 1, "entry": GROUP - 1, "bank": 1, "u": data.ArrayLayout(ENTRY_BITS, GROUPS)}
)

#: What a group's bits 0 follow from: those of x0 .. x2 and of u[0], and whether its sums are even.
PARITY = data.ArrayLayout(data.StructLayout({"x": GROUP - 1, "u": 1, "even": 1}), GROUPS)


#: What follows from a block as a whole: each group's sum; minus the sum of all groups' halves, rounded up.
SUMS = data.StructLayout({"groups": data.ArrayLayout(signed(10), GROUPS), "offset": signed(OFFSET_BITS)})


def add_carry(a: Value, b: Value, carry: Value) -> Value:
    """a + b + carry, signed, as one adder with a carry in."""
    return (Cat(1, a).as_signed() + Cat(carry, b).as_signed())[1:].as_signed()


class BlockSums(wiring.Component):
    """Sums of the eight groups of four activations x0 .. x3 in a block, for the tables of all columns.

        groups[g] = x0 + x1 + x2 + x3        offset = - sum over g of ceil(groups[g] / 2)

    Members
    -------
    act : 32 signed bytes at cycle t
    o : ``groups`` at t + ``LATENCY``, ``offset`` at t + ``OFFSET_LATENCY`` (:data:`SUMS`)

    Throughput: a block a cycle. Exact.
    """

    LATENCY = 2
    OFFSET_LATENCY = LATENCY + GROUPS.bit_length()

    def __init__(self) -> None:
        super().__init__({"act": In(8 * BLOCK), "o": Out(SUMS)})

    def elaborate(self, platform: object) -> Module:
        m = Module()

        def register(value: Value, name: str) -> Signal:
            q = Signal(value.shape(), name=name, reset_less=True)
            m.d.sync += q.eq(value)
            return q

        leaves = []
        for g in range(GROUPS):
            x = [self.act[8 * (GROUP * g + i) :][:8].as_signed() for i in range(GROUP)]
            pair = [register(a + b, f"pair{g}_{n}") for n, (a, b) in enumerate((x[:2], x[2:]))]
            total = register(pair[0] + pair[1], f"total{g}")
            m.d.comb += self.o.groups[g].eq(total)
            leaves.append((total >> 1, total[0]))
        # A half is rounded up by a carry: of a pair's first in its adder, of its second in one further down.
        while len(leaves) > 1:
            leaves = [
                (register(add_carry(a, b, odd_a), "half"), register(odd_b, "odd"))
                for (a, odd_a), (b, odd_b) in zip(leaves[::2], leaves[1::2], strict=True)
            ]
        half, odd = leaves[0]
        m.d.comb += self.o.offset.eq(register(add_carry(~half, C(0, 1), ~odd), "offset"))
        return m


class TableGenerator(wiring.Component):
    """Tables of the eight groups of four activations x0 .. x3 in a block.

        u[r] = floor((x3 +- x0 +- x1 +- x2) / 2)     r = 0 .. 7, bit i of r set: x_i is subtracted

    All sums of a group are even or all are odd, so u and that parity say everything. Entries come in Gray
    code order, one addition each.

    Members
    -------
    act : 32 signed bytes
    sums : of :class:`BlockSums` for these; they are steady from two cycles before ``load`` until then
    load : start on ``act``; ``bank``: into this bank; at least 8 cycles apart
    write : entries for the tiles' tables (:data:`TABLE_WRITE`), 2 .. 9 cycles after ``load``
    parity : of the block (:data:`PARITY`), from the cycle after ``load`` until the next one's
    offset : that of ``sums``, from ``OFFSET_AT`` cycles after ``load`` until as many after the next one's

    Throughput: a block in 8 cycles. Exact.
    """

    OFFSET_AT = BlockSums.OFFSET_LATENCY - BlockSums.LATENCY + 1
    WRITES = 1 << (GROUP - 1)

    def __init__(self) -> None:
        super().__init__(
            {
                "act": In(8 * BLOCK),
                "sums": In(SUMS),
                "load": In(1),
                "bank": In(1),
                "write": Out(TABLE_WRITE),
                "parity": Out(PARITY),
                "offset": Out(signed(OFFSET_BITS)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        gray = [n ^ n >> 1 for n in range(self.WRITES)]
        turned = [(a ^ b).bit_length() - 1 for a, b in pairwise(gray)] + [0]

        # Which entry is in u now, and which x is added or subtracted for the next one.
        count, running = Signal(range(self.WRITES)), Signal()
        bank = Signal(reset_less=True)
        # What is only looked at when it is valid needs no reset.
        write = Signal(TABLE_WRITE, name="entry_out", reset_less=True)
        parity = Signal(PARITY, name="parity_out", reset_less=True)
        offset = Signal(signed(OFFSET_BITS), name="offset_out", reset_less=True)
        enabled = Signal()
        m.d.comb += [
            self.write.eq(write),
            self.write.en.eq(enabled),
            self.parity.eq(parity),
            self.offset.eq(offset),
        ]
        entry = Signal(GROUP - 1)
        turn = Signal(range(GROUP - 1))
        following = Signal.like(count)
        m.d.comb += [
            following.eq(Mux(self.load, 0, count + 1)),
            entry.eq(count ^ count >> 1),
        ]
        m.d.sync += [
            count.eq(following),
            turn.eq(Choice(turned)[following]),
            running.eq(self.load | (running & (count != self.WRITES - 1))),
            enabled.eq(running),
            write.entry.eq(entry),
            write.bank.eq(bank),
        ]
        with m.If(self.load):
            m.d.sync += bank.eq(self.bank)
        down = Signal()  # the bit of the entry that turns is 0 now, so its x is subtracted
        m.d.comb += down.eq(~entry.bit_select(turn, 1))

        for g in range(GROUPS):
            x = [self.act[8 * (GROUP * g + i) :][:8].as_signed() for i in range(GROUP - 1)]
            total = self.sums.groups[g]
            kept = [Signal(signed(8), name=f"x{g}_{i}", reset_less=True) for i in range(GROUP - 1)]
            u = Signal(signed(9), name=f"u{g}", reset_less=True)
            moved = Signal(signed(9), name=f"moved{g}")
            flip = Signal(9, name=f"flip{g}")
            m.d.comb += [
                flip.eq(Choice(kept)[turn] ^ down.replicate(9)),
                moved.eq((Cat(1, u) + Cat(down, flip))[1:].as_signed()),
            ]
            m.d.sync += [write.u[g].eq(u[1:]), u.eq(moved)]
            with m.If(self.load):
                m.d.sync += [
                    *[to.eq(of) for to, of in zip(kept, x, strict=True)],
                    u.eq(total >> 1),
                    parity[g].x.eq(Cat(of[0] for of in x)),
                    parity[g].u.eq(total[1]),
                    parity[g].even.eq(~total[0]),
                ]
        loads = Signal(self.OFFSET_AT - 1)  # in the cycles before
        m.d.sync += loads.eq(Cat(self.load, loads))
        with m.If(loads[-1]):
            m.d.sync += offset.eq(self.sums.offset)
        return m
