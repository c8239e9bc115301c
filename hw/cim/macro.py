"""The compute-in-memory macro: an SRAM of weight words that multiplies where it stores."""

from amaranth.hdl import Array as Choice
from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import enum, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from sw_model.formats import ACT8_MAX, BLOCK, FP8, MXFP4, NIBBLE, WEIGHT_FORMATS

__all__ = ["FORMATS", "WORD_BITS", "Decode", "Macro", "digit"]

WORD_BITS = BLOCK * NIBBLE


class Decode(enum.Enum, shape=2):
    """How a macro turns stored nibbles into signed digits."""

    INTEGER = 0
    MXFP4 = 1
    FP8 = 2
    HIGH = 3


#: Steps, stored words and decoding of every weight format, by its code.
FORMATS = {
    fmt.code: (fmt.steps, fmt.words, {MXFP4: Decode.MXFP4, FP8: Decode.FP8}.get(fmt, Decode.INTEGER))
    for fmt in WEIGHT_FORMATS.values()
}


def digit(step: Value, decode: Value, first: Value, nibble: Value, kept: Value) -> Value:
    """Signed digit of one lane in this step."""
    sign = Mux(first, nibble[-1], kept[-1])
    integer = Cat(nibble[:-1], nibble[-1] & ~first)
    middle = Cat(nibble[:-1].any(), nibble[:-1])
    small = Choice(C(int(MXFP4.decode(c)), NIBBLE) for c in range(8))[nibble[:-1]]
    # FP8: nibble n of significand << (exponent - 1), n = steps - 1 - step.
    exponent = Cat(nibble[-1], kept[:-1])
    significand = Cat(nibble[:-1], exponent.any())
    place = Mux(exponent.any(), exponent - 1, 0)[:NIBBLE]
    window = Cat(C(0, NIBBLE), significand, C(0, NIBBLE))  # slide a nibble over it
    offset = (NIBBLE * (FP8.steps - 1) - (step << 2)) - place  # of the nibble in the significand
    outside = (offset >= NIBBLE) | (offset <= -NIBBLE)
    slid = (window >> (offset + NIBBLE)[:4])[:NIBBLE]
    large = Mux(outside | first, 0, slid)
    magnitude = Choice([integer, small, large, middle])[decode]
    return Mux(sign, -magnitude, magnitude)


class Macro(wiring.Component):
    """Read a word of 32 nibbles and give its dot product with the activation block.

        sum = sum_i  sign_i * nibble_i * act_i        i = 0 .. 31

    A weight is stored in one or more nibbles, the first of which is {sign, top of the code}; the macro keeps
    the first nibbles of a block for the steps that follow. Step by step, most significant nibble of the
    magnitude first, it multiplies

        integers   the magnitude's nibbles as they are stored
        MXFP4      the magnitude (0 .. 12, in halves) of the three-bit code
        high       2 n + 1 of the first nibble's magnitude n, 0 for 0: the middle of those of INT8, in eighths
        FP8        nothing in step 0, which reads half the code; then five nibbles of (8 + m) << (e - 1)

    Parameters
    ----------
    words : depth
    init : initial contents, one integer a word (a baked image)

    Members
    -------
    read_addr, read_en : the word to multiply, at cycle t + READ_AT; without read_en the last word stays
    step, decode : step of the block and how its words are decoded (:class:`Decode`), at t + DECODE_AT
    act : 32 signed bytes, at cycle t + ACT_AT
    sum : signed, at cycle t + LATENCY
    write_addr, write_data, write_en : load a word. A word must not be read in the cycle in which it is
        written (the memory has no collision logic); the host loads weights that no running pass uses.

    Latency: ``LATENCY``. Throughput: one word (32 nibble MACs) every ``step_cycles`` = 1 cycle. Exact:
    ``SUM_BITS`` holds the largest sum.
    """

    READ_AT = 0
    DECODE_AT = READ_AT + 2
    ACT_AT = DECODE_AT + 1
    LATENCY = ACT_AT + 3
    step_cycles = 1
    # The low byte of a 16-bit activation reaches -128.
    SUM_BITS = (BLOCK * (ACT8_MAX + 1) * ((1 << NIBBLE) - 1)).bit_length() + 1

    def __init__(self, words: int, init: list[int] | None = None) -> None:
        if words < 2:
            raise ValueError(f"words must be at least 2, not {words}")
        self._words = words
        self._init = init or []
        address = (words - 1).bit_length()
        super().__init__(
            {
                "read_addr": In(address),
                "read_en": In(1),
                "step": In(3),
                "decode": In(Decode),
                "act": In(8 * BLOCK),
                "sum": Out(signed(self.SUM_BITS)),
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
        write, read = sram.write_port(), sram.read_port()
        m.d.comb += [
            write.addr.eq(self.write_addr),
            write.data.eq(self.write_data),
            write.en.eq(self.write_en),
            read.addr.eq(self.read_addr),
            read.en.eq(self.read_en),
        ]
        word = Signal(WORD_BITS, reset_less=True)  # the block RAM's output register
        m.d.sync += word.eq(read.data)

        first = Signal()
        m.d.comb += first.eq(self.step == 0)
        kept = Signal(WORD_BITS, reset_less=True)  # first nibbles of the block
        with m.If(first):
            m.d.sync += kept.eq(word)

        products = []
        for i in range(BLOCK):
            lane = slice(NIBBLE * i, NIBBLE * (i + 1))
            held = Signal(signed(NIBBLE + 1), name=f"digit{i}", reset_less=True)
            m.d.sync += held.eq(digit(self.step, self.decode, first, word[lane], kept[lane]))
            product = Signal(signed(NIBBLE + 8), name=f"product{i}", reset_less=True)
            m.d.sync += product.eq(held * self.act[8 * i : 8 * (i + 1)].as_signed())
            products.append(product)

        def tree(values: list) -> Signal:
            while len(values) > 1:
                values = [a + b for a, b in zip(values[::2], values[1::2], strict=True)]
            return values[0]

        partial = []
        for i in range(0, BLOCK, 4):
            total = tree(products[i : i + 4])
            register = Signal(total.shape(), name=f"partial{i // 4}", reset_less=True)
            m.d.sync += register.eq(total)
            partial.append(register)
        m.d.sync += self.sum.eq(tree(partial))
        return m
