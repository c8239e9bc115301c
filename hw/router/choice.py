"""Choice of experts: scores as they come, then the best of the groups that are left."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.router.groups import GroupFilter
from hw.router.topk import TopK, entry_layout
from sw_model.config import HardwareConfig

__all__ = ["SCORE_BITS", "Choice"]

SCORE_BITS = 33  # a 32-bit number, or a Q1.24 score plus a Q7.24 bias


class Choice(wiring.Component):
    """The k best scores within the chosen groups, best first, ties to the lowest expert. A design for one
    group chooses among all.

    Members
    -------
    score, expert, valid : scores in expert order
    last : all rows of the token are in (with its last score, or later)
    experts, groups, top_groups, top2 : of the layer
    best : the chosen entries
    done : ``best`` stands (one cycle); the next token may come

    Latency: experts + ``GroupFilter.LATENCY`` + 3 cycles after ``last``.
    Equals :func:`sw_model.golden.choose`.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        entry = entry_layout(SCORE_BITS, config.max_experts)
        super().__init__(
            {
                "score": In(signed(SCORE_BITS)),
                "expert": In(16),
                "valid": In(1),
                "last": In(1),
                "experts": In(16),
                "groups": In(8),
                "top_groups": In(8),
                "top2": In(1),
                "best": Out(data.ArrayLayout(entry, config.max_top_k)),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.submodules.topk = topk = TopK(
            score_bits=SCORE_BITS, candidates=config.max_experts, k=config.max_top_k
        )
        m.submodules.scores = scores = Memory(
            shape=signed(SCORE_BITS), depth=max(2, config.max_experts), init=[]
        )
        write, read = scores.write_port(), scores.read_port(domain="comb")

        # Groups are runs of experts / groups: count remainders instead of dividing.
        share = Signal(16)  # groups * experts seen, modulo experts
        next_share = Signal(17)
        wrap = Signal()
        index, group = Signal(range(config.max_experts + 1)), Signal(range(config.max_groups + 1))
        looking, waiting = Signal(), Signal(range(GroupFilter.LATENCY + 1))
        step = Signal()
        m.d.comb += [
            step.eq(self.valid | looking),
            next_share.eq(share + self.groups),
            wrap.eq(next_share >= self.experts),
            write.addr.eq(self.expert),
            write.data.eq(self.score),
            write.en.eq(self.valid),
            read.addr.eq(index),
            self.best.eq(topk.best),
        ]
        chosen, clear = Signal(config.max_groups, init=1), Signal()
        if config.max_groups > 1:
            m.submodules.groups = groups = GroupFilter(config, SCORE_BITS)
            m.d.comb += [
                groups.clear.eq(clear),
                groups.score.eq(self.score),
                groups.valid.eq(self.valid),
                groups.group_last.eq(wrap),
                groups.top2.eq(self.top2),
                groups.top_groups.eq(self.top_groups),
                chosen.eq(groups.chosen),
            ]
        with m.If(step):
            m.d.sync += share.eq(Mux(wrap, next_share - self.experts, next_share))
        with m.FSM():
            with m.State("COLLECT"):
                m.d.sync += [index.eq(0), group.eq(0), waiting.eq(0)]
                m.d.comb += topk.clear.eq(self.last)
                with m.If(self.last):
                    m.next = "WAIT"
            with m.State("WAIT"):
                m.d.sync += waiting.eq(waiting + 1)
                with m.If(waiting == GroupFilter.LATENCY - 1):
                    m.next = "LOOK"
            with m.State("LOOK"):
                m.d.comb += [
                    looking.eq(1),
                    topk.score.eq(read.data),
                    topk.index.eq(index),
                    topk.valid.eq(chosen.bit_select(group, 1) if config.max_groups > 1 else 1),
                ]
                m.d.sync += [index.eq(index + 1), group.eq(group + wrap)]
                with m.If(index == self.experts - 1):
                    m.next = "DONE"
            with m.State("DONE"):
                m.d.comb += [self.done.eq(1), clear.eq(1)]
                m.next = "COLLECT"
        return m
