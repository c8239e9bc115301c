"""The compute-in-memory macro for silicon: activations bit by bit, adder trees, shift and accumulate."""

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.cim.macro import Decode, digit
from hw.cim.sram import Sram
from hw.sharing import shared
from sw_model.formats import ACT8_BITS, ACT8_MAX, BLOCK, NIBBLE

__all__ = ["BitSerial", "SerialMacro"]


def _check_bits(bits: int) -> None:
    if bits not in (1, 2, 4, 8):
        raise ValueError(f"bits must be 1, 2, 4 or 8, not {bits}")


class BitSerial(wiring.Component):
    """Signed bytes to pieces of ``bits`` bits, the most significant first.

    Members
    -------
    act, load : ``lanes`` bytes, in the first of a word's 8 / ``bits`` cycles
    piece : the next piece of every lane, lane 0 lowest; first one at t + ``LATENCY``
    first : it is the first

    Throughput: ``lanes`` bytes every 8 / ``bits`` cycles.
    """

    LATENCY = 1

    def __init__(self, bits: int, lanes: int = BLOCK) -> None:
        _check_bits(bits)
        self._bits = bits
        self._lanes = lanes
        super().__init__(
            {
                "act": In(ACT8_BITS * lanes),
                "load": In(1),
                "piece": Out(bits * lanes),
                "first": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bits = self._bits
        m.d.sync += self.first.eq(self.load)
        for i in range(self._lanes):
            rest = Signal(ACT8_BITS, name=f"rest{i}", reset_less=True)
            m.d.sync += rest.eq(Mux(self.load, self.act.word_select(i, ACT8_BITS), rest << bits))
            m.d.comb += self.piece.word_select(i, bits).eq(rest[-bits:])
        return m


class SerialMacro(wiring.Component):
    """Read a word of ``rows`` x ``lanes`` nibbles and give each row's dot product with the activations.

        sum[r] = sum_i  digit[r][i] * act[i]            digits as :class:`~hw.cim.macro.Macro` has them
               = sum_j 2**j (+-) sum_i digit[r][i] * bit j of act[i]        minus for the sign bit, j = 7

    As the published digital CIM macros do (Y.-D. Chih et al., "An 89TOPS/W and 16.3TOPS/mm2 All-Digital
    SRAM-Based Full-Precision Compute-In Memory Macro in 22nm", ISSCC 2021): the word is latched and decoded
    once; then, piece by piece of the activations, every bit of a piece gates the digits into an adder tree of
    its own, and the trees' sums are shifted and accumulated.

    Parameters
    ----------
    words : contexts, that is words of every row
    bits : of an activation taken in a cycle: 1, 2, 4 or 8
    rows : matrix rows that share the activation lines
    lanes : activations
    init : initial contents, one integer of all rows a word (a baked image)

    Members (times relative to the cycle t of a word's piece; first pieces ``step_cycles`` apart or more)
    -------
    read_addr, read_en : t + ``READ_AT``, with the first piece. Without read_en the last word stays
    step, decode : t + ``DECODE_AT``, held from the first piece to the last
    act, first : t + ``ACT_AT``: a piece of every lane, the most significant ``first``
    sum : signed, a row each, at t + ``LATENCY`` after the last piece
    write_addr, write_data, write_en : load a word of the rows whose bit of ``write_en`` is set. A word must
        not be read in the cycle in which it is written.

    Throughput: a word (``rows`` x ``lanes`` nibble MACs) every ``step_cycles`` = 8 / ``bits`` cycles. Exact:
    the width of ``sum`` holds the largest.
    """

    READ_AT = 1
    DECODE_AT = READ_AT + 2
    ACT_AT = DECODE_AT + 1
    LATENCY = ACT_AT + 3
    _NEAR = 8  # lanes that are added up before the first register of a tree

    def __init__(
        self, words: int, bits: int, *, rows: int = 1, lanes: int = BLOCK, init: list[int] | None = None
    ) -> None:
        _check_bits(bits)
        if words < 2:
            raise ValueError(f"words must be at least 2, not {words}")
        if rows < 1:
            raise ValueError(f"rows must be at least 1, not {rows}")
        if lanes < 1:
            raise ValueError(f"lanes must be at least 1, not {lanes}")
        self._bits = bits
        self._rows = rows
        self._lanes = lanes
        self._words = words
        self._init = init
        self.step_cycles = ACT8_BITS // bits
        self._sum = signed((lanes * (ACT8_MAX + 1) * ((1 << NIBBLE) - 1)).bit_length() + 1)
        address = (words - 1).bit_length()
        super().__init__(
            {
                "read_addr": In(address),
                "read_en": In(1),
                "step": In(3),
                "decode": In(Decode),
                "act": In(bits * lanes),
                "first": In(1),
                "sum": Out(data.ArrayLayout(self._sum, rows)),
                "write_addr": In(address),
                "write_data": In(NIBBLE * lanes),
                "write_en": In(rows),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        sram = Sram(self._words, NIBBLE * self._lanes * self._rows, self._rows, self._init)
        m.submodules.sram = sram if self._init else shared(sram, sram.module, platform)
        word = Signal(len(sram.read_data), reset_less=True)
        read = Signal()
        m.d.comb += [
            sram.read_addr.eq(self.read_addr),
            sram.read_en.eq(self.read_en),
            sram.write_addr.eq(self.write_addr),
            sram.write_data.eq(self.write_data.replicate(self._rows)),
            sram.write_en.eq(self.write_en),
        ]
        m.d.sync += read.eq(self.read_en)
        with m.If(read):
            m.d.sync += word.eq(sram.read_data)

        first_step = Signal()
        m.d.comb += first_step.eq(self.step == 0)
        kept = Signal.like(word)  # first nibbles of the block
        with m.If(first_step):
            m.d.sync += kept.eq(word)
        negate, begin = Signal(), Signal()  # the first piece, a cycle and two after it came
        m.d.sync += [negate.eq(self.first), begin.eq(negate)]
        for r in range(self._rows):
            digits = []
            for i in range(self._lanes):
                lane = slice(NIBBLE * (r * self._lanes + i), NIBBLE * (r * self._lanes + i + 1))
                held = Signal(signed(NIBBLE + 1), name=f"digit{r}_{i}", reset_less=True)
                m.d.sync += held.eq(digit(self.step, self.decode, first_step, word[lane], kept[lane]))
                digits.append(held)
            planes = [self._plane(m, digits, r, j) for j in range(self._bits)]
            planes[-1] = Mux(negate, -planes[-1], planes[-1])
            total = _tree([plane << j for j, plane in enumerate(planes)])
            added = Signal(total.shape(), name=f"total{r}", reset_less=True)
            m.d.sync += added.eq(total)
            so_far = self.sum[r]
            m.d.sync += so_far.eq(Mux(begin, 0, so_far << self._bits) + added)
        return m

    def _plane(self, m: Module, digits: list[Signal], row: int, bit: int) -> Value:
        """Sum of the digits whose activation has ``bit`` of the piece set, a cycle later."""
        gated = [d & self.act[self._bits * i + bit].as_signed() for i, d in enumerate(digits)]
        near = []
        for i in range(0, self._lanes, self._NEAR):
            total = _tree(gated[i : i + self._NEAR])
            register = Signal(total.shape(), name=f"near{row}_{bit}_{i // self._NEAR}", reset_less=True)
            m.d.sync += register.eq(total)
            near.append(register)
        return _tree(near)


def _tree(values: list[Value]) -> Value:
    """Sum, as a tree of adders."""
    while len(values) > 1:
        pairs = [a + b for a, b in zip(values[::2], values[1::2], strict=False)]
        values = pairs + values[len(pairs) * 2 :]
    return values[0]
