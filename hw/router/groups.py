"""Group scores: which groups of experts the choice is limited to."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.router.topk import TopK
from sw_model.config import HardwareConfig

__all__ = ["GroupFilter"]


class GroupFilter(wiring.Component):
    """The ``top_groups`` best groups by their largest score, or by the sum of their two largest.

    Scores come in expert order; ``group_last`` marks the last one of a group.

    Members
    -------
    clear : a new token
    score, valid, group_last : the scores
    top2 : sum of the two largest instead of the largest
    top_groups : groups chosen
    chosen : a bit a group, 2 cycles after the last score

    Parameters
    ----------
    score_bits : width of the signed scores
    """

    LATENCY = 2

    def __init__(self, config: HardwareConfig, score_bits: int) -> None:
        self._groups = config.max_groups
        self._score_bits = score_bits
        super().__init__(
            {
                "clear": In(1),
                "score": In(signed(score_bits)),
                "valid": In(1),
                "group_last": In(1),
                "top2": In(1),
                "top_groups": In(8),
                "chosen": Out(config.max_groups),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bits = self._score_bits + 1
        m.submodules.topk = topk = TopK(score_bits=bits, candidates=self._groups, k=self._groups)
        least = -(1 << (self._score_bits - 1))
        first, second = (Signal(signed(self._score_bits), init=least, name=f"largest{i}") for i in (1, 2))
        new_first, new_second = Signal.like(first), Signal.like(second)
        group = Signal(range(self._groups + 1))
        m.d.comb += [
            new_first.eq(Mux(self.score > first, self.score, first)),
            new_second.eq(Mux(self.score > first, first, Mux(self.score > second, self.score, second))),
            topk.clear.eq(self.clear),
        ]
        m.d.sync += topk.valid.eq(self.valid & self.group_last)
        with m.If(self.valid):
            m.d.sync += [first.eq(new_first), second.eq(new_second)]
            with m.If(self.group_last):
                m.d.sync += [
                    first.eq(least),
                    second.eq(least),
                    topk.score.eq(new_first + Mux(self.top2, new_second, 0)),
                    topk.index.eq(group),
                    group.eq(group + 1),
                ]
        with m.If(self.clear):
            m.d.sync += group.eq(0)
        for rank in range(self._groups):
            entry = topk.best[rank]
            with m.If(entry.valid & (rank < self.top_groups)):
                m.d.comb += self.chosen.bit_select(entry.index, 1).eq(1)
        return m
