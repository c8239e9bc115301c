"""The compute-in-memory macro: an SRAM of weight words that multiplies where it stores."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from sw_model.formats import ACT8_MAX, BLOCK, NIBBLE

__all__ = ["Macro"]

WORD_BITS = BLOCK * NIBBLE


class Macro(wiring.Component):
    """Read a word of 32 nibbles and give its dot product with the activation block.

        sum = sum_i  sign_i * nibble_i * act_i        i = 0 .. 31

    A weight of several planes is stored most significant plane first; that plane's nibble is
    {sign, magnitude[2:0]}, and the macro keeps its signs for the planes that follow.

    Parameters
    ----------
    words : depth
    init : initial contents, one integer a word (a baked image)

    Members
    -------
    read_addr, read_en : the word to multiply, at cycle t
    first_plane : at cycle t + ACT_DELAY: this word is a first plane
    act : 32 signed bytes, at cycle t + ACT_DELAY
    sum : signed, at cycle t + LATENCY
    write_addr, write_data, write_en : load a word. A word must not be read in the cycle in which it is
        written (the memory has no collision logic); the host loads weights that no running pass uses.

    Latency: ``LATENCY``. Throughput: one word (32 nibble MACs) a cycle. Exact: ``SUM_BITS`` holds the
    largest sum.
    """

    ACT_DELAY = 2
    LATENCY = ACT_DELAY + 3
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
                "first_plane": In(1),
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

        signs = Signal(BLOCK, reset_less=True)
        products = []
        for i in range(BLOCK):
            nibble = word[NIBBLE * i : NIBBLE * (i + 1)]
            sign = Mux(self.first_plane, nibble[-1], signs[i])
            magnitude = Cat(nibble[:-1], nibble[-1] & ~self.first_plane)
            digit = Signal(signed(NIBBLE + 1), name=f"digit{i}")
            m.d.comb += digit.eq(Mux(sign, -magnitude, magnitude))
            with m.If(self.first_plane):
                m.d.sync += signs[i].eq(nibble[-1])
            product = Signal(signed(NIBBLE + 8), name=f"product{i}", reset_less=True)
            m.d.sync += product.eq(digit * self.act[8 * i : 8 * (i + 1)].as_signed())
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
