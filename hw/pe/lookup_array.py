"""The array with macros of body "lut": blocks of activations stay, rows pass by."""

from amaranth.hdl import Cat, DomainRenamer, Module, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import AsyncFIFO, FIFOInterface, SyncFIFO
from amaranth.lib.wiring import In, Out

from hw.pe.activations import ActivationBuffer
from hw.pe.beats import Beats
from hw.pe.block_ram_fifo import BlockRamFIFO
from hw.pe.blocks import BlockSequencer, block_layout, read_layout, read_width
from hw.pe.drain import info_layout, rows_layout
from hw.pe.engine import Engine
from hw.pe.sequencer import pass_layout
from sw_model.config import HardwareConfig
from sw_model.formats import BLOCK, SHIFT_BITS

__all__ = ["ARRAY_DOMAIN", "LookupArray"]

ARRAY_DOMAIN = "cim"


class LookupArray(wiring.Component):
    """A drop-in for :class:`~hw.pe.array.PeArray`, with the engine in a clock domain of its own where
    ``config.array_clock`` is above 1.

    Members
    -------
    i : stream of {job (:func:`~hw.pe.sequencer.pass_layout`), info (:func:`~hw.pe.drain.info_layout`)}
    step, step_valid : the elements that are read in this cycle (:func:`~hw.pe.blocks.read_layout`)
    act, act_shift : these :func:`~hw.pe.blocks.read_width` elements, ``act_at`` cycles later
    o : stream of beats of rows (:func:`~hw.pe.drain.rows_layout`)
    active, reads, computes, sums, routed : what the engine will do with the block: array cycles, macro words
        of rows of the matrix read, and multiplied, sums of a row's block; for a routed expert
    act_reads : a block is read from an activation buffer
    load : weight loading: tile, address, a word or a scale entry

    Blocks and rows cross between the domains in FIFOs. Weights are written in the core's domain, through the
    memories' second port.
    """

    BLOCKS = 16  # read ahead
    act_at = ActivationBuffer.LATENCY

    def __init__(
        self,
        config: HardwareConfig,
        words: list[list[int]] | None = None,
        scales: list[list[int]] | None = None,
    ) -> None:
        self._config = config
        self._engine = Engine(config, words, scales)
        self._sequencer = BlockSequencer(config)
        loads = {n: member for n, member in self._engine.signature.members.items() if n.startswith("load_")}
        counts = self._sequencer.signature.members
        super().__init__(
            {
                "i": In(
                    stream.Signature(
                        data.StructLayout({"job": pass_layout(config), "info": info_layout(config)})
                    )
                ),
                "step": Out(read_layout(config)),
                "step_valid": Out(1),
                "act": In(8 * read_width(config)),
                "act_shift": In(SHIFT_BITS),
                "o": Out(stream.Signature(rows_layout(config))),
                "active": counts["cycles"],
                "reads": counts["words"],
                "computes": counts["words"],
                "sums": counts["rows"],
                "act_reads": Out(1),
                "routed": Out(1),
                **loads,
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, engine = self._config, self._engine
        own = config.array_clock > 1
        domain = ARRAY_DOMAIN if own else "sync"
        m.submodules.engine = DomainRenamer({"sync": domain, "load": "sync"})(engine)
        m.submodules.sequencer = sequencer = self._sequencer
        m.submodules.beats = beats = Beats(config)

        layout, rows = block_layout(config), beats.i.payload.shape()
        blocks: FIFOInterface
        fifo: FIFOInterface
        if own:
            blocks = BlockRamFIFO(width=layout.size, depth=self.BLOCKS, r_domain=domain, w_domain="sync")
            fifo = AsyncFIFO(width=rows.size, depth=Engine.DEPTH, r_domain="sync", w_domain=domain)
        else:
            blocks = SyncFIFO(width=layout.size, depth=self.BLOCKS)
            fifo = SyncFIFO(width=rows.size, depth=Engine.DEPTH)
        m.submodules.blocks, m.submodules.rows = blocks, fifo
        m.d.comb += [
            sequencer.i.payload.eq(self.i.payload.job),
            sequencer.i.valid.eq(self.i.valid & beats.info.ready),
            beats.info.payload.eq(self.i.payload.info),
            beats.info.valid.eq(self.i.valid & sequencer.i.ready),
            self.i.ready.eq(sequencer.i.ready & beats.info.ready),
            self.step.eq(sequencer.step),
            self.step_valid.eq(sequencer.step_valid),
            self.act_reads.eq(sequencer.o_valid & ~sequencer.padding),
        ]
        with m.If(sequencer.o_valid):
            m.d.comb += [
                self.active.eq(sequencer.cycles),
                self.reads.eq(sequencer.words),
                self.computes.eq(sequencer.words),
                self.sums.eq(sequencer.rows),
                self.routed.eq(sequencer.routed),
            ]

        # A block waits for its activations; there is room for all that are not yet counted as in the FIFO.
        before = Signal(8 * (BLOCK - read_width(config)), reset_less=True)
        m.d.sync += before.eq(Cat(before, self.act)[len(self.act) :])
        work: Value = Cat(Value.cast(sequencer.o), sequencer.o_valid)
        for _ in range(ActivationBuffer.LATENCY):
            later = Signal(len(work), name="work")
            m.d.sync += later.eq(work)
            work = later
        block = data.View(layout, Signal(layout.size, name="block"))
        m.d.comb += [
            sequencer.room.eq(blocks.w_level < self.BLOCKS - (ActivationBuffer.LATENCY + 3)),
            block.eq(work[:-1]),
            block.act.eq(Cat(before, self.act)),
            block.shift.eq(self.act_shift),
            blocks.w_data.eq(block),
            blocks.w_en.eq(work[-1]),
            engine.i.payload.eq(blocks.r_data),
            engine.i.valid.eq(blocks.r_rdy),
            blocks.r_en.eq(engine.i.ready),
            engine.level.eq(fifo.w_level),
            fifo.w_data.eq(engine.o),
            fifo.w_en.eq(engine.o_valid),
            beats.i.payload.eq(fifo.r_data),
            beats.i.valid.eq(fifo.r_rdy),
            fifo.r_en.eq(beats.i.ready),
            *[
                getattr(engine, name).eq(getattr(self, name))
                for name in engine.signature.members
                if name.startswith("load_")
            ],
        ]
        wiring.connect(m, beats.o, wiring.flipped(self.o))
        return m
