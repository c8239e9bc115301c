"""A tile: one macro, its block scales, and an exact row accumulator."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.cim.macro import WORD_BITS, Decode, Macro
from sw_model.config import HardwareConfig
from sw_model.formats import (
    ACT8_MAX,
    BLOCK,
    MANT_BITS,
    NIBBLE,
    ROW_EXP_BITS,
    SCALE_BITS,
    SHIFT_BITS,
    WEIGHT_FORMATS,
)

__all__ = ["Tile"]


class Tile(wiring.Component):
    """One matrix row at a time, exact:

        acc = sum over blocks of ( macro sums of its steps, in base 16 ) * mant << (scale shift + act shift)

    Parameters
    ----------
    config : depths, spreads and accumulator width
    words, scales : initial contents (a baked image)

    Members (times relative to the cycle t of ``word_addr``)
    -------
    word_addr, word_en : t
    step, decode : t + ``DECODE_AT``
    act : t + ``ACT_AT``
    scale_addr : t + ``SCALE_AT``
    start_block : t + ``BLOCK_AT``: this step is the block's first
    act_shift : t + ``SHIFT_AT``
    add, start_row : t + ``ADD_AT``: the block is whole; it is the row's first
    acc, row_exp : t + ``LATENCY``, the row's value after its last block: acc * 2**(row_exp - ROW_EXP_BIAS)
    load_* : weight loading

    The steps of a block come in consecutive cycles. Throughput: a macro word a cycle. Nothing rounds or
    saturates; widths from ``config.acc_bound``.
    """

    DECODE_AT = Macro.DECODE_AT
    ACT_AT = Macro.ACT_AT
    BLOCK_AT = Macro.LATENCY
    SCALE_AT = BLOCK_AT + 1 - 2  # two cycles of scale memory, to meet the finished block sum
    SHIFT_AT = BLOCK_AT + 2
    ADD_AT = BLOCK_AT + 3
    LATENCY = ADD_AT + 1

    def __init__(
        self, config: HardwareConfig, words: list[int] | None = None, scales: list[int] | None = None
    ) -> None:
        self._config = config
        self._words = words
        self._scales = scales or []
        word_address = (config.words - 1).bit_length()
        scale_address = (config.scales - 1).bit_length()
        super().__init__(
            {
                "word_addr": In(word_address),
                "word_en": In(1),
                "act": In(256),
                "step": In(3),
                "decode": In(Decode),
                "scale_addr": In(scale_address),
                "start_block": In(1),
                "act_shift": In(SHIFT_BITS),
                "add": In(1),
                "start_row": In(1),
                "acc": Out(signed(config.acc_bits)),
                "row_exp": Out(ROW_EXP_BITS),
                "load_word_addr": In(word_address),
                "load_word": In(WORD_BITS),
                "load_word_en": In(1),
                "load_scale_addr": In(scale_address),
                "load_scale": In(SCALE_BITS),
                "load_scale_en": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.macro = macro = Macro(self._config.words, self._words)
        m.d.comb += [
            macro.read_addr.eq(self.word_addr),
            macro.read_en.eq(self.word_en),
            macro.act.eq(self.act),
            macro.step.eq(self.step),
            macro.decode.eq(self.decode),
            macro.write_addr.eq(self.load_word_addr),
            macro.write_data.eq(self.load_word),
            macro.write_en.eq(self.load_word_en),
        ]
        m.submodules.scales = scales = Memory(
            shape=SCALE_BITS, depth=self._config.scales, init=self._scales, attrs={"no_rw_check": 1}
        )
        write, read = scales.write_port(), scales.read_port()
        scale = Signal(SCALE_BITS, reset_less=True)
        m.d.comb += [
            write.addr.eq(self.load_scale_addr),
            write.data.eq(self.load_scale),
            write.en.eq(self.load_scale_en),
            read.addr.eq(self.scale_addr),
            read.en.eq(1),
        ]
        m.d.sync += scale.eq(read.data)

        # Steps, most significant nibble first (Horner).
        most = max(f.max_magnitude for f in WEIGHT_FORMATS.values())
        block_bits = (BLOCK * (ACT8_MAX + 1) * most).bit_length() + 1
        block = Signal(signed(block_bits), reset_less=True)
        m.d.sync += block.eq(Mux(self.start_block, 0, block << NIBBLE) + macro.sum)

        mant = Cat(scale[: MANT_BITS - 1], C(1, 1))
        product = Signal(signed(block_bits + MANT_BITS), reset_less=True)
        shift1 = Signal(SHIFT_BITS, reset_less=True)
        exp1 = Signal(ROW_EXP_BITS, reset_less=True)
        m.d.sync += [
            product.eq(block * mant),
            shift1.eq(scale[MANT_BITS - 1 :][:SHIFT_BITS]),
            exp1.eq(scale[MANT_BITS - 1 + SHIFT_BITS :]),
        ]
        shift = Signal(range(self._config.shift_max + 1))
        aligned = Signal(signed(self._config.acc_bits), reset_less=True)
        exp2 = Signal(ROW_EXP_BITS, reset_less=True)
        m.d.comb += shift.eq(shift1 + self.act_shift)
        m.d.sync += [aligned.eq(product << shift), exp2.eq(exp1)]

        with m.If(self.add):
            m.d.sync += [self.acc.eq(Mux(self.start_row, 0, self.acc) + aligned), self.row_exp.eq(exp2)]
        return m
