"""Routing weights of the chosen experts: table, serial division, scale."""

from itertools import pairwise

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.numerics.fixed import FIXED_BITS
from hw.router.entropy import DISTANCE_BITS
from hw.router.exp2 import Exp2
from hw.router.topk import entry_layout
from sw_model.config import HardwareConfig
from sw_model.gate import FRACTION
from sw_model.golden import LOGIT_FRACTION, SCALE_FRACTION
from sw_model.tables import EXP2, EXP2_FRACTION, PROB_FRACTION, WEIGHT_BITS

__all__ = ["RoutingWeights"]


class RoutingWeights(wiring.Component):
    """w_j = scale * p_j / sum,  p = 2**(l - largest l) (softmax) or p = sigmoid(l).

    The sum runs over the chosen experts (``renormalise``), else over all (softmax), or is 1 (sigmoid).

    Members
    -------
    value, expert, valid : of every expert, in order: the logit l (softmax) or p (sigmoid)
    restart : the next value is the first of a token
    best : the chosen experts, steady from ``start`` on
    experts, top_k, renormalise, sigmoid, scale : of the layer; scale Q6.10
    everyone : go through all experts even where the sum needs it not (for the entropy)
    start : the choice is made (one cycle)
    p, distance, p_valid : of every expert, if gone through (softmax); p_done (one cycle): they were all
    weights : a rank each, ``PROB_FRACTION`` bits of fraction; ``done`` (one cycle) when they stand

    Latency: k + experts (the latter only for a softmax that is not renormalised) + 20 k + about 10 cycles.
    Equals the second half of :func:`sw_model.golden.route`.
    """

    STEPS = PROB_FRACTION + 2

    def __init__(self, config: HardwareConfig, score_bits: int) -> None:
        self._experts = config.max_experts
        self._k = config.max_top_k
        super().__init__(
            {
                "value": In(signed(FIXED_BITS)),
                "expert": In(16),
                "valid": In(1),
                "restart": In(1),
                "best": In(data.ArrayLayout(entry_layout(score_bits, self._experts), self._k)),
                "experts": In(16),
                "top_k": In(8),
                "renormalise": In(1),
                "sigmoid": In(1),
                "scale": In(16),
                "everyone": In(1),
                "start": In(1),
                "p": Out(EXP2.out_bits),
                "distance": Out(DISTANCE_BITS),
                "p_valid": Out(1),
                "p_done": Out(1),
                "weights": Out(data.ArrayLayout(WEIGHT_BITS, self._k)),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.exp2 = exp2 = Exp2()
        m.submodules.values = values = Memory(shape=signed(FIXED_BITS), depth=max(2, self._experts), init=[])
        write, read = values.write_port(), values.read_port(domain="comb")
        largest, fresh = Signal(signed(FIXED_BITS)), Signal(init=1)
        m.d.comb += [write.addr.eq(self.expert), write.data.eq(self.value), write.en.eq(self.valid)]
        with m.If(self.valid):
            m.d.sync += fresh.eq(0)
            with m.If(fresh | (self.value > largest)):
                m.d.sync += largest.eq(self.value)
        with m.If(self.restart):
            m.d.sync += fresh.eq(1)

        # p: first of the chosen, kept; then, if need be, of all, for the sum.
        index = Signal(range(max(self._experts, self._k) + 1))
        everyone, feeding = Signal(), Signal()
        chosen = Array(self.best[j].index for j in range(self._k))[index]
        m.d.comb += [read.addr.eq(Mux(everyone, index, chosen)), exp2.d.eq(largest - read.data)]
        tag = data.StructLayout(
            {"valid": 1, "everyone": 1, "index": len(index), "p": EXP2.out_bits, "far": DISTANCE_BITS}
        )
        tags = [Signal(tag, name=f"tag{i}") for i in range(Exp2.LATENCY)]
        far, far_most = exp2.d >> (LOGIT_FRACTION - FRACTION), (1 << DISTANCE_BITS) - 1
        m.d.sync += [
            tags[0].valid.eq(feeding),
            tags[0].everyone.eq(everyone),
            tags[0].index.eq(index),
            tags[0].p.eq(read.data),
            tags[0].far.eq(Mux(far > far_most, far_most, far)),
            *[b.eq(a) for a, b in pairwise(tags)],
        ]
        landed = tags[-1]
        m.d.comb += [
            self.p.eq(exp2.y),
            self.distance.eq(landed.far),
            self.p_valid.eq(landed.valid & landed.everyone),
        ]
        p_now = Mux(self.sigmoid, landed.p, exp2.y)
        p = Array(Signal(EXP2.out_bits, name=f"p{j}", reset_less=True) for j in range(self._k))
        total = Signal(EXP2.out_bits + (self._experts - 1).bit_length())
        with m.If(landed.valid):
            with m.If(~landed.everyone):
                m.d.sync += p[landed.index].eq(p_now)
            with m.If(landed.everyone != self.renormalise):
                m.d.sync += total.eq(total + p_now)

        # Restoring division: quotient bits of p * 2**17 / total, most significant first.
        rank = Signal(range(self._k + 1))
        step = Signal(range(self.STEPS + 1))
        rest = Signal(len(total) + 1)
        quotient = Signal(self.STEPS)
        rounded = Signal(self.STEPS)
        fits = Signal()
        weight = Array(self.weights[j] for j in range(self._k))[rank]
        m.d.comb += fits.eq(rest >= total)

        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [index.eq(0), everyone.eq(0), rank.eq(0)]
                m.d.sync += total.eq(Mux(self.sigmoid & ~self.renormalise, 1 << EXP2_FRACTION, 0))
                with m.If(self.start):
                    m.next = "FEED"
            with m.State("FEED"):
                m.d.comb += feeding.eq(1)
                m.d.sync += index.eq(index + 1)
                with m.If(index == Mux(everyone, self.experts, self.top_k) - 1):
                    m.d.sync += index.eq(0)
                    with m.If(everyone | self.sigmoid | (self.renormalise & ~self.everyone)):
                        m.next = "SETTLE"
                    with m.Else():
                        m.d.sync += everyone.eq(1)
            with m.State("SETTLE"):
                with m.If(~Cat(*(t.valid for t in tags)).any()):
                    m.d.comb += self.p_done.eq(1)
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
                m.d.sync += rounded.eq((quotient + 1) >> 1)
                m.next = "SCALE"
            with m.State("SCALE"):
                scaled = rounded * self.scale + (1 << (SCALE_FRACTION - 1))
                m.d.sync += [weight.eq(scaled >> SCALE_FRACTION), rank.eq(rank + 1)]
                m.next = "LOAD"
                with m.If(rank == self.top_k - 1):
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
        return m
