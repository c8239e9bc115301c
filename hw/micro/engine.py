"""The engine: rows of matrices that lie in the weights' memory, times blocks of activations, 16 products a
cycle."""

import itertools

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.micro.lanes import MODULE, TwoProducts
from hw.micro.layout import LANES, Layout
from hw.micro.memory import WIDTH, WeightMemory
from hw.sharing import shared
from sw_model.config import HardwareConfig
from sw_model.formats import (
    ACT8_BITS,
    ACT8_MAX,
    BLOCK,
    MANT_BITS,
    NIBBLE,
    ROUTER_FORMAT,
    ROW_EXP_BITS,
    SCALE_BITS,
    SHIFT_BITS,
)

__all__ = ["Engine"]

EVENT_BITS = 24
ENTRY_BITS = WIDTH // 2
#: A scale entry, lowest first (see :mod:`sw_model.compiler`).
ENTRY = data.StructLayout({"mantissa": MANT_BITS - 1, "shift": SHIFT_BITS, "row_exp": ROW_EXP_BITS})


class Engine(wiring.Component):
    """Exact sum over blocks of (codes . activations) * mantissa * 2**(shift of the scale + of the block).

    A row is blocks, a block words of nibbles, the highest first (two's complement), a word two memory rows
    of 16 lanes; beside each block a scale entry, of which a memory row holds two. Word and scale go on by
    themselves, so the next row of a matrix needs but another ``go``.

    Parameters
    ----------
    config : of body "micro"

    Members
    -------
    set_word, set_scale, set_shape, go : take ``value`` (64 bits) as the ports of these names say
        (:class:`hw.micro.isa.Port`); not while ``busy``
    word, scale : where the next row is
    busy : a row is being worked out
    sum, row_exp : of the last row, while not busy
    set_memory, set_act, put_memory, put_act, put_act_shift : addresses, and contents, of memory and
        activations
    reads, sums : words read and blocks finished, counting on

    Throughput: a word in 2 cycles, one more where a memory row of scales has to be read (every other block,
    and at a row's beginning). Latency: 8 cycles from a row's last memory row to ``busy`` low.
    """

    _DEEP = 7  # pipeline registers behind the address

    def __init__(self, config: HardwareConfig) -> None:
        self._layout = layout = Layout(config)
        self._config = config
        setters = ("word", "scale", "shape", "memory", "act")
        puts = ("memory", "act", "act_shift")
        super().__init__(
            {
                "value": In(WIDTH),
                **{f"set_{name}": In(1) for name in setters},
                **{f"put_{name}": In(1) for name in puts},
                "go": In(1),
                "word": Out(range(layout.rows)),
                "scale": Out(range(config.scales)),
                "busy": Out(1),
                "sum": Out(signed(config.acc_bits)),
                "row_exp": Out(ROW_EXP_BITS),
                "reads": Out(EVENT_BITS),
                "sums": Out(EVENT_BITS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        layout = self._layout
        memory = WeightMemory(layout.rows)
        m.submodules.memory = shared(memory, memory.module, platform)
        acts = Memory(shape=LANES * ACT8_BITS, depth=2 * layout.act_blocks, init=[], attrs={"no_rw_check": 1})
        shifts = Memory(shape=SHIFT_BITS, depth=layout.act_blocks, init=[], attrs={"no_rw_check": 1})
        m.submodules.acts, m.submodules.shifts = acts, shifts
        act_in, act_out = acts.write_port(granularity=ACT8_BITS), acts.read_port()
        shift_in, shift_out = shifts.write_port(), shifts.read_port()

        # What the processor writes.
        memory_at, act_at = Signal(range(layout.rows)), Signal(range(BLOCK * layout.act_blocks))
        with m.If(self.set_memory):
            m.d.sync += memory_at.eq(self.value)
        with m.Elif(self.put_memory):
            m.d.sync += memory_at.eq(memory_at + 1)
        with m.If(self.set_act):
            m.d.sync += act_at.eq(self.value)
        with m.Elif(self.put_act):
            m.d.sync += act_at.eq(act_at + 1)
        lane_bits = (LANES - 1).bit_length()
        m.d.comb += [
            act_in.addr.eq(act_at[lane_bits:]),
            act_in.data.eq(self.value[:ACT8_BITS].replicate(LANES)),
            act_in.en.eq(Mux(self.put_act, 1 << act_at[:lane_bits], 0)),
            shift_in.addr.eq(act_at[lane_bits + 1 :]),
            shift_in.data.eq(self.value),
            shift_in.en.eq(self.put_act_shift),
        ]

        # Addresses: a step a cycle.
        shape = Signal(data.StructLayout({"blocks": 8, "words": 2}))
        blocks, words = Signal(8), Signal(2)  # still to come, this one not counted
        block = Signal(range(layout.act_blocks))
        second = Signal()
        scale_step, step = Signal(), Signal()
        entry_odd = Signal()
        m.d.comb += [
            entry_odd.eq(self.scale[0]),
            memory.address.eq(
                Mux(
                    self.put_memory,
                    memory_at,
                    Mux(scale_step, layout.first_scale + (self.scale >> 1), self.word),
                )
            ),
            memory.enable.eq(self.put_memory | scale_step | step),
            memory.write.eq(self.put_memory),
            memory.write_data.eq(self.value),
            act_out.addr.eq(Cat(second, block)),
            shift_out.addr.eq(block),
        ]
        with m.If(self.set_shape):
            m.d.sync += shape.as_value().eq(self.value)
        with m.If(self.set_word):
            m.d.sync += self.word.eq(self.value)
        with m.If(self.set_scale):
            m.d.sync += self.scale.eq(self.value)

        stage = data.StructLayout({"valid": 1, "top": 1, "start": 1, "second": 1, "end": 1})
        at = [Signal(stage, name=f"at{i}") for i in range(self._DEEP)]
        running = Signal()
        m.d.comb += self.busy.eq(running | Cat(s.valid for s in at).any())
        with m.FSM() as fsm:
            with m.State("IDLE"):
                m.d.sync += [block.eq(self.value), blocks.eq(shape.blocks - 1)]
                with m.If(self.go):
                    m.next = "SCALE"
            with m.State("SCALE"):  # a row of two entries, unless the second of the last one is meant
                m.d.comb += scale_step.eq(1)
                m.d.sync += [words.eq(shape.words), second.eq(0)]
                m.next = "WORDS"
            with m.State("WORDS"):
                m.d.comb += step.eq(1)
                m.d.sync += [second.eq(~second), self.word.eq(self.word + 1)]
                with m.If(second):
                    m.d.sync += words.eq(words - 1)
                    with m.If(words == 0):
                        m.d.sync += [
                            words.eq(shape.words),
                            self.scale.eq(self.scale + 1),
                            block.eq(block + 1),
                            blocks.eq(blocks - 1),
                        ]
                        with m.If(blocks == 0):
                            m.next = "IDLE"
                        with m.Elif(entry_odd):
                            m.next = "SCALE"
            m.d.comb += running.eq(~fsm.ongoing("IDLE"))

        # Stage 0: what the memories give.
        m.d.sync += [
            at[0].valid.eq(step),
            at[0].top.eq(words == shape.words),
            at[0].start.eq((words == shape.words) & ~second),
            at[0].second.eq(second),
            at[0].end.eq(second & (words == 0)),
        ]
        for now, after in itertools.pairwise(at):
            m.d.sync += after.eq(now)
        scale_came, odd = Signal(), [Signal(name=f"odd{i}") for i in range(2)]
        pair = Signal(2 * SCALE_BITS, reset_less=True)
        m.d.sync += [scale_came.eq(scale_step), odd[0].eq(entry_odd), odd[1].eq(odd[0])]
        with m.If(scale_came):
            m.d.sync += pair.eq(
                Cat(memory.read_data[:SCALE_BITS], memory.read_data[ENTRY_BITS : ENTRY_BITS + SCALE_BITS])
            )

        # Stages 1 and 2: products, in the multipliers.
        products = []
        for lane in range(0, LANES, 2):
            two = TwoProducts()
            m.submodules[f"products{lane}"] = shared(two, MODULE, platform)
            for k, part in enumerate(("low", "high")):
                nibble = memory.read_data.word_select(lane + k, NIBBLE)
                sign = nibble[-1] & at[0].top
                m.d.comb += [
                    getattr(two, f"a_{part}").eq(Cat(nibble, sign.replicate(ACT8_BITS - NIBBLE))),
                    getattr(two, f"b_{part}").eq(act_out.data.word_select(lane + k, ACT8_BITS)),
                ]
                products.append(getattr(two, part)[: NIBBLE + ACT8_BITS].as_signed())

        # Stage 3: their sum. Stage 4: with the other half, and with the nibbles above.
        tree = products
        while len(tree) > 1:
            tree = [a + b for a, b in zip(tree[::2], tree[1::2], strict=True)]
        half = Signal.like(tree[0], reset_less=True)
        most = BLOCK * ROUTER_FORMAT.max_magnitude * (ACT8_MAX + 1)
        dot = Signal(range(-most, most + 1), reset_less=True)
        above = Signal.like(dot)
        m.d.comb += above.eq(Mux(at[3].start, 0, Mux(at[3].second, dot, dot << NIBBLE)))
        m.d.sync += half.eq(tree[0])
        with m.If(at[3].valid):
            m.d.sync += dot.eq(above + half)

        # Stage 5: times the mantissa. Stage 6: onto the row's LSB. Stage 7: added. The block's scale waits
        # for its sum in two places, as the pair may be the next blocks' by then.
        early, entry = (Signal(ENTRY, name=name, reset_less=True) for name in ("early", "entry"))
        shift = Signal(SHIFT_BITS, reset_less=True)
        late = [shift_out.data, *(Signal(SHIFT_BITS, name=f"late{i}", reset_less=True) for i in range(4))]
        m.d.sync += [after.eq(now) for now, after in itertools.pairwise(late)]
        with m.If(at[1].end):
            m.d.sync += early.eq(Mux(odd[1], pair[SCALE_BITS:], pair[:SCALE_BITS]))
        with m.If(at[3].end):
            m.d.sync += entry.eq(early)
        product = Signal(signed(len(dot) + MANT_BITS), reset_less=True)
        aligned = Signal(signed(self._config.acc_bits), reset_less=True)
        m.d.sync += [
            product.eq(dot * Cat(entry.mantissa, 1)),
            shift.eq(entry.shift + late[-1]),
            aligned.eq(product << shift),
        ]
        with m.If(self.go & ~self.value[8]):
            m.d.sync += self.sum.eq(0)
        with m.If(at[6].valid & at[6].end):
            m.d.sync += [self.sum.eq(self.sum + aligned), self.row_exp.eq(entry.row_exp)]
        with m.If(at[0].valid & at[0].second):
            m.d.sync += self.reads.eq(self.reads + 1)
        with m.If(at[0].valid & at[0].end):
            m.d.sync += self.sums.eq(self.sums + 1)
        return m
