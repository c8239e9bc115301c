"""The router: rows of the router pass to a list of (expert, weight) and the base expert's weight."""

from itertools import pairwise

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.numerics.fixed import FIXED_BITS, ToFixed
from hw.numerics.scaled import SCALED, round_even
from hw.numerics.sigmoid import Sigmoid
from hw.router.choice import SCORE_BITS, Choice
from hw.router.topk import entry_layout
from hw.router.weights import RoutingWeights
from sw_model.config import HardwareConfig
from sw_model.golden import ALPHA_FRACTION, LOGIT_FRACTION
from sw_model.tables import EXP2_FRACTION, PROB_FRACTION, WEIGHT_BITS

__all__ = ["RULE", "Router"]

#: What the router needs to know of the layer.
RULE = data.StructLayout(
    {
        "experts": 16,
        "top_k": 8,
        "groups": 8,
        "top_groups": 8,
        "scale": 16,
        "renormalise": 1,
        "sigmoid": 1,
        "top2": 1,
        "shared_gated": 1,
    }
)


class Router(wiring.Component):
    """The checkpoint's own rule over the first E rows; a row after them, if the base expert is gated, is its
    gate.

    Parameters
    ----------
    biases : initial selection biases (a baked image)

    Members
    -------
    i : stream of {number, last}: the rows of one token's router pass, in order
    rule : :data:`RULE`
    bias_addr, bias_data, bias_en : load a selection bias (Q7.24)
    route : experts, best first; their weights; the base expert's weight (1 if ungated)
    done : ``route`` stands, until ``ack`` (one cycle)

    Latency: about 20 cycles after the last row plus those of :class:`Choice` and :class:`RoutingWeights`; it
    overlaps the base expert's gate_up pass. Always ready for rows.
    """

    def __init__(self, config: HardwareConfig, biases: list[int] | None = None) -> None:
        self._config = config
        self._biases = biases or []
        expert = entry_layout(SCORE_BITS, config.max_experts)["index"].shape
        k = config.max_top_k
        self.route_layout = data.StructLayout(
            {
                "expert": data.ArrayLayout(expert, k),
                "weight": data.ArrayLayout(WEIGHT_BITS, k),
                "shared": PROB_FRACTION + 1,
            }
        )
        super().__init__(
            {
                "i": In(
                    stream.Signature(data.StructLayout({"number": SCALED, "last": 1}), always_ready=True)
                ),
                "rule": In(RULE),
                "bias_addr": In(16),
                "bias_data": In(signed(FIXED_BITS)),
                "bias_en": In(1),
                "route": Out(self.route_layout),
                "done": Out(1),
                "ack": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, rule = self._config, self.rule
        m.submodules.to_logit = to_logit = ToFixed(LOGIT_FRACTION)
        m.submodules.sigmoid = sigmoid = Sigmoid()
        m.submodules.choice = choice = Choice(config)
        m.submodules.weights = weights = RoutingWeights(config, SCORE_BITS)
        m.submodules.biases = biases = Memory(
            shape=signed(FIXED_BITS), depth=max(2, config.max_experts), init=self._biases
        )
        bias_write, bias = biases.write_port(), biases.read_port()

        index = Signal(16)
        m.d.comb += [
            to_logit.move.eq(1),
            to_logit.x.eq(self.i.payload.number),
            sigmoid.move.eq(1),
            sigmoid.alpha.eq(1 << ALPHA_FRACTION),
            sigmoid.x.eq(self.i.payload.number),
            bias_write.addr.eq(self.bias_addr),
            bias_write.data.eq(self.bias_data),
            bias_write.en.eq(self.bias_en),
        ]
        with m.If(self.i.valid):
            m.d.sync += index.eq(Mux(self.i.payload.last, 0, index + 1))

        # Logit and sigmoid meet where the slower of them comes out.
        tag = data.StructLayout({"valid": 1, "gate": 1, "final": 1, "last": 1, "index": 16})
        tags = [Signal(tag, name=f"tag{i}") for i in range(Sigmoid.LATENCY)]
        logits = [
            Signal(signed(FIXED_BITS), name=f"logit{i}") for i in range(Sigmoid.LATENCY - ToFixed.LATENCY)
        ]
        m.d.sync += [
            tags[0].valid.eq(self.i.valid),
            tags[0].gate.eq(index == rule.experts),
            tags[0].final.eq(index == rule.experts - 1),
            tags[0].last.eq(self.i.payload.last),
            tags[0].index.eq(index),
            *[b.eq(a) for a, b in pairwise(tags)],
            *[b.eq(a) for a, b in pairwise([to_logit.y, *logits])],
        ]
        now = tags[-1]
        m.d.comb += [bias.addr.eq(tags[-2].index), bias.en.eq(1)]
        m.d.comb += [
            choice.score.eq(Mux(rule.sigmoid, sigmoid.y + bias.data, logits[-1])),
            choice.expert.eq(now.index),
            choice.valid.eq(now.valid & ~now.gate),
            choice.last.eq(now.final),
            choice.experts.eq(rule.experts),
            choice.groups.eq(rule.groups),
            choice.top_groups.eq(rule.top_groups),
            choice.top2.eq(rule.top2),
            weights.value.eq(Mux(rule.sigmoid, sigmoid.y, logits[-1])),
            weights.expert.eq(now.index),
            weights.valid.eq(choice.valid),
            weights.best.eq(choice.best),
            weights.experts.eq(rule.experts),
            weights.top_k.eq(rule.top_k),
            weights.renormalise.eq(rule.renormalise),
            weights.sigmoid.eq(rule.sigmoid),
            weights.scale.eq(rule.scale),
            weights.start.eq(choice.done),
            weights.restart.eq(self.ack),
        ]
        shared = Signal(PROB_FRACTION + 1)
        with m.If(now.valid & now.gate):
            m.d.sync += shared.eq(round_even(sigmoid.y, EXP2_FRACTION - PROB_FRACTION))
        m.d.comb += [
            self.route.shared.eq(Mux(rule.shared_gated, shared, 1 << PROB_FRACTION)),
            self.route.weight.eq(weights.weights),
            Cat(*self.route.expert).eq(Cat(*(e.index for e in choice.best))),
        ]
        # The gate's row is the last one, and has long landed when the weights are done.
        with m.If(weights.done):
            m.d.sync += self.done.eq(1)
        with m.Elif(self.ack):
            m.d.sync += self.done.eq(0)
        return m
