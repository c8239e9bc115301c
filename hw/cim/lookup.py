"""The compute-in-memory macro whose lanes look sums of activations up, for each bit plane of the weights."""

from amaranth.hdl import Cat, Module, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.cim.tables import ENTRY_BITS, GROUP, GROUPS, OFFSET_BITS, PARITY, TABLE_WRITE
from sw_model.formats import BLOCK, NIBBLE

__all__ = ["WORD_BITS", "LookupMacro", "add_carry"]

WORD_BITS = BLOCK * NIBBLE
_PLANES = NIBBLE


def add_carry(a: Value, b: Value, carry: Value) -> Value:
    """a + b + carry, signed, as one adder with a carry in."""
    return (Cat(1, a).as_signed() + Cat(carry, b).as_signed())[1:].as_signed()


class LookupMacro(wiring.Component):
    """Read a word of 32 nibbles and give its dot product with the block whose tables are in a bank.

        sum = sum_i  digit_i * x_i  +  offset-dependent part     digit = 8 t b3 + 4 b2 + 2 b1 + b0

    with t = -1 where ``top``, else 1. Every bit b is (s + 1) / 2 with a sign s, and a group's sum of s_i x_i
    is +- (2 u[r] + odd), see :class:`~hw.cim.tables.TableGenerator`; the sign is that of s3, r says which of
    s0 .. s2 differ from it. What the + 1 amounts to is the same for all words: over the planes of a whole
    weight their weights add up to -1, so the caller gives ``offset`` = -(sum of halves) with its last nibble.
    A word holds, for plane k and group g, {s3 < 0, r} in the nibble 8 k + g.

    Parameters
    ----------
    words : depth
    init : initial contents, one integer a word (a baked image)

    Members
    -------
    addr : the word, at cycle t
    bank, parity : t + ``TABLE_AT``; the tables are those written by then
    top : t + ``TOP_AT``
    offset : t + ``OFFSET_AT``
    sum : t + ``LATENCY``
    table : writes to the tables
    write_addr, write_data, write_en : load a word, in the domain "load". A word must not be read meanwhile.

    Throughput: one word (32 nibble MACs) a cycle. Exact.
    """

    TABLE_AT = 2
    TOP_AT = TABLE_AT + 4
    OFFSET_AT = TOP_AT + 2
    LATENCY = OFFSET_AT + 1
    SUM_BITS = 17

    def __init__(self, words: int, init: list[int] | None = None) -> None:
        self._words = words
        self._init = init or []
        address = (words - 1).bit_length()
        super().__init__(
            {
                "addr": In(address),
                "bank": In(1),
                "parity": In(PARITY),
                "top": In(1),
                "offset": In(signed(OFFSET_BITS)),
                "sum": Out(signed(self.SUM_BITS)),
                "table": In(TABLE_WRITE),
                "write_addr": In(address),
                "write_data": In(WORD_BITS),
                "write_en": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.sram = sram = Memory(
            shape=WORD_BITS, depth=self._words, init=self._init, attrs={"no_rw_check": 1}
        )
        write, read = sram.write_port(domain="load"), sram.read_port()
        m.d.comb += [
            write.addr.eq(self.write_addr),
            write.data.eq(self.write_data),
            write.en.eq(self.write_en),
            read.addr.eq(self.addr),
            read.en.eq(1),
        ]

        def register(value: Value, name: str) -> Signal:
            q = Signal(value.shape(), name=name, reset_less=True)
            m.d.sync += q.eq(value)
            return q

        word = register(read.data, "word")
        # Carries stay what they are made of, a sign and a group's evenness, up to the adder that takes them.
        even = [register(Cat(p.even for p in self.parity), "even0")]
        for level in range(1, GROUPS.bit_length()):
            even.append(register(even[-1], f"even{level}"))
        sums = []
        for k in range(_PLANES):
            leaves, negative = [], []
            for g in range(GROUPS):
                nibble = word[NIBBLE * (GROUPS * k + g) :][:NIBBLE]
                signs = nibble[: GROUP - 1]
                m.submodules[f"table{k}_{g}"] = table = Memory(shape=ENTRY_BITS, depth=16, init=[])
                fill, entry = table.write_port(), table.read_port(domain="comb")
                m.d.comb += [
                    fill.addr.eq(Cat(self.table.entry, self.table.bank)),
                    fill.data.eq(self.table.u[g]),
                    fill.en.eq(self.table.en),
                    entry.addr.eq(Cat(signs, self.bank)),
                ]
                lowest = (signs & self.parity[g].x).xor() ^ self.parity[g].u
                u = register(Cat(lowest, entry.data), f"u{k}_{g}")
                negative.append((register(nibble[-1], f"negative{k}_{g}"), g))
                leaves.append((u ^ negative[-1][0].replicate(ENTRY_BITS + 1)).as_signed())
            # The carry of a pair's first goes into its adder, that of its second into one further down.
            for level in range(1, GROUPS.bit_length()):
                pairs = range(0, len(leaves), 2)
                first = [negative[i][0] & even[level - 1][negative[i][1]] for i in pairs]
                leaves = [
                    register(add_carry(leaves[i], leaves[i + 1], first[i // 2]), f"level{level}_{k}_{i}")
                    for i in pairs
                ]
                negative = [
                    (register(negative[i + 1][0], f"negative{level}_{k}_{i}"), negative[i + 1][1])
                    for i in pairs
                ]
            sums.append((leaves[0], negative[0][0] & even[-1][negative[0][1]]))

        (s0, c0), (s1, c1), (s2, c2), (s3, c3) = sums
        top = self.top
        s3, c3 = (s3.as_unsigned() ^ top.replicate(len(s3))).as_signed(), c3 ^ top
        low = register(Cat(s0[0], add_carry(s0[1:].as_signed(), s1, c1)), "low").as_signed()
        high = register(Cat(s2[0], add_carry(s2[1:].as_signed(), s3, c3)), "high").as_signed()
        c0, c2 = register(c0, "c0"), register(c2, "c2")
        whole = register(
            Cat(low[:2], add_carry(low[2:].as_signed(), high, c2)[: self.SUM_BITS - 3]), "whole"
        ).as_signed()
        total = add_carry(whole, self.offset, register(c0, "c0_later"))[: self.SUM_BITS]
        m.d.comb += self.sum.eq(register(total, "total"))  # no register here has a reset to be reached by
        return m
