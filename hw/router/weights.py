"""Routing weights: softmax over the scores, by table and serial division."""

from itertools import pairwise

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.router.exp2 import Exp2
from hw.router.scores import LOGIT_BITS
from hw.router.topk import entry_layout
from sw_model.tables import EXP2, PROB_FRACTION

__all__ = ["SoftmaxWeights"]


class SoftmaxWeights(wiring.Component):
    """w_j = p_j / sum p,  p = 2**(score - best score), in Q1.16, rounded half up.

    The sum runs over the chosen experts (``renormalise``) or over all scores.

    Parameters
    ----------
    experts, k : capacities

    Members
    -------
    score, score_index, score_valid : every score, as it comes (kept for the sum over all)
    best : the chosen entries, stable from ``start`` on
    experts, renormalise : of the layer
    start : all scores are in (one cycle)
    weights : Q1.16 a rank; ``done`` (one cycle) when they stand

    Latency: k + experts (the latter only without ``renormalise``) + 19 k + about 10 cycles.
    Equals :func:`sw_model.golden.route`.
    """

    STEPS = PROB_FRACTION + 2

    def __init__(self, *, experts: int, k: int) -> None:
        self._experts = experts
        self._k = k
        entry = entry_layout(experts)
        super().__init__(
            {
                "score": In(signed(LOGIT_BITS)),
                "score_index": In(entry["expert"].shape),
                "score_valid": In(1),
                "best": In(data.ArrayLayout(entry, k)),
                "experts": In(16),
                "renormalise": In(1),
                "top_k": In(8),
                "start": In(1),
                "weights": Out(data.ArrayLayout(PROB_FRACTION + 1, k)),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.exp2 = exp2 = Exp2()
        m.submodules.scores = scores = Memory(shape=signed(LOGIT_BITS), depth=max(2, self._experts), init=[])
        write, read = scores.write_port(), scores.read_port(domain="comb")
        m.d.comb += [
            write.addr.eq(self.score_index),
            write.data.eq(self.score),
            write.en.eq(self.score_valid),
        ]

        # Exponentials: first the chosen (kept in p), then, if need be, all of them for the sum.
        index = Signal(range(max(self._experts, self._k) + 1))
        everyone, feeding = Signal(), Signal()
        chosen = Array(self.best[j].score for j in range(self._k))[index]
        m.d.comb += [
            read.addr.eq(index),
            exp2.d.eq(self.best[0].score - Mux(everyone, read.data, chosen)),
        ]
        tag = data.StructLayout({"valid": 1, "everyone": 1, "index": len(index)})
        tags = [Signal(tag, name=f"tag{i}") for i in range(Exp2.LATENCY)]
        m.d.sync += [
            tags[0].valid.eq(feeding),
            tags[0].everyone.eq(everyone),
            tags[0].index.eq(index),
            *[b.eq(a) for a, b in pairwise(tags)],
        ]
        landed = tags[-1]
        p = Array(Signal(EXP2.out_bits, name=f"p{j}", reset_less=True) for j in range(self._k))
        total_bits = EXP2.out_bits + (self._experts - 1).bit_length()
        total = Signal(total_bits)
        with m.If(landed.valid):
            with m.If(~landed.everyone):
                m.d.sync += p[landed.index].eq(exp2.y)
            with m.If(landed.everyone | self.renormalise):
                m.d.sync += total.eq(total + exp2.y)

        # Restoring division: quotient bits of p * 2**17 / total, most significant first.
        rank = Signal(range(self._k + 1))
        step = Signal(range(self.STEPS + 1))
        rest = Signal(total_bits + 1)
        quotient = Signal(self.STEPS)
        fits = Signal()
        m.d.comb += fits.eq(rest >= total)
        weight = Array(self.weights[j] for j in range(self._k))[rank]

        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [index.eq(0), total.eq(0), everyone.eq(0), rank.eq(0)]
                with m.If(self.start):
                    m.next = "FEED"
            with m.State("FEED"):
                m.d.comb += feeding.eq(1)
                m.d.sync += index.eq(index + 1)
                with m.If(index == Mux(everyone, self.experts, self.top_k) - 1):
                    m.d.sync += index.eq(0)
                    with m.If(everyone | self.renormalise):
                        m.next = "SETTLE"
                    with m.Else():
                        m.d.sync += everyone.eq(1)
            with m.State("SETTLE"):
                with m.If(~Cat(*(t.valid for t in tags)).any()):
                    m.next = "LOAD"
            with m.State("LOAD"):
                m.d.sync += [rest.eq(p[rank]), step.eq(0), quotient.eq(0)]
                m.next = "DIVIDE"
            with m.State("DIVIDE"):
                m.d.sync += [
                    rest.eq(Mux(fits, rest - total, rest) << 1),
                    quotient.eq(Cat(fits, quotient[:-1])),
                    step.eq(step + 1),
                ]
                with m.If(step == self.STEPS - 1):
                    m.next = "ROUND"
            with m.State("ROUND"):
                m.d.sync += [weight.eq((quotient + 1) >> 1), rank.eq(rank + 1)]
                m.next = "LOAD"
                with m.If(rank == self.top_k - 1):
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
        return m
