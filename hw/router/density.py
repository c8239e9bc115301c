"""Level 1 of the gate: semantic density."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.router.q78 import Q78, saturate
from sw_model.gate import FRACTION, INFO_FRACTION

__all__ = ["Density"]


class Density(wiring.Component):
    """D = a_I I + a_H H + v . x, and how many experts it allows: the number of thresholds tau_j <= D.

    Parameters
    ----------
    k : number of thresholds

    Members
    -------
    info : Q5.3; entropy, row (v . x) : Q7.8
    info_weight, entropy_weight : a_I, a_H
    tau : thresholds
    density, allowed : ``LATENCY`` cycles later

    Throughput: one a cycle.
    """

    LATENCY = 2

    def __init__(self, k: int) -> None:
        self._k = k
        super().__init__(
            {
                "info": In(8),
                "entropy": In(Q78),
                "row": In(Q78),
                "info_weight": In(Q78),
                "entropy_weight": In(Q78),
                "tau": In(data.ArrayLayout(Q78, k)),
                "density": Out(Q78),
                "allowed": Out(range(k + 1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        info = self.info << (FRACTION - INFO_FRACTION)
        total = self.info_weight * info + self.entropy_weight * self.entropy + (self.row << FRACTION)
        density = Signal(Q78)
        m.d.sync += density.eq(saturate((total + (1 << (FRACTION - 1))) >> FRACTION))
        passed = [Signal(name=f"passed{j}") for j in range(self._k)]
        m.d.comb += [p.eq(density >= tau) for p, tau in zip(passed, self.tau, strict=True)]
        m.d.sync += [self.density.eq(density), self.allowed.eq(sum(Cat(p) for p in passed))]
        return m
