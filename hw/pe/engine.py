"""Engine: blocks of activations swept over the weights of a chunk of rows, on a chain of lookup tiles."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.cim.tables import GROUPS, OFFSET_BITS, PARITY, BlockSums, TableGenerator
from hw.pe.blocks import block_layout
from hw.pe.drain import result_layout
from hw.pe.lookup_tile import LookupTile, control_layout, fetch_layout
from hw.sharing import shared
from sw_model.config import HardwareConfig
from sw_model.formats import NIBBLE, SHIFT_BITS

__all__ = ["Engine"]


class Engine(wiring.Component):
    """For each block, or ``columns`` blocks at once: its tables are written; then, step by step (a nibble of
    the weights each), every slot of the chunk takes a cycle in every tile, a cycle later from tile to
    tile.

    The next block's tables are written, into the other bank, while a block is used. The chunk's last step
    starts when there is room for its rows among the finished ones. These leave on ``drain`` chains of tiles,
    each in as many cycles as the core's has; tile ``k * drain + j`` is number k of chain j.

    Members
    -------
    i : stream of blocks (:func:`~hw.pe.blocks.block_layout`)
    o, o_valid : ``drain`` rows of neighbouring tiles (:func:`~hw.pe.drain.result_layout`), tile 0 first;
        to be taken at once
    level : beats that wait behind ``o``; there is room for ``DEPTH``
    load_* : weight loading, in the domain "load"

    Throughput: a word a cycle and tile; a block (of each column) takes at least 8 cycles (its tables), a step
    at least ``LookupTile.APART``.
    """

    DEPTH = 16
    _WAYS = 2  # registers on the way to the chains, and from them

    def __init__(
        self,
        config: HardwareConfig,
        words: list[list[int]] | None = None,
        scales: list[list[int]] | None = None,
    ) -> None:
        self._config = config
        self._words = words
        self._scales = scales
        super().__init__(
            {
                "i": In(stream.Signature(block_layout(config))),
                "o": Out(data.ArrayLayout(result_layout(config), config.drain)),
                "o_valid": Out(1),
                "level": In(range(self.DEPTH + 1)),
                "load_tile": In(max(1, (config.tiles - 1).bit_length())),
                "load_addr": In(32),
                "load_word": In(128),
                "load_word_en": In(1),
                "load_scale": In(32),
                "load_scale_en": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, at = self._config, LookupTile
        columns = config.columns
        m.submodules.sums = sums = BlockSums()
        tables = [TableGenerator() for _ in range(columns)]
        for c, table in enumerate(tables):
            m.submodules[f"tables{c}"] = table

        def later(value: Value, cycles: int, reset_less: bool = True) -> Value:
            for _ in range(cycles):
                q = Signal(value.shape(), name="later", reset_less=reset_less)
                m.d.sync += q.eq(value)
                value = q
            return value

        # The blocks whose tables are written, one a column, then those in use.
        head = self.i.payload
        following, now = (
            Signal(block_layout(config), reset_less=True),
            Signal(block_layout(config), reset_less=True),
        )
        # The last column's comes with `following`.
        firsts = [Signal(SHIFT_BITS, name=f"first{c}", reset_less=True) for c in range(columns - 1)]
        waiting, running = Signal(), Signal()
        settled, age, written = Signal(2), Signal(3), Signal()
        fill = Signal()  # bank of the next blocks
        swap, load, whole = Signal(), Signal(), Signal()
        column = Signal(range(columns + 1))  # whose tables come next
        m.d.comb += [
            load.eq(self.i.valid & (settled == 2) & ~waiting),
            whole.eq(load & (column == columns - 1)),
            self.i.ready.eq(load),
        ]
        m.d.comb += sums.act.eq(head.act)
        for c, table in enumerate(tables):
            m.d.comb += [
                table.act.eq(head.act),
                table.sums.eq(sums.o),
                table.load.eq(load & (column == c)),
                table.bank.eq(fill),
            ]
        for c, first in enumerate(firsts):
            with m.If(load & (column == c)):
                m.d.sync += first.eq(head.shift)
        with m.If(load | ~self.i.valid):
            m.d.sync += settled.eq(0)
        with m.Elif(settled != 2):
            m.d.sync += settled.eq(settled + 1)
        with m.If(load):
            m.d.sync += column.eq(column + 1)
        with m.If(whole):
            m.d.sync += [following.eq(head), waiting.eq(1), fill.eq(~fill), column.eq(0)]
            m.d.sync += [age.eq(0), written.eq(0)]
        with m.Elif(age != 7):
            m.d.sync += [age.eq(age + 1), written.eq(waiting & (age >= 5))]

        # Sweep.
        step, index = Signal(2), Signal(4)
        word, step_word = (Signal.like(now.word, name=n, reset_less=True) for n in ("word", "step_word"))
        scale = Signal.like(now.scale, reset_less=True)
        bank = Signal(reset_less=True)
        shifts = [Signal(SHIFT_BITS, name=f"shift{c}", reset_less=True) for c in range(columns)]
        parities = [Signal(PARITY, name=f"parity{c}", reset_less=True) for c in range(columns)]
        offsets = [Signal(signed(OFFSET_BITS), name=f"offset{c}", reset_less=True) for c in range(columns)]
        last_step, last_cycle, end = Signal(), Signal(), Signal()
        m.d.comb += [last_step.eq(step == now.last_step), end.eq(last_step & last_cycle)]
        # A step is longer than a cycle.
        m.d.sync += last_cycle.eq(running & ~last_cycle & (index + 1 == now.last_cycle))
        # What goes to the tiles later than addresses do is taken and counted a cycle later.
        swapped, stepped = later(swap, 1, False), later(running & last_cycle, 1)
        later_step = later(last_step, 1)
        with m.If(running):
            m.d.sync += [
                index.eq(index + 1),
                word.eq(word + now.word_stride),
                scale.eq(scale + now.scale_stride),
            ]
            with m.If(last_cycle):
                m.d.sync += [
                    index.eq(0),
                    step.eq(step + 1),
                    word.eq(step_word),
                    step_word.eq(step_word + 1),
                    scale.eq(now.scale),
                ]
            with m.If(end):
                m.d.sync += running.eq(0)
        with m.If(swap):
            m.d.sync += [
                now.eq(following),
                waiting.eq(0),
                running.eq(1),
                index.eq(0),
                step.eq(0),
                word.eq(following.word),
                step_word.eq(following.word + 1),
                scale.eq(following.scale),
            ]
        with m.If(stepped):
            m.d.sync += [shift.eq(shift - NIBBLE) for shift in shifts]
        with m.If(swapped):
            m.d.sync += bank.eq(~fill)
            for c, first in enumerate((*firsts, following.shift)):
                m.d.sync += [
                    shifts[c].eq(first + Cat(C(0, 2), following.last_step)),
                    parities[c].eq(tables[c].parity),
                    offsets[c].eq(tables[c].offset),
                ]

        # Rows: places among the finished ones, kept from the start of their chunk's last block.
        valid, finish = Signal(), Signal()
        place = Signal(4)
        m.d.comb += [valid.eq(running & (index <= now.last_slot)), finish.eq(valid & now.last & last_step)]
        m.d.sync += place.eq(place + finish)

        control = Signal(control_layout(config))
        add_at = at.add_at(config)
        m.d.comb += [
            control.word.eq(word),
            control.bank.eq(later(bank, at.TABLE_AT - 1)),
            control.scale.eq(later(scale, at.SCALE_AT)),
            control.slot.eq(later(index, at.SLOT_AT)),
            control.first.eq(later(now.first & (step == 0), at.SLOT_AT)),
            control.add.eq(later(valid, add_at)),
            control.place.eq(later(place, add_at)),
            control.finish.eq(later(finish, add_at)),
        ]
        for c in range(columns):
            mine = control.columns[c]
            # A nibble's half-way marks: of the last one, and of the first one (see LookupMacro).
            odd = later(sum(~parities[c][g].even for g in range(GROUPS))[: GROUPS.bit_length()], 1)
            offset = later(Mux(later_step, offsets[c], 0), 1) + Mux(later(step == 0, 2), odd << 3, 0)
            m.d.comb += [
                mine.parity.eq(later(Value.cast(parities[c]), at.TABLE_AT + c - 1)),
                mine.shift.eq(later(shifts[c], at.SHIFT_AT + c - 1)),
                mine.offset.eq(later(offset, at.OFFSET_AT + c - 2)),
                mine.table.eq(tables[c].write),
            ]
        fetch, rows = self._tiles(m, control, platform)
        self._fetch(m, fetch, finish, swap, following, waiting & written & (~running | end), later)
        for lane, row in enumerate(rows):  # a part in each cycle, the lowest first
            part = later(row, self._WAYS)
            parts = [part]
            for _ in range(config.array_clock - 1):
                parts.insert(0, later(parts[0], 1))
            m.d.comb += Value.cast(self.o[lane]).eq(Cat(parts))
        return m

    def _tiles(self, m: Module, control: Signal, platform: object) -> tuple[Signal, list]:
        """The tiles in a row, and in chains for their rows; gives the chains' ends."""
        config = self._config
        n, columns = config.drain, config.columns
        length = config.tiles // columns // n
        fetch = way = Signal(fetch_layout(config))
        for _ in range(self._WAYS):
            q = Signal(fetch_layout(config), name="way")
            m.d.sync += q.eq(way)
            way = q
        ends = []
        tile = None
        for j in range(n):
            for k in range(length):
                t = k * n + j
                mine = slice(columns * t, columns * (t + 1))
                before = tile
                tile = LookupTile(
                    config, self._words and self._words[mine], self._scales and self._scales[mine]
                )
                # Tiles are alike but for the weights that they may wake up with.
                baked = self._words is not None
                module = tile if baked else shared(tile, "expertile_tile", platform, ("load",))
                m.submodules[f"tile{t}"] = module
                m.d.comb += [
                    tile.i.eq(control if before is None else before.o),
                    tile.i_fetch.eq(way if k == 0 else before.o_fetch),
                    tile.i_row.eq(0 if k == 0 else before.o_row),
                    tile.load_addr.eq(self.load_addr),
                    tile.load_word.eq(self.load_word),
                    tile.load_scale.eq(self.load_scale),
                    *[
                        en[c].eq(all_en & (self.load_tile == columns * t + c))
                        for en, all_en in (
                            (tile.load_word_en, self.load_word_en),
                            (tile.load_scale_en, self.load_scale_en),
                        )
                        for c in range(columns)
                    ],
                ]
            ends.append(tile.o_row)
        return fetch, ends

    def _fetch(
        self, m: Module, fetch: Signal, finish: Signal, swap: Signal, following: Signal, can: Value, later
    ) -> None:
        """Which finished row leaves when; whether the next block may start."""
        config, slots = self._config, LookupTile.SLOTS
        tiles = config.tiles // config.columns
        length = tiles // config.drain
        kept, stored = Signal(range(slots + 1)), Signal(range(slots + 1))  # places in use; with whole groups
        issue, begin, last_hop, last_part, freed, fits = (
            Signal(name=n) for n in ("issue", "begin", "last_hop", "last_part", "freed", "fits")
        )
        hops, slot, part = Signal(range(length)), Signal(4), Signal(fetch.part.shape())
        under_way = Signal(range(self.DEPTH + 1))
        room = Signal()
        # From a word's address to where the furthest chain's first tile may fetch its row.
        wait = max(1, LookupTile.add_at(config) + tiles - length - self._WAYS)
        m.d.comb += [
            swap.eq(can & (~following.last | fits)),
            last_hop.eq(hops == length - 1),
            last_part.eq(part == config.array_clock - 1),
            begin.eq((stored != 0) & room & (part == 0)),
            issue.eq(begin | (part != 0)),
            freed.eq(issue & last_part & last_hop),
        ]
        m.d.sync += [
            fits.eq(kept + following.last_slot < slots),
            kept.eq(kept + Mux(swap & following.last, following.last_slot + 1, 0) - freed),
            stored.eq(stored + later(finish, wait, False) - freed),
            fetch.valid.eq(issue),
            fetch.here.eq(hops == 0),
            fetch.part.eq(part),
            fetch.slot.eq(slot),
            # A beat may be in neither number for two cycles, and one more be issued before this one counts.
            room.eq(under_way + self.level + begin < self.DEPTH - 2),
            under_way.eq(under_way + begin - self.o_valid),
            self.o_valid.eq(later(issue & last_part, length + 2 * self._WAYS + 2, False)),
        ]
        with m.If(issue):
            m.d.sync += part.eq(Mux(last_part, 0, part + 1))
            with m.If(last_part):
                m.d.sync += hops.eq(hops + 1)
                with m.If(last_hop):
                    m.d.sync += [hops.eq(0), slot.eq(slot + 1)]
