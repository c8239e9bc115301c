"""Formats by measurement: which expert matrices earn eight bits, under a size or a quality budget.

For every expert matrix and format, with all else exact, the layer's output error on calibration tokens is

    err(e, m, f) = sum over tokens t routed to e of  w_t**2 * |E_e(x_t) - E_e(x_t; m quantised to f)|**2

Errors of different matrices are taken to add up. All matrices start in their better four-bit format, and
are raised to their better eight-bit format in the order of error saved per byte, until the budget is met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sw_model import golden, reference
from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError
from sw_model.formats import SCALE_BITS, WeightFormat, pad_blocks, quantise_weights
from sw_model.moe import Expert, MoELayer
from sw_model.quantised import ExpertFormats, quantise
from sw_model.scale_search import Importance, search_scales

MATRICES = ("gate_up", "down")


@dataclass(frozen=True, kw_only=True)
class FormatChoice:
    """Formats of every expert (the shared one last); bits a weight with scales; measured SQNR in dB."""

    formats: tuple[ExpertFormats, ...]
    bits: float
    sqnr_db: float


@dataclass(kw_only=True)
class _Candidate:
    """One matrix: its better four- and eight-bit formats with their errors, and its size in blocks."""

    expert: int
    matrix: str
    blocks: int
    narrow: tuple[str, float]
    wide: tuple[str, float]
    raised: bool = False

    @property
    def gain(self) -> float:
        """Error saved by raising it, a block."""
        return (self.narrow[1] - self.wide[1]) / self.blocks


def importance_of(layer: MoELayer, x: np.ndarray) -> tuple[Importance, ...]:
    """Mean squares of what each expert's matrices multiply, on the tokens routed to it (all, if none are)."""
    routed = reference.route(layer, x.astype(np.float64))[0]
    found = []
    for e, expert in enumerate(layer.everyone):
        mine = x[(routed == e).any(axis=1)] if e < layer.n_experts else x
        mine = (mine if len(mine) else x).astype(np.float64)
        h = reference.hidden_of(layer, expert, mine)
        found.append(Importance(gate_up=(mine**2).mean(axis=0), down=(h**2).mean(axis=0)))
    return tuple(found)


def _rounded(w: np.ndarray, fmt: WeightFormat, spread: int, matters: np.ndarray | None) -> np.ndarray:
    ideal = search_scales(w, fmt, matters)
    return quantise_weights(w, fmt, spread=spread, ideal=ideal).to_float().astype(np.float32)


def _variants(expert: Expert, matrix: str, fmt: WeightFormat, spread: int, i: Importance) -> Expert:
    names = ("gate", "up") if matrix == "gate_up" else ("down",)
    matters = i.gate_up if matrix == "gate_up" else i.down
    return replace(expert, **{n: _rounded(getattr(expert, n), fmt, spread, matters) for n in names}, coded={})


def _candidates(
    layer: MoELayer, x: np.ndarray, config: HardwareConfig, importance: Sequence[Importance]
) -> list[_Candidate]:
    routed, weights, _ = reference.route(layer, x.astype(np.float64))
    found = []
    for e, expert in enumerate(layer.everyone):
        if e < layer.n_experts:
            tokens, rank = np.nonzero(routed == e)
            share = weights[tokens, rank]
        else:
            tokens, share = np.arange(len(x)), reference.shared_weight(layer, x)
        mine = x[tokens].astype(np.float64)
        exact = reference.expert(layer, expert, mine)
        for matrix in MATRICES:
            errors: dict[int, tuple[str, float]] = {}
            for fmt in config.formats:
                variant = _variants(expert, matrix, fmt, config.spread(fmt), importance[e])
                error = (reference.expert(layer, variant, mine) - exact) * share[:, None]
                measured = (fmt.name, float((error**2).sum()))
                if fmt.bits not in errors or measured[1] < errors[fmt.bits][1]:
                    errors[fmt.bits] = measured
            rows = 2 * expert.intermediate if matrix == "gate_up" else expert.hidden
            columns = expert.hidden if matrix == "gate_up" else expert.intermediate
            found.append(
                _Candidate(
                    expert=e,
                    matrix=matrix,
                    blocks=rows * pad_blocks(np.zeros(columns)).shape[0],
                    narrow=errors[4],
                    wide=errors[8],
                )
            )
    return found


def _formats(candidates: Sequence[_Candidate]) -> tuple[ExpertFormats, ...]:
    names = {(c.expert, c.matrix): (c.wide if c.raised else c.narrow)[0] for c in candidates}
    experts = sorted({c.expert for c in candidates})
    return tuple(ExpertFormats(gate_up=names[e, "gate_up"], down=names[e, "down"]) for e in experts)


def _bits(candidates: Sequence[_Candidate]) -> float:
    """Stored bits a weight, scales included."""
    total = sum(c.blocks for c in candidates)
    raised = sum(c.blocks for c in candidates if c.raised)
    return 4 + 4 * raised / total + SCALE_BITS / 32


def _sqnr(
    layer: MoELayer,
    formats: Sequence[ExpertFormats],
    x: np.ndarray,
    config: HardwareConfig,
    importance: Sequence[Importance],
    exact: np.ndarray,
) -> float:
    y = golden.run(quantise(layer, formats, config, importance), x, config).y
    noise = float(((exact - y) ** 2).sum())
    return float("inf") if noise == 0 else 10 * float(np.log10((exact**2).sum() / noise))


def choose_formats(
    layer: MoELayer,
    x: np.ndarray,
    config: HardwareConfig,
    *,
    most_bits: float | None = None,
    least_sqnr_db: float | None = None,
) -> FormatChoice:
    """Pick a format for every expert matrix on calibration tokens ``x`` [T, H].

    Parameters
    ----------
    most_bits : budget in stored bits a weight, scales included (4.625 holds four-bit formats alone)
    least_sqnr_db : the layer's output SQNR to reach, measured with the golden model

    Raises
    ------
    ExpertileError : neither or both budgets, or one that cannot be met; says what can
    """
    if (most_bits is None) == (least_sqnr_db is None):
        raise ExpertileError("format 'auto': give one budget, the bits a weight or the SQNR in dB")
    importance = importance_of(layer, x)
    candidates = _candidates(layer, x, config, importance)
    exact = reference.run(layer, x).y
    if most_bits is not None and _bits(candidates) > most_bits:
        raise ExpertileError(
            f"format 'auto': {most_bits} bits a weight cannot be met; the least is {_bits(candidates)}"
        )

    def measure() -> FormatChoice:
        formats = _formats(candidates)
        sqnr = _sqnr(layer, formats, x, config, importance, exact)
        return FormatChoice(formats=formats, bits=_bits(candidates), sqnr_db=sqnr)

    order = sorted(candidates, key=lambda c: -c.gain)
    choice = measure() if least_sqnr_db is not None else None
    for n, c in enumerate(order):
        if choice is not None and least_sqnr_db is not None and choice.sqnr_db >= least_sqnr_db:
            return choice
        if c.gain <= 0:
            break
        c.raised = True
        if most_bits is not None and _bits(candidates) > most_bits:
            c.raised = False
            continue
        # The golden model is the judge, but need not be asked after every small step.
        if least_sqnr_db is not None and (n % max(1, len(order) // 16) == 0 or n == len(order) - 1):
            choice = measure()
    final = measure()
    if least_sqnr_db is not None and final.sqnr_db < least_sqnr_db:
        raise ExpertileError(
            f"format 'auto': {least_sqnr_db} dB cannot be met; all at eight bits give {final.sqnr_db:.1f} dB"
        )
    return final
