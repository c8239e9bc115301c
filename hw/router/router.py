"""The router: rows of the router pass to a list of (expert, weight) and the base expert's weight."""

from itertools import pairwise

import numpy as np
from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.numerics.fixed import FIXED_BITS, ToFixed
from hw.numerics.scaled import SCALED, round_even
from hw.numerics.sigmoid import Sigmoid
from hw.router.admission import candidates_layout, removed_layout
from hw.router.choice import SCORE_BITS, Choice
from hw.router.gate import GATE, SIDE, Gate
from hw.router.weights import RoutingWeights
from hw.rows import hand_down, in_row, layer_member
from sw_model.config import HardwareConfig
from sw_model.golden import ALPHA_FRACTION, LOGIT_FRACTION
from sw_model.image import Image
from sw_model.tables import EXP2_FRACTION, PROB_FRACTION

__all__ = ["RULE", "Router", "route_layout"]

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
        "density_row": 1,
    }
)


def route_layout(config: HardwareConfig) -> data.StructLayout:
    """The chosen experts with their weights, and the base expert's weight."""
    return data.StructLayout({"chosen": candidates_layout(config), "shared": PROB_FRACTION + 1})


class Router(wiring.Component):
    """The checkpoint's own rule over the first E rows, then the three-level gate, if ``config`` has it.

    Behind the E rows stand, as far as the layer has them, the rows of the base expert's gate, of the semantic
    density and of the domains.

    Parameters
    ----------
    image : tables that it wakes up with; None: all are loaded

    Members
    -------
    i : stream of {number, last}: the rows of one token's router pass, in order
    layer : row of the tables; rule : :data:`RULE`; gate : :data:`~hw.router.gate.GATE`
    side : what came with the token (:data:`~hw.router.gate.SIDE`)
    load_addr, load_data : tables: selection biases (``load_biases_en``) and those of the gate
    route : see :func:`route_layout`
    hold : the gate, and where it is off what comes after the weights, waits
    done : ``route`` stands, until ``ack`` (one cycle)
    removed, removed_valid : candidates that each level of the gate removed (one cycle)

    Latency: about 20 cycles after the last row plus those of :class:`Choice`, :class:`RoutingWeights` and
    :class:`Gate`; it overlaps the base expert's gate_up pass. Always ready for rows.
    """

    def __init__(self, config: HardwareConfig, image: Image | None = None) -> None:
        self._config = config
        self._biases = [] if image is None else image.biases.view(np.int32).tolist()
        self._gate = Gate(config, image) if config.gate else None
        rows = data.StructLayout({"number": SCALED, "last": 1})
        super().__init__(
            {
                "i": In(stream.Signature(rows, always_ready=True)),
                **layer_member(config),
                "rule": In(RULE),
                "gate": In(GATE),
                "side": In(SIDE),
                "load_addr": In(32),
                "load_data": In(32),
                "load_biases_en": In(1),
                "load_costs_en": In(1),
                "load_domains_en": In(1),
                "load_resident_en": In(1),
                "route": Out(route_layout(config)),
                "hold": In(1),
                "done": Out(1),
                "ack": In(1),
                "removed": Out(removed_layout(config)),
                "removed_valid": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, rule = self._config, self.rule
        m.submodules.to_logit = to_logit = ToFixed(LOGIT_FRACTION)
        m.submodules.sigmoid = sigmoid = Sigmoid()
        m.submodules.choice = choice = Choice(config)
        m.submodules.weights = weights = RoutingWeights(config, SCORE_BITS)
        experts = max(2, config.max_experts)
        bits = (experts - 1).bit_length()
        depth = ((config.max_layers - 1) << bits) + experts
        m.submodules.biases = biases = Memory(
            shape=signed(FIXED_BITS), depth=depth, init=self._biases[:depth]
        )
        bias_write, bias = biases.write_port(), biases.read_port()

        index = Signal(16)
        m.d.comb += [
            to_logit.move.eq(1),
            to_logit.x.eq(self.i.payload.number),
            sigmoid.move.eq(1),
            sigmoid.alpha.eq(1 << ALPHA_FRACTION),
            sigmoid.x.eq(self.i.payload.number),
            bias_write.addr.eq(self.load_addr),
            bias_write.data.eq(self.load_data),
            bias_write.en.eq(self.load_biases_en),
        ]
        with m.If(self.i.valid):
            m.d.sync += index.eq(Mux(self.i.payload.last, 0, index + 1))

        # Logit and sigmoid meet where the slower of them comes out.
        at_density = rule.experts + rule.shared_gated
        at_domains = at_density + rule.density_row
        tag = data.StructLayout(
            {"valid": 1, "last": 1, "score": 1, "shared": 1, "density": 1, "domain": 1, "index": 16}
        )
        tags = [Signal(tag, name=f"tag{i}") for i in range(Sigmoid.LATENCY)]
        logits = [
            Signal(signed(FIXED_BITS), name=f"logit{i}") for i in range(Sigmoid.LATENCY - ToFixed.LATENCY)
        ]
        m.d.sync += [
            tags[0].valid.eq(self.i.valid),
            tags[0].last.eq(self.i.payload.last),
            tags[0].score.eq(index < rule.experts),
            tags[0].shared.eq(rule.shared_gated & (index == rule.experts)),
            tags[0].density.eq(rule.density_row & (index == at_density)),
            tags[0].domain.eq(index >= at_domains),
            tags[0].index.eq(index),
            *[b.eq(a) for a, b in pairwise(tags)],
            *[b.eq(a) for a, b in pairwise([to_logit.y, *logits])],
        ]
        now, logit = tags[-1], logits[-1]
        m.d.comb += [bias.addr.eq(in_row(self, tags[-2].index[:bits])), bias.en.eq(1)]
        shared = Signal(PROB_FRACTION + 1)
        with m.If(now.valid & now.shared):
            m.d.sync += shared.eq(round_even(sigmoid.y, EXP2_FRACTION - PROB_FRACTION))

        waiting, ready, done = Signal(), Signal(), Signal()
        m.d.comb += ready.eq((weights.done | waiting) & ~self.hold)
        m.d.sync += waiting.eq((weights.done | waiting) & self.hold)

        candidates = Signal(candidates_layout(config))
        m.d.comb += [
            choice.score.eq(Mux(rule.sigmoid, sigmoid.y + bias.data, logit)),
            choice.expert.eq(now.index),
            choice.valid.eq(now.valid & now.score),
            choice.last.eq(now.valid & now.last),
            choice.experts.eq(rule.experts),
            choice.groups.eq(rule.groups),
            choice.top_groups.eq(rule.top_groups),
            choice.top2.eq(rule.top2),
            weights.value.eq(Mux(rule.sigmoid, sigmoid.y, logit)),
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
            candidates.count.eq(rule.top_k),
            candidates.weight.eq(weights.weights),
            Cat(*candidates.expert).eq(Cat(*(e.index for e in choice.best))),
            self.route.chosen.eq(candidates),
            self.route.shared.eq(Mux(rule.shared_gated, shared, 1 << PROB_FRACTION)),
            done.eq(ready),
        ]
        if (gate := self._gate) is not None:
            m.submodules.gate = gate
            at_fixed = tags[ToFixed.LATENCY - 1]
            m.d.comb += [
                weights.everyone.eq(self.gate.enable),
                gate.i.eq(candidates),
                *hand_down(self, gate),
                gate.gate.eq(self.gate),
                gate.side.eq(self.side),
                gate.number.eq(self.i.payload.number),
                gate.density_valid.eq(at_fixed.valid & at_fixed.density),
                gate.domain_score.eq(logit),
                gate.domain_valid.eq(now.valid & now.domain),
                gate.p.eq(weights.p),
                gate.distance.eq(weights.distance),
                gate.p_valid.eq(weights.p_valid),
                gate.p_done.eq(weights.p_done & ~rule.sigmoid),
                gate.start.eq(ready & self.gate.enable),
                gate.clear.eq(self.ack),
                gate.load_addr.eq(self.load_addr),
                gate.load_data.eq(self.load_data),
                gate.load_costs_en.eq(self.load_costs_en),
                gate.load_domains_en.eq(self.load_domains_en),
                gate.load_resident_en.eq(self.load_resident_en),
                self.removed.eq(gate.removed),
                self.removed_valid.eq(gate.done),
            ]
            with m.If(self.gate.enable):
                m.d.comb += [self.route.chosen.eq(gate.o), done.eq(gate.done)]
        with m.If(done):
            m.d.sync += self.done.eq(1)
        with m.Elif(self.ack):
            m.d.sync += self.done.eq(0)
        return m
