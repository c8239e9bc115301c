"""Sequencer: one matrix-vector pass to a stream of macro word addresses, at the macros' pace."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.cim.macro import FORMATS, Decode
from sw_model.config import HardwareConfig
from sw_model.formats import INT8
from sw_model.topology import SPLIT_BITS

__all__ = ["Sequencer", "pass_layout", "step_layout"]


def pass_layout(config: HardwareConfig) -> data.StructLayout:
    """A pass: a matrix of ``rows`` rows x ``blocks`` blocks in format ``format``.

    from_h : activations are the h of an expert (else those of the token)
    wide : INT16 activations, that is the blocks twice, high bytes then low bytes
    routed : it is a routed expert's (for the counters); ``final``: the last of its token
    high : of INT8 the high nibble alone is read: a step a block, which passes by the second word
    split : log2 of the neighbouring tiles that share a row and split its blocks, see :mod:`sw_model.topology`
    """
    return data.StructLayout(
        {
            "word": (config.words - 1).bit_length(),
            "scale": (config.scales - 1).bit_length(),
            "rows": range(config.max_rows + 1),
            "blocks": range(config.max_blocks + 1),
            "format": 3,
            "split": SPLIT_BITS,
            "from_h": 1,
            "wide": 1,
            "routed": 1,
            "final": 1,
            "high": 1,
            "bank": 1,
            "act": range(config.max_act_blocks + 1),
        }
    )


def step_layout(config: HardwareConfig) -> data.StructLayout:
    """One array cycle; first/last flags delimit cycles of a step, steps of a block and blocks of a row.

    read : a word is read; compute : a nibble is multiplied (FP8 reads half a code first)
    act : the block of the first column; column c takes block act + c mod 2**split; ``acts``: blocks taken
    rows : tiles that work on a block of a matrix row (the others on padding)
    end, final : its pass ends with it; it is the last of its token
    """
    return data.StructLayout(
        {
            "word": (config.words - 1).bit_length(),
            "scale": (config.scales - 1).bit_length(),
            "from_h": 1,
            "routed": 1,
            "split": SPLIT_BITS,
            "bank": 1,
            "set": 2,
            "act": range(config.max_act_blocks),
            "acts": range(config.columns + 1),
            "step": 3,
            "first": 1,
            "last": 1,
            "decode": Decode,
            "read": 1,
            "compute": 1,
            "last_step": 1,
            "first_block": 1,
            "last_block": 1,
            "rows": range(config.tiles + 1),
            "end": 1,
            "final": 1,
        }
    )


class Sequencer(wiring.Component):
    """Loops row slot (a row in every group of 2**split tiles), byte set, block, step, from the outside in.

    Parameters
    ----------
    config : tiles, columns and addresses
    step_cycles : cycles that a macro takes for a step

    Members
    -------
    i : stream of passes (:func:`pass_layout`)
    o, o_valid : the step of this cycle (:func:`step_layout`), the same for ``step_cycles`` cycles
    credit : a row slot may be started (there is room for its results); looked at before each slot
    start : a slot is started in this cycle

    Throughput: a step every ``step_cycles``, also from one pass to the next when the next is waiting.
    """

    def __init__(self, config: HardwareConfig, step_cycles: int = 1) -> None:
        self._config = config
        self._step_cycles = step_cycles
        super().__init__(
            {
                "i": In(stream.Signature(pass_layout(config))),
                "o": Out(step_layout(config)),
                "o_valid": Out(1),
                "credit": In(1),
                "start": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        job = Signal(pass_layout(self._config))
        running = Signal()
        left, block, step_index = Signal.like(job.rows), Signal.like(job.blocks), Signal(3)  # left; counters
        low = Signal()
        word, row_word = Signal.like(job.word), Signal.like(job.word)
        scale, row_scale = Signal.like(job.scale), Signal.like(job.scale)

        steps, words, decode = Signal(3), Signal(3), Signal(Decode)
        with m.Switch(job.format):
            for code, (n_steps, n_words, how) in FORMATS.items():
                with m.Case(code):
                    m.d.comb += [steps.eq(n_steps), words.eq(n_words), decode.eq(how)]
        read, high, next_word = Signal(), Signal(), Signal.like(job.word)
        m.d.comb += [
            high.eq(job.high & (job.format == INT8.code)),
            read.eq(step_index < words),
            next_word.eq(word + read + high),
        ]
        with m.If(high):
            m.d.comb += [steps.eq(1), decode.eq(Decode.HIGH)]

        # Tiles that share a row, and of them those that have a block of it in this step; rows of a slot.
        tiles, columns = self._config.tiles, self._config.columns
        shared, at_work, rest = Signal(range(columns + 1)), Signal(range(columns + 1)), Signal.like(block)
        rows = Signal(range(tiles + 1))
        m.d.comb += [
            shared.eq(1 << job.split if columns > 1 else 1),
            rest.eq(job.blocks - block),
            at_work.eq(Mux(rest < shared, rest, shared)),
            rows.eq(tiles >> job.split if columns > 1 else tiles),
        ]

        first, last = Signal(init=1), Signal(init=1)  # cycles of the step

        last_step, last_block, last_set, last_slot = (Signal(name=f"last_{n}") for n in ("p", "b", "s", "r"))
        new_slot, going, step, finish = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            last_step.eq(step_index == steps - 1),
            last_block.eq(rest <= shared),
            last_set.eq(low == job.wide),
            last_slot.eq(left <= rows),
            new_slot.eq(first & (step_index == 0) & (block == 0) & ~low),
            going.eq(running & (~new_slot | self.credit)),
            step.eq(going & last),  # ends
            finish.eq(step & last_step & last_block & last_set & last_slot),
            self.start.eq(going & new_slot),
            self.i.ready.eq(~running | finish),
        ]
        m.d.sync += [
            self.o_valid.eq(going),
            self.o.word.eq(word),
            self.o.scale.eq(scale),
            self.o.from_h.eq(job.from_h),
            self.o.routed.eq(job.routed),
            self.o.split.eq(job.split),
            self.o.bank.eq(job.bank),
            self.o.end.eq(finish),
            self.o.final.eq(job.final),
            self.o.set.eq(Mux(job.wide, 1 + low, 0)),
            self.o.act.eq(job.act + block),
            self.o.acts.eq(at_work),
            self.o.step.eq(step_index),
            self.o.first.eq(first),
            self.o.last.eq(last),
            self.o.decode.eq(decode),
            self.o.read.eq(read),
            self.o.compute.eq((decode != Decode.FP8) | (step_index != 0)),
            self.o.last_step.eq(last_step),
            self.o.first_block.eq((block == 0) & ~low),
            self.o.last_block.eq(last_block & last_set),
            self.o.rows.eq(Mux(last_slot, left, rows)[: len(rows)] * at_work),
        ]
        if self._step_cycles > 1:
            cycle = Signal(range(self._step_cycles))
            m.d.comb += [first.eq(cycle == 0), last.eq(cycle == self._step_cycles - 1)]
            with m.If(going):
                m.d.sync += cycle.eq(cycle + 1)  # step_cycles is a power of two
        with m.If(step):
            m.d.sync += [step_index.eq(step_index + 1), word.eq(next_word)]
            with m.If(last_step):
                m.d.sync += [step_index.eq(0), block.eq(block + shared), scale.eq(scale + 1)]
                with m.If(last_block):
                    m.d.sync += block.eq(0)
                    with m.If(~last_set):  # the same weights again, with the low bytes
                        m.d.sync += [low.eq(1), word.eq(row_word), scale.eq(row_scale)]
                    with m.Else():
                        m.d.sync += [
                            low.eq(0),
                            left.eq(left - rows),
                            row_word.eq(next_word),
                            row_scale.eq(scale + 1),
                        ]
        with m.If(finish):
            m.d.sync += running.eq(0)
        with m.If(self.i.valid & self.i.ready):
            p = self.i.payload
            m.d.sync += [
                job.eq(p),
                running.eq(1),
                left.eq(p.rows),
                block.eq(0),
                step_index.eq(0),
                low.eq(0),
                word.eq(p.word),
                row_word.eq(p.word),
                scale.eq(p.scale),
                row_scale.eq(p.scale),
            ]
        return m
