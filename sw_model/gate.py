"""The three-level gate: it starts from the checkpoint's own k candidates and only removes.

Everything is signed Q7.8 in the log2 domain, saturated at 16 bits. For a token with candidates e of weight
w_e:

    D    = a_I I + a_H H + v . x                      semantic density
    g    = request tag, or argmax of G router rows     domain
    C_e  = cost_e + (0 if resident else miss_e)        compute cost
    u_e  = log2 w_e + B[g][e]
    level 1   the rank of u_e is below n = number of thresholds tau_j <= D
    level 2   u_e >= phi
    level 3   u_e + a D - lambda C_e >= psi
    cap       the rank of u_e is below the cap

I is -log2 of the token's unigram probability (a side-band byte, Q5.3), H the router's entropy over log2 E. An
expert stays if it passes all of them; weights are not changed. A token may be left with no expert: then the
base expert answers alone, or, where a layer has none, a calibrated constant vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from sw_model.errors import ExpertileError
from sw_model.formats import bit_length
from sw_model.tables import EXP2_FRACTION, LOG2, PROB_FRACTION

FRACTION = 8
Q_MIN, Q_MAX = -(1 << 15), (1 << 15) - 1
INFO_FRACTION = 3  # of the side-band byte
MAX_TAU = 8  # thresholds, hence candidates that a gate can judge
ENTROPY_SCALE_FRACTION = 16


def to_q(value: np.ndarray | float) -> np.ndarray:
    """Numbers in Q7.8, rounded to nearest even, saturated."""
    return np.clip(np.rint(np.asarray(value, dtype=np.float64) * 2**FRACTION), Q_MIN, Q_MAX).astype(np.int64)


def saturate(value: np.ndarray) -> np.ndarray:
    """int64 to the range of Q7.8."""
    return np.clip(value, Q_MIN, Q_MAX)


def scaled(coefficient: int, value: np.ndarray) -> np.ndarray:
    """Product of two Q7.8 numbers in Q7.8, rounded half up (not saturated)."""
    return (coefficient * value + (1 << (FRACTION - 1))) >> FRACTION


def log2_weight(w: np.ndarray) -> np.ndarray:
    """log2 of weights with ``PROB_FRACTION`` bits of fraction, Q7.8; Q_MIN for 0."""
    return np.where(w > 0, log2_fixed(np.maximum(w, 1), PROB_FRACTION), Q_MIN)


def log2_fixed(value: np.ndarray, fraction: int) -> np.ndarray:
    """log2 of positive integers with ``fraction`` bits of fraction, in Q7.8 (table of the mantissa)."""
    whole = bit_length(value) - 1
    wide = np.where(
        whole > LOG2.arg_bits,
        value >> np.maximum(whole - LOG2.arg_bits, 0),
        value << np.maximum(LOG2.arg_bits - whole, 0),
    )
    mantissa = wide & ((1 << LOG2.arg_bits) - 1)
    return ((whole - fraction) << FRACTION) + LOG2(mantissa)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Parameters of one layer's gate, integers in Q7.8 where not said otherwise.

    tau : thresholds of level 1 (as many as the layer's top_k); phi, psi : levels 2 and 3
    info, entropy, density : a_I, a_H and a
    lam : lambda; cap : most experts a token
    density_row : v, float32 [H], or None
    domain_rows : float32 [G, H] or None (then the tag alone says the domain)
    domain_bias : B, int64 [domains, E]
    cost, miss : int64 [E]
    fallback : float32 [H], the answer to the empty set where a layer has no base expert
    """

    tau: tuple[int, ...]
    phi: int = Q_MIN
    psi: int = Q_MIN
    info: int = 0
    entropy: int = 0
    density: int = 0
    lam: int = 0
    cap: int = 255
    domain_bias: np.ndarray
    cost: np.ndarray
    miss: np.ndarray
    density_row: np.ndarray | None = None
    domain_rows: np.ndarray | None = None
    fallback: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class SideBand:
    """What comes with the tokens: info, Q5.3 bytes [T]; tag [T], the request's domain or -1."""

    info: np.ndarray
    tag: np.ndarray

    def __post_init__(self) -> None:
        if self.info.shape != self.tag.shape or self.info.ndim != 1:
            raise ExpertileError(
                f"side band: {list(self.info.shape)} informations, {list(self.tag.shape)} tags"
            )
        if len(self.info) and not (0 <= self.info.min() and self.info.max() <= 255):
            raise ExpertileError("side band: information must lie in 0 to 255 (Q5.3)")

    @staticmethod
    def empty(tokens: int) -> SideBand:
        """No information, no tags."""
        return SideBand(info=np.zeros(tokens, dtype=np.int64), tag=np.full(tokens, -1, dtype=np.int64))

    def pack(self) -> np.ndarray:
        """uint16 [T] as the token stream's TUSER: information [7:0], tag [14:8], tagged [15]."""
        tagged = self.tag >= 0
        return (self.info | np.where(tagged, self.tag << 8 | 1 << 15, 0)).astype(np.uint16)


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """kept [T, k]: the candidate stays. removed [T, k]: the first level (1, 2, 3; 4 the cap) that removed
    it, or 0. density [T], domain [T], entropy [T]."""

    kept: np.ndarray
    removed: np.ndarray = field(repr=False)
    density: np.ndarray = field(repr=False)
    domain: np.ndarray = field(repr=False)
    entropy: np.ndarray = field(repr=False)

    @staticmethod
    def join(parts: Sequence[Decisions]) -> Decisions:
        """Of tokens that come one after the other; at least one part."""
        return Decisions(
            **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Decisions)}
        )


def entropy(p: np.ndarray, distance: np.ndarray, experts: int) -> np.ndarray:
    """Normalised entropy, Q7.8, of p = 2**-distance [T, E] in Q1.24, distances in Q16.16:

    H = (log2 sum p + sum (p * distance) / sum p) / log2 E
    """
    total = p.sum(axis=1)
    spread = (p * np.minimum(distance >> 8, (1 << 14) - 1)).sum(axis=1)
    bits = log2_fixed(total, EXP2_FRACTION) + spread // total
    scale = entropy_scale(experts)
    return (bits * scale + (1 << (ENTROPY_SCALE_FRACTION - 1))) >> ENTROPY_SCALE_FRACTION


def entropy_scale(experts: int) -> int:
    """1 / log2(E) in Q0.16; 0 for a single expert."""
    return 0 if experts < 2 else min(round(2**ENTROPY_SCALE_FRACTION / np.log2(experts)), (1 << 17) - 1)


def admit(
    gate: Gate,
    *,
    experts: np.ndarray,
    weights: np.ndarray,
    density_row: np.ndarray,
    domain: np.ndarray,
    h: np.ndarray,
    side: SideBand,
    resident: np.ndarray,
) -> Decisions:
    """Which of the candidates [T, k] stay.

    Parameters
    ----------
    experts, weights : candidates, best first; weights with ``PROB_FRACTION`` bits of fraction
    density_row : v . x in Q7.8 [T]; domain : argmax of the domain rows [T]; h : entropy in Q7.8 [T]
    resident : bool [E], a snapshot
    """
    tokens, k = experts.shape
    info = side.info << (FRACTION - INFO_FRACTION)
    half = 1 << (FRACTION - 1)
    d = saturate((gate.info * info + gate.entropy * h + (density_row << FRACTION) + half) >> FRACTION)
    g = np.where(side.tag >= 0, side.tag, domain)
    u = saturate(log2_weight(weights) + gate.domain_bias[g[:, None], experts])
    order = np.argsort(-u, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(k)[None].repeat(tokens, axis=0), axis=1)
    allowed = (d[:, None] >= np.array(gate.tau, dtype=np.int64)[None]).sum(axis=1)
    cost = saturate(gate.cost + np.where(resident, 0, gate.miss))
    worth = saturate(u + scaled(gate.density, d)[:, None] - scaled(gate.lam, cost)[experts])
    fails = np.stack([rank >= allowed[:, None], u < gate.phi, worth < gate.psi, rank >= gate.cap])
    removed = np.where(fails.any(axis=0), fails.argmax(axis=0) + 1, 0)
    return Decisions(kept=removed == 0, removed=removed, density=d, domain=g, entropy=h)
