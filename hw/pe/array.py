"""The array: tiles that work in step on one activation block, under one sequencer."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.cim.macro import Decode
from hw.cim.serial import BitSerial
from hw.pe.drain import Drain, info_layout, rows_layout
from hw.pe.reduction import Reduction
from hw.pe.sequencer import Sequencer, pass_layout, step_layout
from hw.pe.tile import Tile
from hw.sharing import shared
from sw_model.config import HardwareConfig
from sw_model.formats import ACT8_BITS, BLOCK, NIBBLE, SHIFT_BITS

__all__ = ["PeArray"]


class PeArray(wiring.Component):
    """``tiles`` tiles under one sequencer; rows leave in order, ``config.drain`` a cycle.

    Groups of 2**split neighbouring tiles share a row and split its blocks: with n = tiles / 2**split, row r
    of a pass is computed by group r mod n, and its block b by the group's tile b mod 2**split. The
    :class:`~hw.pe.reduction.Reduction` adds each group's sums, the :class:`~hw.pe.drain.Drain` puts the rows
    in line.

    Members
    -------
    i : stream of {job (:func:`pass_layout`), info (:func:`~hw.pe.drain.info_layout`)}
    step, step_valid : what the sequencer reads in this cycle (activation buffers look at it)
    act, act_shift : the blocks for ``step``, one a column, ``act_at`` cycles later
    o : stream of beats of rows (:func:`rows_layout`)
    active : every tile computes; ``reads``, ``computes``, ``sums``: of how many tiles that work on a block of
        the matrix a word is read, a nibble is multiplied, once a step, and the block's sum is finished;
        ``act_reads``: blocks that are read from an activation buffer; ``routed``: every tile computes for a
        routed expert
    load : weight loading: tile, address, a word or a scale entry

    Attributes
    ----------
    act_at : see ``act``
    latency : from the last cycle of a row's last step to its result at the drain

    Throughput: a word a tile every ``Tile.step_cycles``, also where a pass of another split follows; a pass
    whose rows take fewer cycles than there are groups is bound by the drain.
    """

    def __init__(
        self,
        config: HardwareConfig,
        words: list[list[int]] | None = None,
        scales: list[list[int]] | None = None,
    ) -> None:
        self._config = config
        self._baked = words is not None
        self._tiles = [Tile(config, words and words[t], scales and scales[t]) for t in range(config.tiles)]
        tile = self._tiles[0]
        self._reduction = Reduction(config)
        self.act_at = tile.act_at - (BitSerial.LATENCY if config.body == "asic" else 0)
        self.latency = tile.latency + self._reduction.latency
        tile_bits = max(1, (config.tiles - 1).bit_length())
        super().__init__(
            {
                "i": In(
                    stream.Signature(
                        data.StructLayout({"job": pass_layout(config), "info": info_layout(config)})
                    )
                ),
                "step": Out(step_layout(config)),
                "step_valid": Out(1),
                "act": In(256 * config.columns),
                "act_shift": In(SHIFT_BITS * config.columns),
                "o": Out(stream.Signature(rows_layout(config))),
                "active": Out(1),
                "reads": Out(range(config.tiles + 1)),
                "computes": Out(range(config.tiles + 1)),
                "sums": Out(range(config.tiles + 1)),
                "act_reads": Out(range(config.columns + 1)),
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
        timing = self._tiles[0]
        m.submodules.sequencer = sequencer = Sequencer(config, timing.step_cycles)
        m.submodules.drain = drain = Drain(config)
        wiring.connect(m, wiring.flipped(self.o), drain.o)
        step, valid = sequencer.o, sequencer.o_valid
        begin = valid & step.first
        end_block = valid & step.last & step.last_step
        m.d.comb += [
            sequencer.i.payload.eq(self.i.payload.job),
            sequencer.i.valid.eq(self.i.valid & drain.info.ready),
            sequencer.credit.eq(drain.credit),
            drain.info.payload.eq(self.i.payload.info),
            drain.info.valid.eq(self.i.valid & sequencer.i.ready),
            drain.start.eq(sequencer.start),
            self.i.ready.eq(sequencer.i.ready & drain.info.ready),
            self.step.eq(step),
            self.step_valid.eq(valid),
            self.active.eq(valid),
            self.reads.eq(Mux(begin & step.read, step.rows, 0)),
            self.computes.eq(Mux(begin & step.compute, step.rows, 0)),
            self.sums.eq(Mux(end_block, step.rows, 0)),
            self.act_reads.eq(Mux(begin & (step.step == 0), step.acts, 0)),
            self.routed.eq(valid & step.routed),
        ]

        # One shared delay line times the tiles' controls.

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
        decoding = delayed(decoding, timing.decode_at)
        fetch = Signal(data.StructLayout({"addr": step.word.shape(), "en": 1}))
        m.d.comb += [fetch.addr.eq(step.word), fetch.en.eq(begin & step.read)]
        fetch = delayed(fetch, timing.read_at)
        start_block = flag(step.step == 0, timing.block_at, "start_block")
        end_step = flag(valid & step.last, timing.block_at, "end_step")
        add = flag(end_block, timing.add_at, "add")
        start_row = flag(step.first_block, timing.add_at, "start_row")
        row_done = flag(end_block & step.last_block, timing.latency, "row_done")
        split = Signal.like(step.split, name="split")
        m.d.comb += split.eq(step.split)
        scale_now = Signal.like(step.scale, name="scale_now")
        m.d.comb += scale_now.eq(step.scale)
        scale_addr = delayed(scale_now, timing.scale_at)
        # High nibbles alone come in eighths; acc_bits bounds the spread, so that SHIFT_BITS do.
        high = flag(step.decode == Decode.HIGH, self.act_at, "high")
        act_shift = Signal.like(self.act_shift)
        for c in range(config.columns):
            shift = self.act_shift.word_select(c, SHIFT_BITS)
            m.d.comb += act_shift.word_select(c, SHIFT_BITS).eq(shift + Mux(high, NIBBLE - 1, 0))
        act_shift = delayed(act_shift, timing.shift_at - self.act_at)

        m.submodules.reduction = reduction = self._reduction
        m.d.comb += [
            reduction.split.eq(delayed(split, timing.latency)),
            drain.results.eq(reduction.o),
            drain.done.eq(delayed(row_done, reduction.latency)),
        ]
        blocks = [self.act.word_select(c, ACT8_BITS * BLOCK) for c in range(config.columns)]
        if config.body == "asic":
            load = flag(step.first, self.act_at, "load")
            pieces = [BitSerial(config.act_bits) for _ in blocks]
            for c, (piece, block) in enumerate(zip(pieces, blocks, strict=True)):
                m.submodules[f"pieces{c}"] = piece
                m.d.comb += [piece.act.eq(block), piece.load.eq(load)]
            m.d.comb += [
                tile.first.eq(pieces[t % config.columns].first) for t, tile in enumerate(self._tiles)
            ]
            blocks = [piece.piece for piece in pieces]
        for t, tile in enumerate(self._tiles):
            # Tiles are alike but for the weights that they may wake up with.
            m.submodules[f"tile{t}"] = tile if self._baked else shared(tile, "expertile_tile", platform)
            mine, column = self.load_tile == t, t % config.columns
            m.d.comb += [
                tile.word_addr.eq(fetch.addr),
                tile.word_en.eq(fetch.en),
                tile.act.eq(blocks[column]),
                tile.step.eq(decoding.step),
                tile.decode.eq(decoding.decode),
                tile.scale_addr.eq(scale_addr),
                tile.start_block.eq(start_block),
                tile.end_step.eq(end_step),
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
