"""Final admission: which of the router's candidates stay."""

from itertools import pairwise

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.numerics.log2 import Log2
from hw.router.cost import Cost
from hw.router.domain import Domain
from hw.router.q78 import Q78, product, saturate
from sw_model.config import HardwareConfig
from sw_model.gate import Q_MIN
from sw_model.tables import PROB_FRACTION, WEIGHT_BITS

__all__ = ["Admission", "candidates_layout", "removed_layout"]


def candidates_layout(config: HardwareConfig) -> data.StructLayout:
    """Experts with their weights, the first ``count`` of them valid."""
    expert = max(1, (config.max_experts - 1).bit_length())
    k = config.max_top_k
    return data.StructLayout(
        {
            "count": range(k + 1),
            "expert": data.ArrayLayout(expert, k),
            "weight": data.ArrayLayout(WEIGHT_BITS, k),
        }
    )


def removed_layout(config: HardwareConfig) -> data.ArrayLayout:
    """Candidates that each level removed: density, domain, cost, cap."""
    return data.ArrayLayout(range(config.max_top_k + 1), 4)


class Admission(wiring.Component):
    """u_e = log2 w_e + B[e]; an expert stays if

        rank of u_e < min(allowed, cap),   u_e >= phi,   u_e + a D - lambda C_e >= psi

    Ties in the rank go to the better candidate; the order of those that stay is that of the candidates.

    Members
    -------
    i : candidates, best first (:func:`candidates_layout`); ``start`` (one cycle)
    expert : to the tables of :class:`Domain` and :class:`Cost`; ``bias`` and ``cost`` from them
    density, allowed : from level 1
    phi, psi, density_weight, lam, cap : registers
    o : those that stay; ``removed``: how many each level removed (1, 2, 3, cap)
    done : ``o`` stands (one cycle)

    Latency: 2 k + about 8 cycles. Equals :func:`sw_model.gate.admit`.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._k = config.max_top_k
        layout = candidates_layout(config)
        super().__init__(
            {
                "i": In(layout),
                "start": In(1),
                "expert": Out(layout["expert"].shape.elem_shape),
                "bias": In(Q78),
                "cost": In(Q78),
                "density": In(Q78),
                "allowed": In(range(self._k + 1)),
                "phi": In(Q78),
                "psi": In(Q78),
                "density_weight": In(Q78),
                "lam": In(Q78),
                "cap": In(8),
                "o": Out(layout),
                "removed": Out(removed_layout(config)),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        k = self._k
        m.submodules.log2 = log2 = Log2(WEIGHT_BITS, PROB_FRACTION)

        # Candidates enter the tables one a cycle; u and worth of each land a fixed time later.
        rank = Signal(range(k + 1))
        expert = Array(self.i.expert[j] for j in range(k))[rank]
        weight = Array(self.i.weight[j] for j in range(k))[rank]
        feeding = Signal()
        depth = max(Log2.LATENCY, Domain.LATENCY, Cost.LATENCY)
        tag = data.StructLayout({"valid": 1, "rank": range(k + 1), "zero": 1})
        tags = [Signal(tag, name=f"tag{i}") for i in range(depth + 2)]
        bias = [self.bias, *(Signal(Q78, name=f"bias{i}") for i in range(depth - Domain.LATENCY))]
        cost = [self.cost, *(Signal(Q78, name=f"cost{i}") for i in range(depth - Cost.LATENCY))]
        log = [log2.y, *(Signal(Q78, name=f"log{i}") for i in range(depth - Log2.LATENCY))]
        u_now, u_late, charge = Signal(Q78), Signal(Q78), Signal(32)
        credit = Signal(32)
        u = Array(Signal(Q78, name=f"u{j}") for j in range(k))
        worth = Array(Signal(Q78, name=f"worth{j}") for j in range(k))
        m.d.comb += [self.expert.eq(expert), log2.x.eq(weight)]
        m.d.sync += [
            tags[0].valid.eq(feeding),
            tags[0].rank.eq(rank),
            tags[0].zero.eq(weight == 0),
            *[b.eq(a) for a, b in pairwise(tags)],
            *[b.eq(a) for line in (bias, cost, log) for a, b in pairwise(line)],
            u_now.eq(saturate(Mux(tags[depth - 1].zero, Q_MIN, log[-1]) + bias[-1])),
            charge.eq(product(self.lam, cost[-1])),
            credit.eq(product(self.density_weight, self.density)),
            u_late.eq(u_now),
        ]
        net = Signal(Q78)
        m.d.sync += net.eq(saturate(u_now + credit.as_signed() - charge.as_signed()))
        landed = tags[depth + 1]
        with m.If(landed.valid):
            m.d.sync += [u[landed.rank].eq(u_late), worth[landed.rank].eq(net)]

        # Then each is judged against all.
        mine = u[rank]
        better = [Signal(name=f"better{j}") for j in range(k)]
        place = Signal(range(k + 1))
        fails = Signal(4)
        m.d.comb += [
            *[
                b.eq((j < self.i.count) & ((u[j] > mine) | ((u[j] == mine) & (j < rank))))
                for j, b in enumerate(better)
            ],
            place.eq(sum(Cat(b) for b in better)),
            fails.eq(Cat(place >= self.allowed, mine < self.phi, worth[rank] < self.psi, place >= self.cap)),
        ]
        last = rank == self.i.count - 1
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += rank.eq(0)
                with m.If(self.start):
                    m.d.sync += [self.o.count.eq(0), *[r.eq(0) for r in self.removed]]
                    m.next = "FEED"
            with m.State("FEED"):
                m.d.comb += feeding.eq(1)
                m.d.sync += rank.eq(rank + 1)
                with m.If(last):
                    m.d.sync += rank.eq(0)
                    m.next = "SETTLE"
            with m.State("SETTLE"):
                with m.If(~Cat(*(t.valid for t in tags)).any()):
                    m.next = "JUDGE"
            with m.State("JUDGE"):
                m.d.sync += rank.eq(rank + 1)
                with m.If(~fails.any()):
                    m.d.sync += self.o.count.eq(self.o.count + 1)
                    for j in range(k):
                        with m.If(self.o.count == j):
                            m.d.sync += [self.o.expert[j].eq(expert), self.o.weight[j].eq(weight)]
                for level in range(4):
                    first = fails[level] & ~fails[:level].any() if level else fails[0]
                    m.d.sync += self.removed[level].eq(self.removed[level] + first)
                with m.If(last):
                    m.next = "DONE"
            with m.State("DONE"):
                m.d.comb += self.done.eq(1)
                m.next = "IDLE"
        return m
