"""The array: tiles that work in step on one activation block, and the drain that lines their rows up."""

from amaranth.hdl import Array as Choice
from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.cim.macro import Decode
from hw.pe.reduction import Reduction, sum_layout
from hw.pe.sequencer import Sequencer, pass_layout, step_layout
from hw.pe.tile import Tile
from sw_model.config import HardwareConfig
from sw_model.formats import ROW_EXP_BITS, SHIFT_BITS, TOP_BITS
from sw_model.tables import WEIGHT_BITS
from sw_model.topology import SPLIT_BITS

__all__ = ["Kind", "PassInfo", "PeArray", "row_layout"]


class Kind(enum.Enum, shape=2):
    """What a pass computes, hence who takes its rows."""

    ROUTER = 0
    GATE_UP = 1
    DOWN = 2


#: What goes with the rows of a pass: ``base`` is the activations' exponent less ROW_EXP_BIAS; ``weight``,
#: ``first`` and ``final`` serve the combine; ``split`` the drain.
PassInfo = data.StructLayout(
    {
        "kind": Kind,
        "rows": 16,
        "base": signed(TOP_BITS + 1),
        "weight": WEIGHT_BITS,
        "first": 1,
        "final": 1,
        "split": SPLIT_BITS,
    }
)


def row_layout(config: HardwareConfig) -> data.StructLayout:
    """One row result: acc * 2**(row_exp + info.base); ``index`` in its matrix, ``last`` of it."""
    return data.StructLayout(
        {
            "acc": signed(config.acc_bits),
            "row_exp": ROW_EXP_BITS,
            "index": 16,
            "last": 1,
            "info": PassInfo,
        }
    )


class PeArray(wiring.Component):
    """``tiles`` tiles under one sequencer; rows leave in order, one a cycle.

    Groups of 2**split neighbouring tiles share a row and split its blocks: with n = tiles / 2**split, row r
    of a pass is computed by group r mod n, and its block b by the group's tile b mod 2**split. When all have
    finished a row, their sums move into a small store; a new row starts only when there is room for it, so
    the tiles never stall midway.

    Members
    -------
    i : stream of {job (:func:`pass_layout`), info (:data:`PassInfo`)}
    step, step_valid : what the sequencer reads in this cycle (activation buffers look at it)
    act, act_shift : the blocks for ``step``, one a column, ``Tile.ACT_AT`` cycles later
    o : stream of rows (:func:`row_layout`)
    active : every tile computes; ``active_rows``: of how many tiles it is a block of the matrix; ``reads``,
        ``computes``: a word is read, a nibble is multiplied; ``routed``: for a routed expert
    load : weight loading: tile, address, a word or a scale entry

    Latency: ``Tile.LATENCY`` + log2(columns) + 3 from a row's last word to its first result. Throughput: a
    word a cycle and tile, also where a pass of another split follows; a pass whose rows take fewer words than
    there are groups is bound by the drain.
    """

    GROUPS = 8  # covers the latency from a row's start to its drain where rows take four steps

    def __init__(
        self,
        config: HardwareConfig,
        words: list[list[int]] | None = None,
        scales: list[list[int]] | None = None,
    ) -> None:
        self._config = config
        self._words = words
        self._scales = scales
        tile_bits = max(1, (config.tiles - 1).bit_length())
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"job": pass_layout(config), "info": PassInfo}))),
                "step": Out(step_layout(config)),
                "step_valid": Out(1),
                "act": In(256 * config.columns),
                "act_shift": In(SHIFT_BITS * config.columns),
                "o": Out(stream.Signature(row_layout(config))),
                "active": Out(1),
                "active_rows": Out(range(config.tiles + 1)),
                "reads": Out(1),
                "computes": Out(1),
                "routed": Out(1),
                "load_tile": In(tile_bits),
                "load_addr": In(32),
                "load_word": In(128),
                "load_word_en": In(1),
                "load_scale": In(32),
                "load_scale_en": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.submodules.sequencer = sequencer = Sequencer(config)
        m.submodules.infos = infos = SyncFIFO(width=PassInfo.size, depth=self.GROUPS)
        m.d.comb += [
            sequencer.i.payload.eq(self.i.payload.job),
            sequencer.i.valid.eq(self.i.valid & infos.w_rdy),
            infos.w_data.eq(self.i.payload.info),
            infos.w_en.eq(self.i.valid & sequencer.i.ready),
            self.i.ready.eq(sequencer.i.ready & infos.w_rdy),
            self.step.eq(sequencer.o),
            self.step_valid.eq(sequencer.o_valid),
            self.active.eq(sequencer.o_valid),
            self.active_rows.eq(sequencer.o.rows),
            self.reads.eq(sequencer.o_valid & sequencer.o.read),
            self.computes.eq(sequencer.o_valid & sequencer.o.compute),
            self.routed.eq(sequencer.o_valid & sequencer.o.routed),
        ]

        # One shared delay line times the tiles' controls.
        step, valid = sequencer.o, sequencer.o_valid

        def delayed(value: Signal, cycles: int) -> Signal:
            for _ in range(cycles):
                later = Signal.like(value, name="delayed")
                m.d.sync += later.eq(value)
                value = later
            return value

        def flag(expression: object, cycles: int, name: str) -> Signal:
            now = Signal(name=name)
            m.d.comb += now.eq(expression)
            return delayed(now, cycles)

        decoding = Signal(data.StructLayout({"step": 3, "decode": Decode}))
        m.d.comb += [decoding.step.eq(step.step), decoding.decode.eq(step.decode)]
        decoding = delayed(decoding, Tile.DECODE_AT)
        start_block = flag(step.step == 0, Tile.BLOCK_AT, "start_block")
        add = flag(valid & step.last_step, Tile.ADD_AT, "add")
        start_row = flag(step.first_block, Tile.ADD_AT, "start_row")
        row_done = flag(valid & step.last_step & step.last_block, Tile.LATENCY, "row_done")
        split = Signal.like(step.split, name="split")
        m.d.comb += split.eq(step.split)
        scale_now = Signal.like(step.scale, name="scale_now")
        m.d.comb += scale_now.eq(step.scale)
        scale_addr = delayed(scale_now, Tile.SCALE_AT)
        act_shift = delayed(self.act_shift, Tile.SHIFT_AT - Tile.ACT_AT)

        m.submodules.reduction = reduction = Reduction(config)
        m.d.comb += reduction.split.eq(delayed(split, Tile.LATENCY))
        for t in range(config.tiles):
            tile = Tile(config, self._words and self._words[t], self._scales and self._scales[t])
            m.submodules[f"tile{t}"] = tile
            mine, column = self.load_tile == t, t % config.columns
            m.d.comb += [
                tile.word_addr.eq(step.word),
                tile.word_en.eq(valid & step.read),
                tile.act.eq(self.act.word_select(column, 256)),
                tile.step.eq(decoding.step),
                tile.decode.eq(decoding.decode),
                tile.scale_addr.eq(scale_addr),
                tile.start_block.eq(start_block),
                tile.act_shift.eq(act_shift.word_select(column, SHIFT_BITS)),
                tile.add.eq(add),
                tile.start_row.eq(start_row),
                tile.load_word_addr.eq(self.load_addr),
                tile.load_word.eq(self.load_word),
                tile.load_word_en.eq(self.load_word_en & mine),
                tile.load_scale_addr.eq(self.load_addr),
                tile.load_scale.eq(self.load_scale),
                tile.load_scale_en.eq(self.load_scale_en & mine),
            ]
            m.d.comb += [reduction.i[t].acc.eq(tile.acc), reduction.i[t].row_exp.eq(tile.row_exp)]

        self._drain(m, sequencer, infos, delayed(row_done, reduction.latency), reduction.o)
        return m

    def _drain(
        self, m: Module, sequencer: Sequencer, infos: SyncFIFO, row_done: Signal, results: data.View
    ) -> None:
        config = self._config
        one = sum_layout(config)
        m.submodules.groups = groups = Memory(shape=config.tiles * one.size, depth=self.GROUPS, init=[])
        write, read = groups.write_port(), groups.read_port(domain="comb")
        stored, started = Signal(range(self.GROUPS + 1)), Signal(range(self.GROUPS + 1))
        freed = Signal()
        m.d.comb += [
            write.data.eq(results),
            write.en.eq(row_done),
            sequencer.credit.eq(started != self.GROUPS),
        ]
        m.d.sync += [
            write.addr.eq(write.addr + row_done),
            read.addr.eq(read.addr + freed),
            stored.eq(stored + row_done - freed),
            started.eq(started + sequencer.start - freed),
        ]

        info = data.View(PassInfo, infos.r_data)
        tile = Signal(range(max(2, config.tiles)))
        index = Signal(16)
        last = Signal()
        chosen = data.View(one, Choice(read.data.word_select(t, one.size) for t in range(config.tiles))[tile])
        m.d.comb += last.eq(index == info.rows - 1)
        with m.If(~self.o.valid | self.o.ready):
            m.d.sync += self.o.valid.eq(stored != 0)
            with m.If(stored != 0):
                m.d.sync += [
                    self.o.payload.acc.eq(chosen.acc),
                    self.o.payload.row_exp.eq(chosen.row_exp),
                    self.o.payload.index.eq(index),
                    self.o.payload.last.eq(last),
                    self.o.payload.info.eq(info),
                    tile.eq(tile + 1),
                    index.eq(index + 1),
                ]
                m.d.comb += freed.eq(last | (tile == (config.tiles >> info.split) - 1))
                with m.If(freed):
                    m.d.sync += tile.eq(0)
                with m.If(last):
                    m.d.sync += index.eq(0)
                    m.d.comb += infos.r_en.eq(1)
