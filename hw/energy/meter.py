"""Meter: what each token costs, from the events of its passes and a weight of each."""

from collections.abc import Mapping

from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from sw_model.energy.governor import ENERGY_BITS
from sw_model.energy.meter import WEIGHTS

__all__ = ["PASS_END", "Meter"]

#: A pass ends: of the router, a routed expert's down, the base expert's or the fallback's; a token's last.
PASS_END = data.StructLayout({"router": 1, "expert": 1, "base": 1, "final": 1})


class Meter(wiring.Component):
    """energy = min(sum over the token's cycles of  READ reads + PASS computes + SUM sums
                    + TOKEN at its router pass + EXPERT, BASE at each down pass, 2**ENERGY_BITS - 1)

    Parameters
    ----------
    most : most of "reads", "computes" and "sums" in a cycle

    Members
    -------
    weights : registers (:data:`sw_model.energy.meter.WEIGHTS`)
    reads, computes, sums : events of this cycle; end : passes that end with it (:data:`PASS_END`)
    token : whose they are: two tokens may be at work, which take turns
    energy, done : units that a token took, after the last of its passes (one cycle)

    Latency: ``LATENCY`` from the last event to ``done``. Throughput: a cycle's events a cycle.
    """

    LATENCY = 4

    def __init__(self, most: Mapping[str, int]) -> None:
        self._most = dict(most)
        super().__init__(
            {
                "weights": In(data.StructLayout(WEIGHTS)),
                **{name: In(range(n + 1)) for name, n in most.items()},
                "end": In(PASS_END),
                "token": In(1),
                "energy": Out(ENERGY_BITS),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        weights, largest = self.weights, (1 << ENERGY_BITS) - 1
        events = {"reads": weights.READ, "computes": weights.PASS, "sums": weights.SUM}

        # A stage each: events; products and what a pass costs besides; their sum; the token's sum.
        products = []
        for name, weight in events.items():
            count = Signal.like(getattr(self, name), name=f"{name}_now")
            product = Signal(len(count) + len(weight), name=f"{name}_cost")
            m.d.sync += [count.eq(getattr(self, name)), product.eq(count * weight)]
            products.append(product)
        end = Signal(PASS_END)
        besides = Signal(max(WEIGHTS.values()))
        token, final = (
            [Signal(name=f"token{i}") for i in range(3)],
            [Signal(name=f"final{i}") for i in range(2)],
        )
        cost = Signal(max(len(p) for p in (*products, besides)) + 2)
        m.d.sync += [
            end.eq(self.end),
            besides.eq(
                Mux(
                    end.router, weights.TOKEN, Mux(end.expert, weights.EXPERT, Mux(end.base, weights.BASE, 0))
                )
            ),
            cost.eq(sum(products) + besides),
            token[0].eq(self.token),
            token[1].eq(token[0]),
            token[2].eq(token[1]),
            final[0].eq(end.final),
            final[1].eq(final[0]),
        ]
        so_far = Array(Signal(ENERGY_BITS, name=f"so_far{i}") for i in range(2))
        now, total = token[2], Signal(range(largest + (1 << len(cost))))
        bounded = Signal(ENERGY_BITS)
        m.d.comb += [total.eq(so_far[now] + cost), bounded.eq(Mux(total > largest, largest, total))]
        m.d.sync += [
            so_far[now].eq(Mux(final[1], 0, bounded)),
            self.energy.eq(bounded),
            self.done.eq(final[1]),
        ]
        return m
