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

__all__ = ["LookupTile", "control_layout", "fetch_layout", "part_width"]


def fetch_layout(config: HardwareConfig) -> data.StructLayout:
    """A part of a finished row, to be taken along out of place ``slot``: of the tile where it comes in if
    ``here``, else of one further on."""
    return data.StructLayout({"valid": 1, "here": 1, "part": range(config.array_clock), "slot": 4})


def part_width(config: HardwareConfig) -> int:
    """Bits of a finished row that leave in a cycle: it takes as many as a cycle of the core has."""
    return -(-result_layout(config).size // config.array_clock)


def control_layout(config: HardwareConfig) -> data.StructLayout:
    """What goes from tile to tile; each field is about the word of a cycle of its own (see there)."""
    column = data.StructLayout(
        {"parity": PARITY, "shift": SHIFT_BITS, "offset": signed(OFFSET_BITS), "table": TABLE_WRITE}
    )
    return data.StructLayout(
        {
            "word": (config.words - 1).bit_length(),
            "bank": 1,
            "scale": (config.scales - 1).bit_length(),
            "slot": 4,
            "first": 1,
            "add": 1,
            "place": 4,
            "finish": 1,
            "columns": data.ArrayLayout(column, config.columns),
        }
    )


class LookupTile(wiring.Component):
    """Up to 16 matrix rows (slots) at a time, exact: with every word read of each column's macro,

        acc[slot] = (0 if first else acc[slot]) + sum_c  sum[c] * mant[c] << (scale shift[c] + shift[c])

    Words of a slot are at least ``APART`` cycles apart.

    Parameters
    ----------
    config : depths, spreads, columns and accumulator width
    words, scales : initial contents of each column (a baked image)

    Members (times relative to the cycle t in which a word's address comes in)
    -------
    i : controls (:func:`control_layout`). ``word``: t; ``bank``, ``parity``: t + ``TABLE_AT``;
        ``scale``: t + ``SCALE_AT``; ``shift``: t + ``SHIFT_AT``; ``offset``: t + ``OFFSET_AT``; ``slot``,
        ``first``: t + ``SLOT_AT``; ``add`` (the word counts), ``finish`` (its row is whole) and ``place``
        (where to keep it): t + ``add_at``; ``table``: whenever
    o : the same, a cycle later, for the next tile
    i_fetch, o_fetch : which finished row to take along (:func:`fetch_layout`), all its parts one after the
        other, and the same a cycle later for the next tile, of which it is ``here`` what followed the row
        that was taken from this one
    i_row, o_row : the part on its way (:func:`part_width`); ``o_row`` comes two cycles after ``o_fetch``
    load_* : weight loading, in the domain "load"; an enable a column

    Latency: a row may be fetched from t + ``add_at`` + 1. Throughput: a word a cycle and column. Nothing
    rounds or saturates.
    """

    TABLE_AT = LookupMacro.TABLE_AT
    SCALE_AT = LookupMacro.LATENCY - 5
    SHIFT_AT = SCALE_AT + 2
    OFFSET_AT = LookupMacro.OFFSET_AT
    SLOT_AT = LookupMacro.LATENCY + 1
    APART = 4  # as many as two columns need
    SLOTS = LOOKUP_SLOTS
    _FINE = 3  # of the shift, by the multiplier

    @classmethod
    def add_at(cls, config: HardwareConfig) -> int:
        """When a word is in its accumulator: the columns are added one after the other."""
        return cls.SLOT_AT + 1 + config.columns

    def __init__(
        self,
        config: HardwareConfig,
        words: list[list[int]] | None = None,
        scales: list[list[int]] | None = None,
    ) -> None:
        self._config = config
        self._words = words or [[]] * config.columns
        self._scales = scales or [[]] * config.columns
        self._control = control_layout(config)
        super().__init__(
            {
                "i": In(self._control),
                "o": Out(self._control),
                "i_fetch": In(fetch_layout(config)),
                "o_fetch": Out(fetch_layout(config)),
                "i_row": In(part_width(config)),
                "o_row": Out(part_width(config)),
                "load_addr": In((max(config.words, config.scales) - 1).bit_length()),
                "load_word": In(WORD_BITS),
                "load_word_en": In(config.columns),
                "load_scale": In(SCALE_BITS),
                "load_scale_en": In(config.columns),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        now = Signal(self._control, reset_less=True)
        m.d.sync += now.eq(self.i)
        m.d.comb += self.o.eq(now)

        sums, row_exp = self._columns(m, now)
        acc_bits = config.acc_bits
        m.submodules.accs = accs = Memory(shape=signed(acc_bits), depth=self.SLOTS, init=[])
        acc_write, acc_read = accs.write_port(), accs.read_port(domain="comb")
        acc = Signal(signed(acc_bits), name="before", reset_less=True)
        m.d.sync += acc.eq(Mux(now.first, 0, acc_read.data))
        for c, of_column in enumerate(sums):
            after = Signal(signed(acc_bits), name=f"acc{c}", reset_less=True)
            m.d.sync += after.eq(acc + of_column)
            acc = after
        m.d.comb += [
            acc_read.addr.eq(now.slot),
            acc_write.addr.eq(_later(m, now.slot, self.add_at(config) - self.SLOT_AT)),
            acc_write.data.eq(acc),
            acc_write.en.eq(now.add),
        ]

        self._leave(m, now, acc, row_exp)
        return m

    def _leave(self, m: Module, now: Signal, acc: Value, row_exp: Value) -> None:
        """Finished rows, and the chain on which they leave."""
        config, layout = self._config, result_layout(self._config)
        result = data.View(layout, Signal(layout.size, name="result"))
        # Not in block RAM: in a large array so little of it is left then that all else goes where that is.
        m.submodules.rows = rows = Memory(
            shape=layout.size,
            depth=self.SLOTS,
            init=[],
            attrs={"no_rw_check": 1, "ram_style": "distributed"},
        )
        write, read = rows.write_port(), rows.read_port()
        fetch = Signal(fetch_layout(config), reset_less=True)
        parts, width = config.array_clock, part_width(config)
        valid, passed = Signal(name="fetch_valid"), Signal(parts)  # parts that were this tile's
        m.d.sync += [fetch.eq(self.i_fetch), valid.eq(self.i_fetch.valid)]
        with m.If(valid):
            m.d.sync += passed.eq(Cat(fetch.here, passed))
        m.d.comb += [
            result.acc.eq(acc),
            result.row_exp.eq(row_exp),
            write.addr.eq(now.place),
            write.data.eq(result),
            write.en.eq(now.finish),
            read.addr.eq(self.i_fetch.slot),
            read.en.eq(1),
            self.o_fetch.eq(fetch),
            self.o_fetch.valid.eq(valid),
            self.o_fetch.here.eq(passed[-1]),
        ]
        # What is not wanted is reset to 0, which takes no logic, and an OR is less than a choice.
        row: Value = self.i_row
        for p in range(parts):
            part = Signal(width, name=f"part{p}", reset_less=True)
            m.d.sync += part.eq(Mux(fetch.here & (fetch.part == p), read.data[p * width :][:width], 0))
            row = row | part
        m.d.comb += self.o_row.eq(_later(m, row))

    def _columns(self, m: Module, now: Signal) -> tuple[list[Value], Value]:
        """Of each column the scaled sum, at t + ``SLOT_AT`` + 1 + column; the exponent that goes with acc."""
        config = self._config
        low = MANT_BITS - 1 + config.scale_shift_bits
        stored = data.StructLayout(
            {"mant": MANT_BITS - 1, "shift": config.scale_shift_bits, "row_exp": ROW_EXP_BITS}
        )
        # The columns' scales are at the same address, so one memory has them all.
        both = data.ArrayLayout(stored, config.columns)
        m.submodules.scales = scales = Memory(
            shape=both.size,
            depth=config.scales,
            init=[
                sum(self._narrow(entry) << stored.size * c for c, entry in enumerate(entries))
                for entries in zip(*self._scales, strict=True)
            ],
            attrs={"no_rw_check": 1},
        )
        write = scales.write_port(domain="load", granularity=stored.size)
        read = scales.read_port()
        entry = Cat(self.load_scale[:low], self.load_scale[MANT_BITS - 1 + SHIFT_BITS :])
        m.d.comb += [
            write.addr.eq(self.load_addr),
            write.data.eq(entry.replicate(config.columns)),
            write.en.eq(self.load_scale_en),
            read.addr.eq(now.scale),
            read.en.eq(1),
        ]
        scale = data.View(both, _later(m, read.data))
        exponent = _later(m, scale[0].row_exp, self.add_at(config) - self.SHIFT_AT)

        sums = []
        for c in range(config.columns):
            mine = now.columns[c]
            m.submodules[f"macro{c}"] = macro = LookupMacro(config.words, self._words[c])
            m.d.comb += [
                macro.addr.eq(_later(m, now.word, c)),
                macro.bank.eq(_later(m, now.bank, c)),
                macro.parity.eq(mine.parity),
                macro.offset.eq(mine.offset),
                macro.table.eq(mine.table),
                macro.write_addr.eq(self.load_addr),
                macro.write_data.eq(self.load_word),
                macro.write_en.eq(self.load_word_en[c]),
            ]
            of_column = data.View(stored, _later(m, Value.cast(scale[c]), c))
            sums.append(self._scaled(m, macro.sum, of_column, mine.shift))
        return sums, exponent

    def _scaled(self, m: Module, value: Value, scale: data.View, shift: Value) -> Value:
        """value * mant << (scale shift + shift): mantissa << low bits of the shift in one product, times the
        value in a second; the rest of the shift in two multiplexers, the second of which shares the
        accumulator's adder."""
        total = Signal(range(self._config.nibble_shift_max + 1), name="total", reset_less=True)
        m.d.sync += total.eq(scale.shift + shift)
        power = Signal(1 << self._FINE, name="power", reset_less=True)
        m.d.sync += power.eq(1 << total[: self._FINE])
        factor = Signal(MANT_BITS + (1 << self._FINE) - 1, name="factor", reset_less=True)
        m.d.sync += factor.eq(Cat(_later(m, scale.mant, 2), C(1, 1)) * power)
        product = Signal(signed(len(value) + len(factor)), name="product", reset_less=True)
        m.d.sync += product.eq(value * factor)
        coarse = _later(m, total[self._FINE :], 3)
        width = len(product) + (1 << self._FINE)
        by8 = Signal(signed(width), name="by8", reset_less=True)
        m.d.sync += by8.eq(Mux(coarse[0], product << (1 << self._FINE), product))
        far = _later(m, coarse[1]) if len(coarse) > 1 else C(0, 1)
        shifted = Signal(signed(self._config.acc_bits), name="shifted")
        m.d.comb += shifted.eq(Mux(far, by8 << (2 << self._FINE), by8))
        return shifted

    def _narrow(self, entry: int) -> int:
        """A scale entry of the image as it is stored here."""
        low = MANT_BITS - 1 + self._config.scale_shift_bits
        return entry & ((1 << low) - 1) | entry >> MANT_BITS - 1 + SHIFT_BITS << low


def _later(m: Module, value: Value, cycles: int = 1) -> Value:
    """``value``, so many cycles later."""
    for _ in range(cycles):
        q = Signal(value.shape(), name="later", reset_less=True)
        m.d.sync += q.eq(value)
        value = q
    return value
