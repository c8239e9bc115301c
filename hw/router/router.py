"""The router: rows of the router pass to a list of (expert, weight) and the base expert's weight."""

from itertools import pairwise

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.numerics.scaled import SCALED
from hw.numerics.sigmoid import Sigmoid
from hw.router.scores import ToLogit
from hw.router.topk import TopK, entry_layout
from hw.router.weights import SoftmaxWeights
from sw_model.config import HardwareConfig
from sw_model.tables import PROB_FRACTION

__all__ = ["Router"]


class Router(wiring.Component):
    """Softmax top-k over the first E rows; the row after them, if the base expert is gated, is its gate.

    Members
    -------
    i : stream of {number, last}: the rows of one token's router pass, in order
    experts, top_k, renormalise, shared_gated : of the layer
    route : experts by falling score; weights Q1.16; shared weight (1 if ungated)
    done : ``route`` stands; until ``ack`` (one cycle)

    Latency: about 10 cycles after the last row plus that of :class:`SoftmaxWeights`; it overlaps the base
    expert's gate_up pass. Always ready for rows.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        expert = entry_layout(config.max_experts)["expert"].shape
        k = config.max_top_k
        self.route_layout = data.StructLayout(
            {
                "expert": data.ArrayLayout(expert, k),
                "weight": data.ArrayLayout(PROB_FRACTION + 1, k),
                "shared": PROB_FRACTION + 1,
            }
        )
        super().__init__(
            {
                "i": In(
                    stream.Signature(data.StructLayout({"number": SCALED, "last": 1}), always_ready=True)
                ),
                "experts": In(16),
                "top_k": In(8),
                "renormalise": In(1),
                "shared_gated": In(1),
                "route": Out(self.route_layout),
                "done": Out(1),
                "ack": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.submodules.to_logit = to_logit = ToLogit()
        m.submodules.topk = topk = TopK(experts=config.max_experts, k=config.max_top_k)
        m.submodules.weights = weights = SoftmaxWeights(experts=config.max_experts, k=config.max_top_k)
        m.submodules.sigmoid = sigmoid = Sigmoid()

        index = Signal(16)
        is_gate = Signal()
        m.d.comb += [
            is_gate.eq(index == self.experts),
            to_logit.x.eq(self.i.payload.number),
            sigmoid.x.eq(self.i.payload.number),
            sigmoid.move.eq(1),
        ]
        with m.If(self.i.valid):
            m.d.sync += index.eq(Mux(self.i.payload.last, 0, index + 1))

        tag = data.StructLayout({"valid": 1, "gate": 1, "last": 1, "index": 16})
        tags = [Signal(tag, name=f"tag{i}") for i in range(Sigmoid.LATENCY)]
        m.d.sync += [
            tags[0].valid.eq(self.i.valid),
            tags[0].gate.eq(is_gate),
            tags[0].last.eq(self.i.payload.last),
            tags[0].index.eq(index),
            *[b.eq(a) for a, b in pairwise(tags)],
        ]
        scored, gated = tags[ToLogit.LATENCY - 1], tags[-1]
        m.d.comb += [
            topk.score.eq(to_logit.logit),
            topk.expert.eq(scored.index),
            topk.valid.eq(scored.valid & ~scored.gate),
            topk.clear.eq(self.ack),
            weights.score.eq(to_logit.logit),
            weights.score_index.eq(scored.index),
            weights.score_valid.eq(topk.valid),
            weights.best.eq(topk.best),
            weights.experts.eq(self.experts),
            weights.renormalise.eq(self.renormalise),
            weights.top_k.eq(self.top_k),
            # The gate is the slower of the two: when its last row has landed, the scores have.
            weights.start.eq(gated.valid & gated.last),
        ]
        shared = Signal(PROB_FRACTION + 1)
        with m.If(gated.valid & gated.gate):
            m.d.sync += shared.eq(sigmoid.y)
        m.d.comb += [
            self.route.shared.eq(Mux(self.shared_gated, shared, 1 << PROB_FRACTION)),
            self.route.weight.eq(weights.weights),
            Cat(*self.route.expert).eq(Cat(*(e.expert for e in topk.best))),
        ]
        with m.If(weights.done):
            m.d.sync += self.done.eq(1)
        with m.Elif(self.ack):
            m.d.sync += self.done.eq(0)
        return m
