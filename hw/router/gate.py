"""The three-level gate: density, domain and cost of the candidates, then admission."""

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.numerics.fixed import FIXED_BITS, ToFixed
from hw.numerics.scaled import SCALED
from hw.router.admission import Admission, candidates_layout, removed_layout
from hw.router.cost import Cost
from hw.router.density import Density
from hw.router.domain import Domain
from hw.router.entropy import DISTANCE_BITS, Entropy
from hw.router.q78 import Q78, saturate
from hw.rows import hand_down, layer_member
from sw_model.config import HardwareConfig
from sw_model.gate import ENTROPY_SCALE_FRACTION, FRACTION, MAX_TAU
from sw_model.image import Image
from sw_model.tables import EXP2

__all__ = ["GATE", "SIDE", "Gate"]

#: The gate's registers (see :class:`sw_model.gate.Gate`).
GATE = data.StructLayout(
    {
        "enable": 1,
        "info": Q78,
        "entropy": Q78,
        "entropy_scale": ENTROPY_SCALE_FRACTION + 1,
        "density": Q78,
        "lam": Q78,
        "phi": Q78,
        "psi": Q78,
        "cap": 8,
        "tau": data.ArrayLayout(Q78, MAX_TAU),
    }
)

#: What comes with a token: its information (Q5.3), and the domain that the request is tagged with.
SIDE = data.StructLayout({"info": 8, "tag": 7, "tagged": 1})


class Gate(wiring.Component):
    """Wires the levels together; each is a component of its own.

    Parameters
    ----------
    image : tables that it wakes up with; None: all are loaded

    Members
    -------
    i, start : candidates (:func:`~hw.router.admission.candidates_layout`), and that they stand (one cycle)
    layer, gate, side : registers; what came with the token
    number, density_valid : a router row, and, ``ToFixed.LATENCY`` cycles later, that it was the density's
    domain_score, domain_valid : the domains' rows
    p, distance, p_valid, p_done : see :class:`~hw.router.weights.RoutingWeights`
    clear : the token is done with
    load_* : the tables
    o, done : those that stay (one cycle); removed : how many each level removed

    Latency: that of :class:`Admission`, from ``start``.
    """

    def __init__(self, config: HardwareConfig, image: Image | None = None) -> None:
        self._config = config
        self._cost = Cost(config, None if image is None else image.costs.tolist())
        self._domain = Domain(config, None if image is None else image.domains.tolist())
        layout = candidates_layout(config)
        super().__init__(
            {
                "i": In(layout),
                "start": In(1),
                **layer_member(config),
                "gate": In(GATE),
                "side": In(SIDE),
                "number": In(SCALED),
                "density_valid": In(1),
                "domain_score": In(signed(FIXED_BITS)),
                "domain_valid": In(1),
                "p": In(EXP2.out_bits),
                "distance": In(DISTANCE_BITS),
                "p_valid": In(1),
                "p_done": In(1),
                "clear": In(1),
                "load_addr": In(32),
                "load_data": In(32),
                "load_costs_en": In(1),
                "load_domains_en": In(1),
                "load_resident_en": In(1),
                "o": Out(layout),
                "removed": Out(removed_layout(config)),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, gate = self._config, self.gate
        m.submodules.row = row = ToFixed(FRACTION)
        m.submodules.entropy = entropy = Entropy(config)
        m.submodules.density = density = Density(config.max_top_k)
        m.submodules.domain = domain = self._domain
        m.submodules.cost = cost = self._cost
        m.submodules.admission = admission = Admission(config)

        row_value, h = Signal(Q78), Signal(Q78)
        with m.If(self.density_valid):
            m.d.sync += row_value.eq(saturate(row.y))
        with m.If(entropy.done):
            m.d.sync += h.eq(entropy.h)
        with m.If(self.clear):
            m.d.sync += [row_value.eq(0), h.eq(0)]
        m.d.comb += [
            row.move.eq(1),
            row.x.eq(self.number),
            entropy.clear.eq(self.clear),
            entropy.p.eq(self.p),
            entropy.distance.eq(self.distance),
            entropy.valid.eq(self.p_valid),
            entropy.start.eq(self.p_done),
            entropy.scale.eq(gate.entropy_scale),
            density.info.eq(self.side.info),
            density.entropy.eq(h),
            density.row.eq(row_value),
            density.info_weight.eq(gate.info),
            density.entropy_weight.eq(gate.entropy),
            *[density.tau[j].eq(gate.tau[j]) for j in range(config.max_top_k)],
            domain.clear.eq(self.clear),
            domain.score.eq(self.domain_score),
            domain.valid.eq(self.domain_valid),
            domain.tag.eq(self.side.tag),
            domain.tag_valid.eq(self.side.tagged),
            *hand_down(self, domain, cost),
            domain.expert.eq(admission.expert),
            domain.load_addr.eq(self.load_addr),
            domain.load_data.eq(self.load_data),
            domain.load_en.eq(self.load_domains_en),
            cost.expert.eq(admission.expert),
            cost.load_addr.eq(self.load_addr),
            cost.load_data.eq(self.load_data),
            cost.load_en.eq(self.load_costs_en),
            cost.resident_en.eq(self.load_resident_en),
            admission.i.eq(self.i),
            admission.start.eq(self.start),
            admission.bias.eq(domain.bias),
            admission.cost.eq(cost.cost),
            admission.density.eq(density.density),
            admission.allowed.eq(density.allowed),
            admission.phi.eq(gate.phi),
            admission.psi.eq(gate.psi),
            admission.density_weight.eq(gate.density),
            admission.lam.eq(gate.lam),
            admission.cap.eq(gate.cap),
            self.o.eq(admission.o),
            self.removed.eq(admission.removed),
            self.done.eq(admission.done),
        ]
        return m
