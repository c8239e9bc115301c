"""A tile of the lookup array: macro, block scales, exact accumulators of a chunk of rows, finished rows."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.cim.lookup import WORD_BITS, LookupMacro
from hw.cim.tables import OFFSET_BITS, PARITY, TABLE_WRITE
from hw.pe.drain import result_layout
from sw_model.config import HardwareConfig
from sw_model.formats import MANT_BITS, ROW_EXP_BITS, SCALE_BITS, SHIFT_BITS
from sw_model.topology import LOOKUP_SLOTS

__all__ = ["FETCH", "LookupTile", "control_layout"]

#: A finished row to be taken along: from the tile ``hops`` further on, out of place ``slot``.
FETCH = data.StructLayout({"valid": 1, "hops": 8, "slot": 4})


def control_layout(config: HardwareConfig) -> data.StructLayout:
    """What goes from tile to tile; each field is about the word of a cycle of its own (see there)."""
    return data.StructLayout(
        {
            "word": (config.words - 1).bit_length(),
            "bank": 1,
            "parity": PARITY,
            "scale": (config.scales - 1).bit_length(),
            "shift": SHIFT_BITS,
            "top": 1,
            "offset": signed(OFFSET_BITS),
            "slot": 4,
            "first": 1,
            "add": 1,
            "place": 4,
            "finish": 1,
            "table": TABLE_WRITE,
        }
    )


class LookupTile(wiring.Component):
    """Up to 16 matrix rows (slots) at a time, exact: with every word read,

        acc[slot] = (0 if first else acc[slot]) + sum * mant << (scale shift + shift)

    Words of a slot are at least ``APART`` cycles apart.

    Parameters
    ----------
    config : depths, spreads and accumulator width
    words, scales : initial contents (a baked image)

    Members (times relative to the cycle t in which a word's address comes in)
    -------
    i : controls (:func:`control_layout`). ``word``: t; ``bank``, ``parity``: t + ``TABLE_AT``; ``scale``: t +
        ``SCALE_AT``; ``shift``: t + ``SHIFT_AT``; ``top``: t + ``TOP_AT``; ``offset``: t + ``OFFSET_AT``;
        ``slot``, ``first``: t + ``SLOT_AT``; ``add`` (the word counts), ``finish`` (its row is whole) and
        ``place`` (where to keep it): t + ``ADD_AT``; ``table``: whenever
    o : the same, a cycle later, for the next tile
    i_fetch, o_fetch : which finished row to take along, and the same a cycle later for the next tile
    i_row, o_row : the row on its way; ``o_row`` comes with ``o_fetch``
    load_* : weight loading, in the domain "load"

    Latency: a row may be fetched from t + ``ADD_AT`` + 1. Throughput: a word a cycle. Nothing rounds or
    saturates.
    """

    TABLE_AT = LookupMacro.TABLE_AT
    SCALE_AT = LookupMacro.LATENCY - 5
    SHIFT_AT = SCALE_AT + 2
    TOP_AT = LookupMacro.TOP_AT
    OFFSET_AT = LookupMacro.OFFSET_AT
    SLOT_AT = LookupMacro.LATENCY + 1
    ADD_AT = SLOT_AT + 2
    APART = ADD_AT - SLOT_AT + 1
    SLOTS = LOOKUP_SLOTS
    _FINE = 3  # of the shift, by the multiplier

    def __init__(
        self, config: HardwareConfig, words: list[int] | None = None, scales: list[int] | None = None
    ) -> None:
        self._config = config
        self._words = words
        self._scales = scales or []
        self._control = control_layout(config)
        super().__init__(
            {
                "i": In(self._control),
                "o": Out(self._control),
                "i_fetch": In(FETCH),
                "o_fetch": Out(FETCH),
                "i_row": In(result_layout(config)),
                "o_row": Out(result_layout(config)),
                "load_word_addr": In((config.words - 1).bit_length()),
                "load_word": In(WORD_BITS),
                "load_word_en": In(1),
                "load_scale_addr": In((config.scales - 1).bit_length()),
                "load_scale": In(SCALE_BITS),
                "load_scale_en": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config

        def later(value: Value, cycles: int = 1) -> Value:
            for _ in range(cycles):
                q = Signal(value.shape(), name="later", reset_less=True)
                m.d.sync += q.eq(value)
                value = q
            return value

        now = Signal(self._control, reset_less=True)
        m.d.sync += now.eq(self.i)
        m.d.comb += self.o.eq(now)

        m.submodules.macro = macro = LookupMacro(config.words, self._words)
        m.d.comb += [
            macro.addr.eq(now.word),
            macro.bank.eq(now.bank),
            macro.parity.eq(now.parity),
            macro.top.eq(now.top),
            macro.offset.eq(now.offset),
            macro.table.eq(now.table),
            macro.write_addr.eq(self.load_word_addr),
            macro.write_data.eq(self.load_word),
            macro.write_en.eq(self.load_word_en),
        ]

        # Scale: mantissa << low bits of the shift in one product, times the sum in a second; the rest of the
        # shift in two multiplexers, the second of which shares the accumulator's adder.
        shift_bits = config.scale_shift_bits
        stored = data.StructLayout({"mant": MANT_BITS - 1, "shift": shift_bits, "row_exp": ROW_EXP_BITS})
        m.submodules.scales = scales = Memory(
            shape=stored.size,
            depth=config.scales,
            init=[self._narrow(s) for s in self._scales],
            attrs={"no_rw_check": 1},
        )
        write, read = scales.write_port(domain="load"), scales.read_port()
        packed = self.load_scale
        m.d.comb += [
            write.addr.eq(self.load_scale_addr),
            write.data.eq(Cat(packed[: MANT_BITS - 1 + shift_bits], packed[MANT_BITS - 1 + SHIFT_BITS :])),
            write.en.eq(self.load_scale_en),
            read.addr.eq(now.scale),
            read.en.eq(1),
        ]
        scale = data.View(stored, later(read.data))
        total = Signal(range(config.nibble_shift_max + 1), reset_less=True)
        m.d.sync += total.eq(scale.shift + now.shift)
        power = Signal(1 << self._FINE, reset_less=True)
        m.d.sync += power.eq(1 << total[: self._FINE])
        factor = Signal(MANT_BITS + (1 << self._FINE) - 1, reset_less=True)
        m.d.sync += factor.eq(Cat(later(scale.mant, 2), C(1, 1)) * power)
        product = Signal(signed(macro.SUM_BITS + len(factor)), reset_less=True)
        m.d.sync += product.eq(macro.sum * factor)
        coarse = later(total[self._FINE :], 3)
        width = len(product) + (1 << self._FINE)
        by8 = Signal(signed(width), reset_less=True)
        m.d.sync += by8.eq(Mux(coarse[0], product << (1 << self._FINE), product))
        far = later(coarse[1]) if len(coarse) > 1 else C(0, 1)

        acc_bits = config.acc_bits
        m.submodules.accs = accs = Memory(shape=signed(acc_bits), depth=self.SLOTS, init=[])
        acc_write, acc_read = accs.write_port(), accs.read_port(domain="comb")
        before = Signal(signed(acc_bits), reset_less=True)
        acc = Signal(signed(acc_bits), reset_less=True)
        m.d.comb += [
            acc_read.addr.eq(now.slot),
            acc_write.addr.eq(later(now.slot, self.ADD_AT - self.SLOT_AT)),
            acc_write.data.eq(acc),
            acc_write.en.eq(now.add),
        ]
        shifted = Signal(signed(acc_bits))
        m.d.comb += shifted.eq(Mux(far, by8 << (2 << self._FINE), by8))
        m.d.sync += [before.eq(Mux(now.first, 0, acc_read.data)), acc.eq(before + shifted)]

        # Finished rows, and the chain on which they leave.
        result = data.View(result_layout(config), Signal(result_layout(config).size, name="result"))
        m.submodules.rows = rows = Memory(shape=result_layout(config).size, depth=self.SLOTS, init=[])
        row_write, row_read = rows.write_port(), rows.read_port(domain="comb")
        fetch = Signal(FETCH, reset_less=True)
        m.d.sync += fetch.eq(self.i_fetch)
        mine = fetch.valid & (fetch.hops == 0)
        m.d.comb += [
            result.acc.eq(acc),
            result.row_exp.eq(later(scale.row_exp, self.ADD_AT - self.SHIFT_AT)),
            row_write.addr.eq(now.place),
            row_write.data.eq(result),
            row_write.en.eq(now.finish),
            row_read.addr.eq(fetch.slot),
            self.o_fetch.eq(fetch),
            self.o_fetch.hops.eq(fetch.hops - 1),
        ]
        m.d.sync += Value.cast(self.o_row).eq(Mux(mine, row_read.data, Value.cast(self.i_row)))
        return m

    def _narrow(self, entry: int) -> int:
        """A scale entry of the image as it is stored here."""
        low = MANT_BITS - 1 + self._config.scale_shift_bits
        return entry & ((1 << low) - 1) | entry >> MANT_BITS - 1 + SHIFT_BITS << low
