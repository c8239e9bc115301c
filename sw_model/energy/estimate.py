"""The running estimate of energy: integer weights of the counters, as the hardware's registers hold them.

    e = sum over events of weight * count  (+ the decoder's reads of keys and values)

in units that a budget fixes. The energy model is linear in the counts, so the weights are the energies of one
event each, rounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from sw_model.energy.counts import Counts, work
from sw_model.energy.governor import registers
from sw_model.energy.meter import WEIGHTS, Governor, weights_of
from sw_model.energy.model import Conditions, energy, total
from sw_model.energy.table import Technology
from sw_model.errors import ExpertileError
from sw_model.quantised import QuantisedLayer

__all__ = ["EVENTS", "KEY_BITS", "Estimate", "estimate"]

EVENTS = (
    "word_reads",
    "nibble_passes",
    "block_sums",
    "act_writes",
    "router_rows",
    "activations",
    "combine_rows",
)
KEY_BITS = 8  # of an element of a key or a value, kept in memories like those that contexts are read from
UNITS = 1 << 23  # of a budget
MOST = (1 << WEIGHTS["READ"]) - 1  # units of an event


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """weights : of an event, by name, in ``unit`` pJ; bit : pJ of a bit of keys and values; budget : in
    units"""

    weights: dict[str, int]
    unit: float
    bit: float
    budget: int

    def governor(self, layer: QuantisedLayer, name: str) -> Governor:
        """The governor of ``layer`` under this budget, from nothing owed.

        Raises
        ------
        ExpertileError : a token of the layer (``name``, for the message) takes more even with no routed
            expert and by high nibbles, or what it takes does not fit the meter's registers
        """
        nothing = np.zeros((1, layer.rule.top_k), dtype=np.int64)
        least = self.of(work(layer, nothing, nothing != 0, np.ones(1, dtype=bool)))
        if least > self.budget:
            nj = self.unit / 1000
            raise ExpertileError(
                f"energy budget: {name} may take {self.budget * nj:.4g} nJ a token of it, and takes "
                f"{least * nj:.4g} with no routed expert; give at least "
                f"{math.ceil(100 * least / self.budget) / 100:g} times as much"
            )
        return Governor(registers(self.budget), weights_of(layer, self.weights))

    def keys(self, bits: int) -> int:
        """Units of so many bits of keys and values."""
        return round(bits * self.bit / self.unit)

    def of(self, work: Counts) -> int:
        """Units that the work took."""
        return sum(weight * int(getattr(work, name).sum()) for name, weight in self.weights.items())


def estimate(tech: Technology, conditions: Conditions, budget_nj: float) -> Estimate:
    """Weights for a budget of ``budget_nj`` a token: one unit is its 2**-23rd part, or as much more as it
    takes for every event's weight to fit its register; the governor checks what a token or expert takes.

    Raises
    ------
    ExpertileError : the budget is no positive number
    """
    if not (math.isfinite(budget_nj) and budget_nj > 0):
        raise ExpertileError(f"energy budget {budget_nj:g} nJ: a positive number is needed")
    costs = {}
    for event in EVENTS:
        one = Counts(**{f.name: np.array(int(f.name == event)) for f in fields(Counts)})
        costs[event] = total(energy(one, tech, "cim", conditions), compute=True)
    unit = max(1000 * budget_nj / UNITS, max(costs.values()) / MOST)
    bit = tech.macro[conditions.macro or tech.macro_default].read
    return Estimate(
        weights={event: round(cost / unit) for event, cost in costs.items()},
        unit=unit,
        bit=bit,
        budget=round(1000 * budget_nj / unit),
    )
