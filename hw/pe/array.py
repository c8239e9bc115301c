"""The array: tiles that work in step on one activation block, under one sequencer."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.cim.macro import Decode
from hw.pe.drain import Drain, PassInfo, rows_layout
from hw.pe.reduction import Reduction
from hw.pe.sequencer import Sequencer, pass_layout, step_layout
from hw.pe.tile import Tile
from hw.sharing import shared
from sw_model.config import HardwareConfig
from sw_model.formats import SHIFT_BITS

__all__ = ["PeArray"]


class PeArray(wiring.Component):
    """``tiles`` tiles under one sequencer; rows leave in order, ``config.drain`` a cycle.

    Groups of 2**split neighbouring tiles share a row and split its blocks: with n = tiles / 2**split, row r
    of a pass is computed by group r mod n, and its block b by the group's tile b mod 2**split. The
    :class:`~hw.pe.reduction.Reduction` adds each group's sums, the :class:`~hw.pe.drain.Drain` puts the rows
    in line.

    Members
    -------
    i : stream of {job (:func:`pass_layout`), info (:data:`PassInfo`)}
    step, step_valid : what the sequencer reads in this cycle (activation buffers look at it)
    act, act_shift : the blocks for ``step``, one a column, ``Tile.ACT_AT`` cycles later
    o : stream of beats of rows (:func:`rows_layout`)
    active : every tile computes; ``reads``, ``computes``: of how many tiles that work on a block of the
        matrix a word is read, a nibble is multiplied; ``routed``: for a routed expert
    load : weight loading: tile, address, a word or a scale entry

    Latency: ``Tile.LATENCY`` + log2(columns) + 3 from a row's last word to its first result. Throughput: a
    word a cycle and tile, also where a pass of another split follows; a pass whose rows take fewer words than
    there are groups is bound by the drain.
    """

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
                "o": Out(stream.Signature(rows_layout(config))),
                "active": Out(1),
                "reads": Out(range(config.tiles + 1)),
                "computes": Out(range(config.tiles + 1)),
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
        m.submodules.drain = drain = Drain(config)
        wiring.connect(m, wiring.flipped(self.o), drain.o)
        m.d.comb += [
            sequencer.i.payload.eq(self.i.payload.job),
            sequencer.i.valid.eq(self.i.valid & drain.info.ready),
            sequencer.credit.eq(drain.credit),
            drain.info.payload.eq(self.i.payload.info),
            drain.info.valid.eq(self.i.valid & sequencer.i.ready),
            drain.start.eq(sequencer.start),
            self.i.ready.eq(sequencer.i.ready & drain.info.ready),
            self.step.eq(sequencer.o),
            self.step_valid.eq(sequencer.o_valid),
            self.active.eq(sequencer.o_valid),
            self.reads.eq(Mux(sequencer.o_valid & sequencer.o.read, sequencer.o.rows, 0)),
            self.computes.eq(Mux(sequencer.o_valid & sequencer.o.compute, sequencer.o.rows, 0)),
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
        m.d.comb += [
            reduction.split.eq(delayed(split, Tile.LATENCY)),
            drain.results.eq(reduction.o),
            drain.done.eq(delayed(row_done, reduction.latency)),
        ]
        for t in range(config.tiles):
            tile = Tile(config, self._words and self._words[t], self._scales and self._scales[t])
            # Tiles are alike but for the weights that they may wake up with.
            baked = self._words is not None
            m.submodules[f"tile{t}"] = tile if baked else shared(tile, "expertile_tile", platform)
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
                reduction.i[t].acc.eq(tile.acc),
                reduction.i[t].row_exp.eq(tile.row_exp),
            ]
        return m
