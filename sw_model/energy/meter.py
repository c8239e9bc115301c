"""The meter: what a token costs by the hardware's registers, and the governor over a layer's tokens.

    e = min(READ word_reads + PASS nibble_passes + SUM block_sums + TOKEN + EXPERT experts_used
            + BASE (with a base expert, or where the fallback answers), 2**ENERGY_BITS - 1)

TOKEN, EXPERT and BASE stand for what the shape of the layer fixes: blocks written to the activation buffers,
logits, elements of h, rows of the combine. TOKEN may hold more, that something beside the core takes for the
token: the reads of keys and values, say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sw_model.energy import governor
from sw_model.energy.counts import X_BYTES, Counts
from sw_model.energy.governor import ENERGY_BITS, Registers, State
from sw_model.errors import ExpertileError
from sw_model.formats import BLOCK
from sw_model.gate import Q_MAX, Gate
from sw_model.quantised import QuantisedLayer

__all__ = ["WEIGHTS", "Governor", "Setting", "weights_of"]

#: Registers of the meter: name (behind ENERGY_) -> bits.
WEIGHTS = {"READ": 16, "PASS": 16, "SUM": 16, "TOKEN": 24, "EXPERT": 24, "BASE": 24}


def weights_of(layer: QuantisedLayer, events: dict[str, int]) -> dict[str, int]:
    """Values of :data:`WEIGHTS` for ``layer``, from the units of each event of
    :data:`sw_model.energy.estimate.EVENTS`.

    Raises
    ------
    ExpertileError : one does not fit its register
    """

    def besides(blocks: int, elements: int) -> int:
        h = events["act_writes"] * blocks + events["activations"] * elements
        return h + events["combine_rows"] * layer.hidden

    base = 0
    if layer.shared is not None:
        base = besides(layer.shared.down.blocks, layer.shared.intermediate)
    elif layer.fallback is not None:
        base = besides(1, 0)
    x_blocks = X_BYTES * (-(-layer.hidden // BLOCK) + layer.x_biased)
    found = {
        "READ": events["word_reads"],
        "PASS": events["nibble_passes"],
        "SUM": events["block_sums"],
        "TOKEN": events["act_writes"] * x_blocks + events["router_rows"] * layer.router.rows,
        "EXPERT": besides(layer.experts[0].down.blocks, layer.experts[0].intermediate),
        "BASE": base,
    }
    for name, value in found.items():
        if value >= 1 << WEIGHTS[name]:
            raise ExpertileError(
                f"energy weight {name}: {value} units do not fit {WEIGHTS[name]} bits: "
                "the energy budget is too small; give a larger one"
            )
    return found


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a token ran under, and what it took; ints."""

    lam: int
    cap: int
    mode: int
    high: int
    credit: int
    energy: int


class Governor:
    """The governor of a layer's core and its meter, from token to token.

    Parameters
    ----------
    registers : of the governor
    weights : of the meter (:func:`weights_of`)

    Attributes
    ----------
    registers, weights : they may be changed while no token is in the core
    state : what the next token runs under
    energy : of the last token
    """

    def __init__(self, registers: Registers, weights: dict[str, int]) -> None:
        self.registers = registers
        self.weights = dict(weights)
        self._token = weights["TOKEN"]
        self.state: State = governor.start(registers)
        self.energy = 0

    def gate(self, gate: Gate) -> Gate:
        """``gate`` as the next token meets it."""
        s = self.state
        return replace(gate, lam=min(gate.lam + int(s.lam), Q_MAX), cap=min(gate.cap, int(s.cap)))

    @property
    def decided(self) -> dict[str, int]:
        """What the hardware's registers show after the last token."""
        s = self.state
        shown = {"lambda": s.lam, "cap": s.cap, "mode": s.mode, "high": s.later, "credit": s.credit}
        return {name: int(value) for name, value in shown.items()} | {"energy": self.energy}

    def outside(self, units: int) -> None:
        """From now on a token takes so many units beside the core."""
        self.weights["TOKEN"] = min(self._token + units, (1 << WEIGHTS["TOKEN"]) - 1)

    def cost(self, layer: QuantisedLayer, work: Counts) -> int:
        """Units that a token of this ``work`` took."""
        w, n = self.weights, work.figures()
        used = n["experts_used"]
        based = layer.shared is not None or (layer.fallback is not None and not used)
        spent = w["READ"] * n["word_reads"] + w["PASS"] * n["nibble_passes"] + w["SUM"] * n["block_sums"]
        spent += w["TOKEN"] + w["EXPERT"] * used + w["BASE"] * based
        return min(spent, (1 << ENERGY_BITS) - 1)

    def spend(self, layer: QuantisedLayer, work: Counts) -> Setting:
        """A token is through; ``work`` (its own) is charged."""
        s, self.energy = self.state, self.cost(layer, work)
        energy = self.energy
        self.state = governor.step(s, self.registers, np.asarray(energy))
        names = ("lam", "cap", "mode", "high", "credit")
        return Setting(**{name: int(getattr(s, name)) for name in names}, energy=energy)
