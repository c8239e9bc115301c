"""Block sequencer: matrix-vector passes to blocks of activations, each for a chunk of rows."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.cim.macro import FORMATS
from hw.pe.lookup_tile import LookupTile
from hw.pe.sequencer import pass_layout
from sw_model.config import HardwareConfig
from sw_model.formats import BLOCK, SHIFT_BITS
from sw_model.topology import SPLIT_BITS

__all__ = ["BlockSequencer", "block_layout", "read_layout", "read_width"]


def block_layout(config: HardwareConfig) -> data.StructLayout:
    """A block of activations and the words that it meets: word + step + slot * word_stride.

    word, scale : of the first slot; ``word_stride``, ``scale_stride`` from slot to slot
    last_slot, last_step : the last of each; ``last_cycle``: of a step, which may be longer than its slots
    first, last : of the rows' blocks
    act, shift : the activations (of :class:`~hw.pe.activations.ActivationBuffer`)
    """
    word, scale = (config.words - 1).bit_length(), (config.scales - 1).bit_length()
    return data.StructLayout(
        {
            "word": word,
            "scale": scale,
            "word_stride": word,
            "scale_stride": scale,
            "last_slot": 4,
            "last_cycle": 4,
            "last_step": 2,
            "first": 1,
            "last": 1,
            "shift": SHIFT_BITS,
            "act": 8 * BLOCK,
        }
    )


def read_layout(config: HardwareConfig) -> data.StructLayout:
    """Which part of which block is read in a buffer; ``end``, ``final``: its pass ends with it, it
    is the last of its token."""
    return data.StructLayout(
        {
            "from_h": 1,
            "bank": 1,
            "set": 2,
            "act": range(config.max_act_blocks),
            "word": 3,
            "split": SPLIT_BITS,
            "end": 1,
            "final": 1,
        }
    )


def read_width(config: HardwareConfig) -> int:
    """Elements that are read at a time: where columns have a block each, more, for they wait for all."""
    return max(4 * config.columns, config.drain)


class BlockSequencer(wiring.Component):
    """Loops chunk (up to 16 row slots, a row in every group of ``columns`` tiles), byte set, block, from the
    outside in. A row's blocks go to the tiles of its group in turn; where they do not go round, the last one
    is given to those that remain, whose weights are padding.

    Members
    -------
    i : stream of passes (:func:`~hw.pe.sequencer.pass_layout`)
    step, step_valid : a block is read (:func:`read_layout`), ``read_width`` elements a cycle
    o, o_valid : the block's work (:func:`block_layout` without activations, which are 0 here), with the last
        of its elements
    room : a block may be read
    cycles, words, rows, routed : with ``o_valid``: array cycles that the block will take together with those
        of the other columns, given with the first; macro words and rows of the matrix that it will meet; for
        a routed expert
    padding : with ``o_valid``: the block stands in for one that the matrix has not

    Throughput: ``read_width`` elements a cycle, less one cycle a chunk.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        most = LookupTile.SLOTS * 4
        super().__init__(
            {
                "i": In(stream.Signature(pass_layout(config))),
                "step": Out(read_layout(config)),
                "step_valid": Out(1),
                "o": Out(block_layout(config)),
                "o_valid": Out(1),
                "room": In(1),
                "cycles": Out(range(most + 1)),
                "words": Out(range(most * config.tiles + 1)),
                "rows": Out(range(LookupTile.SLOTS * config.tiles + 1)),
                "routed": Out(1),
                "padding": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        columns, slots = config.columns, LookupTile.SLOTS
        tiles = config.tiles // columns  # that have rows of their own
        job = Signal(pass_layout(config))
        running, ready = Signal(), Signal()
        left, block, low = Signal.like(job.rows), Signal.like(job.blocks), Signal()  # rows left; counters
        column, last_column, padding = Signal(), Signal(init=1), Signal()
        going, part = Signal(), Signal(range(BLOCK // read_width(config)))  # elements of the block
        word, chunk_word = Signal.like(job.word), Signal.like(job.word)
        scale, chunk_scale = Signal.like(job.scale), Signal.like(job.scale)

        lanes = Signal(2)  # log2 of the nibbles of a weight
        with m.Switch(job.format):
            for code, (steps, words, _) in FORMATS.items():
                if steps == words:
                    with m.Case(code):
                        m.d.comb += lanes.eq(words.bit_length() - 1)

        # floor(n / tiles) = n * reciprocal >> places, exact for n < slots * tiles.
        places = (slots * tiles * tiles - 1).bit_length()
        reciprocal = -(-(1 << places) // tiles)
        rest = Signal(range(slots * tiles))
        full, last_slot, rows = Signal(), Signal(4), Signal(range(slots * tiles + 1))
        m.d.comb += rest.eq(left - 1)
        with m.If(~ready):
            m.d.sync += [
                full.eq(left > slots * tiles),
                last_slot.eq(Mux(left > slots * tiles, slots - 1, (rest * reciprocal) >> places)),
                rows.eq(Mux(left > slots * tiles, slots * tiles, left)),
            ]

        stride, entries, last = Signal.like(job.word), Signal.like(job.blocks), Signal()
        if columns > 1:
            m.d.comb += last_column.eq(column)
        last_block, last_set, step, finish = (
            Signal(name=n) for n in ("last_block", "last_set", "issue", "end")
        )
        m.d.comb += [
            entries.eq((job.blocks + columns - 1) >> (columns - 1)),
            stride.eq(entries << lanes),
            last.eq(last_block & last_column),
            last_set.eq(low == job.wide),
            going.eq(running & ready & (self.room | (part != 0))),
            step.eq(going & (part == BLOCK // read_width(config) - 1)),
            finish.eq(step & last & last_set & ~full),
            self.i.ready.eq(~running | finish),
        ]
        # A register, since what the scheduler does next hangs on it; it is looked at with the block's last
        # elements, cycles after the counter moved.
        m.d.sync += last_block.eq(block == job.blocks - 1)
        m.d.sync += [
            self.step_valid.eq(going),
            self.step.word.eq(part),
            self.o_valid.eq(step),
            self.step.from_h.eq(job.from_h),
            self.step.bank.eq(job.bank),
            self.step.set.eq(Mux(job.wide, 1 + low, 0)),
            self.step.act.eq(job.act + block),
            self.step.split.eq(job.split),
            self.step.end.eq(finish),
            self.step.final.eq(job.final),
            self.o.word.eq(word),
            self.o.scale.eq(scale),
            self.o.word_stride.eq(stride),
            self.o.scale_stride.eq(entries),
            self.o.last_slot.eq(last_slot),
            self.o.last_cycle.eq(Mux(last_slot < LookupTile.APART - 1, LookupTile.APART - 1, last_slot)),
            self.o.last_step.eq((1 << lanes) - 1),
            self.o.first.eq((block < columns) & ~low),
            self.o.last.eq(last & last_set),
            self.cycles.eq(Mux(column == 0, (last_slot + 1) << lanes, 0)),
            self.words.eq(Mux(padding, 0, rows << lanes)),
            self.rows.eq(Mux(padding, 0, rows)),
            self.padding.eq(padding),
            self.routed.eq(job.routed),
        ]
        with m.If(running):
            m.d.sync += ready.eq(1)
        with m.If(going):
            m.d.sync += part.eq(part + 1)  # as many as a power of two
        with m.If(step):
            m.d.sync += [column.eq(~last_column), padding.eq(last_block & ~last_column)]
            with m.If(~last_block | last_column):
                m.d.sync += block.eq(block + 1)
            with m.If(last_column):
                m.d.sync += [word.eq(word + (1 << lanes)), scale.eq(scale + 1)]
            with m.If(last):
                m.d.sync += [block.eq(0), word.eq(chunk_word), scale.eq(chunk_scale), low.eq(1)]
                with m.If(last_set):  # the next chunk
                    next_word, next_scale = Signal.like(word), Signal.like(scale)
                    m.d.comb += [
                        next_word.eq(chunk_word + (stride << 4)),
                        next_scale.eq(chunk_scale + (entries << 4)),
                    ]
                    m.d.sync += [
                        low.eq(0),
                        ready.eq(0),
                        left.eq(left - slots * tiles),
                        word.eq(next_word),
                        chunk_word.eq(next_word),
                        scale.eq(next_scale),
                        chunk_scale.eq(next_scale),
                    ]
        with m.If(finish):
            m.d.sync += running.eq(0)
        with m.If(self.i.valid & self.i.ready):
            p = self.i.payload
            m.d.sync += [
                job.eq(p),
                running.eq(1),
                ready.eq(0),
                left.eq(p.rows),
                block.eq(0),
                low.eq(0),
                word.eq(p.word),
                chunk_word.eq(p.word),
                scale.eq(p.scale),
                chunk_scale.eq(p.scale),
            ]
        return m
