"""The compute-in-memory macro whose lanes look sums of activations up, for each bit plane of the weights."""

from amaranth.hdl import Cat, Module, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.cim.tables import ENTRY_BITS, GROUP, GROUPS, OFFSET_BITS, PARITY, TABLE_WRITE, add_carry
from sw_model.formats import BLOCK, NIBBLE

__all__ = ["WORD_BITS", "LookupMacro"]

WORD_BITS = BLOCK * NIBBLE
_PLANES = NIBBLE
#: Groups whose nibbles are in one memory: 32 bits, what a block RAM gives in a cycle.
_NEAR = 2


def _register(m: Module, value: Value, name: str) -> Signal:
    """``value``, a cycle later; no register of a macro has a reset to be reached by."""
    q = Signal(value.shape(), name=name, reset_less=True)
    m.d.sync += q.eq(value)
    return q


class LookupGroup(wiring.Component):
    """Four weights' nibbles times four activations, by tables of the activations' signed sums.

        sum + carry = sum_k 2^k * floor(s_k / 2)     s_k = +- (2 u[r_k] + odd)

    for the planes k, whose nibbles {s3 < 0, r} follow each other in ``word``. Every plane has a copy of the
    table, so that all are read at once; they are near each other, since they are written together.

    Members
    -------
    word, bank, parity : at cycle t
    sum, carry : t + ``LATENCY``; carry is 1 if both its bits are set
    entry, table_bank, table_en, u : write an entry of the table (see :data:`~hw.cim.tables.TABLE_WRITE`)
    """

    LATENCY = 3
    SUM_BITS = 13

    def __init__(self) -> None:
        super().__init__(
            {
                "word": In(NIBBLE * _PLANES),
                "bank": In(1),
                "parity": In(PARITY.elem_shape),
                "entry": In(GROUP - 1),
                "table_bank": In(1),
                "table_en": In(1),
                "u": In(ENTRY_BITS),
                "sum": Out(signed(self.SUM_BITS)),
                "carry": Out(2),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        entries, turned = [], []  # s_k / 2, rounded down, is entry ^ turned, and 1 more if turned and even
        for k in range(_PLANES):
            nibble = self.word[NIBBLE * k :][:NIBBLE]
            signs, negative = nibble[: GROUP - 1], nibble[-1]
            m.submodules[f"table{k}"] = table = Memory(shape=ENTRY_BITS, depth=16, init=[])
            fill, entry = table.write_port(), table.read_port(domain="comb")
            m.d.comb += [
                fill.addr.eq(Cat(self.entry, self.table_bank)),
                fill.data.eq(self.u),
                fill.en.eq(self.table_en),
                entry.addr.eq(Cat(signs, self.bank)),
            ]
            lowest = (signs & self.parity.x).xor() ^ self.parity.u
            entries.append(_register(m, Cat(lowest, entry.data), f"u{k}"))
            turned.append(_register(m, negative, f"turned{k}"))
        even = _register(m, self.parity.even, "even")
        s = [(u ^ t.replicate(len(u))).as_signed() for u, t in zip(entries, turned, strict=True)]

        # Signs and carries are worked out where they are added: an adder's LUT has room for that. So the
        # lowest bits of planes 0 and 2, which the first adders pass by, go on as they are.
        low = _register(m, add_carry(s[0][1:].as_signed(), s[1], turned[1] & even), "low")
        high = _register(m, add_carry(s[2][1:].as_signed(), s[3], turned[3] & even), "high")
        even = _register(m, even, "even1")
        lowest0, turned0 = (_register(m, b, f"{n}_0") for n, b in (("low", entries[0][0]), ("t", turned[0])))
        lowest2, turned2 = (_register(m, b, f"{n}_2") for n, b in (("low", entries[2][0]), ("t", turned[2])))
        upper = add_carry(low[1:].as_signed(), Cat(lowest2 ^ turned2, high).as_signed(), turned2 & even)
        whole = _register(m, Cat(low[0], upper)[: self.SUM_BITS - 1], "whole")
        sign = _register(m, turned0, "sign")
        m.d.comb += [
            self.sum.eq(Cat(_register(m, lowest0, "lowest") ^ sign, whole).as_signed()),
            self.carry.eq(Cat(sign, _register(m, even, "even2"))),
        ]
        return m


class LookupMacro(wiring.Component):
    """Read a word of 32 nibbles and give its dot product with the block whose tables are in a bank.

        sum = sum_i  digit_i * x_i  +  offset-dependent part     digit = 8 t b3 + 4 b2 + 2 b1 + b0

    with t = -1 in a weight's first nibble, else 1. Every bit b is (s + 1) / 2 with a sign s, and a group's
    sum of t s_i x_i is +- (2 u[r] + odd), see :class:`~hw.cim.tables.TableGenerator`; the sign is that of
    t s3, r says which of s0 .. s2 differ from s3. What the + 1 amounts to is the same for all words: over the
    planes of a whole weight their weights add up to -1, so the caller gives ``offset`` = -(sum of halves)
    with its last nibble, and with the first one 8 for every group whose sums are odd: t rounds them the other
    way. A word holds, for plane k and group g, {t s3 < 0, r} in nibble 8 k + g; in the memories the planes of
    a group are side by side, and what is added first is near (:class:`LookupGroup`).

    Parameters
    ----------
    words : depth
    init : initial contents, one integer a word (a baked image)

    Members
    -------
    addr : the word, at cycle t
    bank, parity : t + ``TABLE_AT``; the tables are those written by then
    offset : t + ``OFFSET_AT``
    sum : t + ``LATENCY``
    table : writes to the tables
    write_addr, write_data, write_en : load a word, in the domain "load". A word must not be read meanwhile.

    Throughput: one word (32 nibble MACs) a cycle. Exact.
    """

    TABLE_AT = 2
    OFFSET_AT = TABLE_AT + LookupGroup.LATENCY + GROUPS.bit_length() - 1
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
        leaves = []
        for first in range(0, GROUPS, _NEAR):
            groups = range(first, first + _NEAR)
            # Where a bit of this memory is in a word.
            at = [
                NIBBLE * (GROUPS * k + g) + i for g in groups for k in range(_PLANES) for i in range(NIBBLE)
            ]
            m.submodules[f"sram{first // _NEAR}"] = sram = Memory(
                shape=len(at),
                depth=self._words,
                init=[sum((word >> b & 1) << n for n, b in enumerate(at)) for word in self._init],
                attrs={"no_rw_check": 1},
            )
            write, read = sram.write_port(domain="load"), sram.read_port()
            m.d.comb += [
                write.addr.eq(self.write_addr),
                write.data.eq(Cat(self.write_data[b] for b in at)),
                write.en.eq(self.write_en),
                read.addr.eq(self.addr),
                read.en.eq(1),
            ]
            word = _register(m, read.data, f"word{first // _NEAR}")
            for n, g in enumerate(groups):
                m.submodules[f"group{g}"] = group = LookupGroup()
                m.d.comb += [
                    group.word.eq(word.word_select(n, len(group.word))),
                    group.bank.eq(self.bank),
                    Value.cast(group.parity).eq(Value.cast(self.parity[g])),
                    group.entry.eq(self.table.entry),
                    group.table_bank.eq(self.table.bank),
                    group.table_en.eq(self.table.en),
                    group.u.eq(self.table.u[g]),
                ]
                leaves.append((group.sum, group.carry))

        # The carry of a pair's first goes into its adder, that of its second into one further down.
        while len(leaves) > 1:
            leaves = [
                (
                    _register(m, add_carry(a, b, of_a.all()), f"sum{len(leaves)}_{n}"),
                    _register(m, of_b, f"carry{len(leaves)}_{n}"),
                )
                for n, ((a, of_a), (b, of_b)) in enumerate(zip(leaves[::2], leaves[1::2], strict=True))
            ]
        whole, carry = leaves[0]
        total = add_carry(whole, self.offset, carry.all())[: self.SUM_BITS]
        m.d.comb += self.sum.eq(_register(m, total, "total"))
        return m
