"""A tile: one macro, its block scales, and an exact row accumulator."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.cim.macro import WORD_BITS, Decode, Macro
from hw.cim.serial import SerialMacro
from hw.cim.sram import Sram
from hw.sharing import shared
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

    Members (times relative to the cycle t of a step; of those that it has the first for ``word_addr``,
    ``word_en`` and ``first``, the last for what comes after the macro, each for ``act``)
    -------
    word_addr, word_en : t + ``read_at``
    step, decode : t + ``decode_at``, as long as the step
    act : t + ``act_at``: with body "dsp" the block's bytes, with body "asic" a piece of each, the ``first``
        the most significant
    scale_addr : t + ``scale_at``
    start_block, end_step : t + ``block_at``: this step is the block's first; the macro's sum is whole
    act_shift : t + ``shift_at``
    add, start_row : t + ``add_at``: the block is whole; it is the row's first
    acc, row_exp : t + ``latency``, the row's value after its last block: acc * 2**(row_exp - ROW_EXP_BIAS)
    load_* : weight loading

    Attributes
    ----------
    step_cycles, read_at .. latency : the times, which follow from those that the macro's body publishes

    Throughput: a macro word every ``step_cycles``. Nothing rounds or saturates; widths from
    ``config.acc_bound``.
    """

    def __init__(
        self, config: HardwareConfig, words: list[int] | None = None, scales: list[int] | None = None
    ) -> None:
        self._config = config
        self._words = words
        self._scales = scales or []
        body = SerialMacro if config.body == "asic" else Macro
        self.step_cycles = config.step_cycles
        self.read_at, self.decode_at, self.act_at = body.READ_AT, body.DECODE_AT, body.ACT_AT
        self.block_at = body.LATENCY
        self.scale_at = self.block_at + 1 - 2  # two cycles of scale memory, to meet the finished block sum
        self.shift_at = self.block_at + 2
        self.add_at = self.block_at + 3
        self.latency = self.add_at + 1
        word_address = (config.words - 1).bit_length()
        scale_address = (config.scales - 1).bit_length()
        super().__init__(
            {
                "word_addr": In(word_address),
                "word_en": In(1),
                "act": In(config.act_bits * BLOCK),
                **({"first": In(1)} if config.body == "asic" else {}),
                "step": In(3),
                "decode": In(Decode),
                "scale_addr": In(scale_address),
                "start_block": In(1),
                "end_step": In(1),
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
        config = self._config
        macro: Macro | SerialMacro
        if config.body == "asic":
            macro = SerialMacro(config.words, config.act_bits, init=self._words)
            (total,) = macro.sum
            m.d.comb += macro.first.eq(self.first)
        else:
            macro = Macro(config.words, self._words)
            total = macro.sum
        assert macro.step_cycles == self.step_cycles
        m.submodules.macro = macro
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
        store = Sram(config.scales, SCALE_BITS, init=self._scales)
        m.submodules.scales = store if self._scales else shared(store, store.module, platform)
        scale = Signal(SCALE_BITS, reset_less=True)
        m.d.comb += [
            store.write_addr.eq(self.load_scale_addr),
            store.write_data.eq(self.load_scale),
            store.write_en.eq(self.load_scale_en),
            store.read_addr.eq(self.scale_addr),
            store.read_en.eq(1),
        ]
        m.d.sync += scale.eq(store.read_data)

        # Steps, most significant nibble first (Horner).
        most = max(f.max_magnitude for f in WEIGHT_FORMATS.values())
        block_bits = (BLOCK * (ACT8_MAX + 1) * most).bit_length() + 1
        block = Signal(signed(block_bits), reset_less=True)
        with m.If(self.end_step):
            m.d.sync += block.eq(Mux(self.start_block, 0, block << NIBBLE) + total)

        mant = Cat(scale[: MANT_BITS - 1], C(1, 1))
        product = Signal(signed(block_bits + MANT_BITS), reset_less=True)
        shift1 = Signal(SHIFT_BITS, reset_less=True)
        exp1 = Signal(ROW_EXP_BITS, reset_less=True)
        m.d.sync += [
            product.eq(block * mant),
            shift1.eq(scale[MANT_BITS - 1 :][:SHIFT_BITS]),
            exp1.eq(scale[MANT_BITS - 1 + SHIFT_BITS :]),
        ]
        shift = Signal(range(config.shift_max + 1))
        aligned = Signal(signed(config.acc_bits), reset_less=True)
        exp2 = Signal(ROW_EXP_BITS, reset_less=True)
        m.d.comb += shift.eq(shift1 + self.act_shift)
        m.d.sync += [aligned.eq(product << shift), exp2.eq(exp1)]

        with m.If(self.add):
            m.d.sync += [self.acc.eq(Mux(self.start_row, 0, self.acc) + aligned), self.row_exp.eq(exp2)]
        return m
