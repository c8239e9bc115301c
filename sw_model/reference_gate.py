"""The three-level gate in float64, with the same semantics as :mod:`sw_model.gate` and none of its code.

What is a Q7.8 number there is a real number here: parameters are the file's, divided by 256, logarithms are
exact and nothing saturates, except that a threshold at the end of its range still means "off".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sw_model import reference
from sw_model.gate import Q_MIN, Decisions, Gate, SideBand
from sw_model.moe import MoELayer

__all__ = ["Result", "decide", "run"]

UNIT = 256.0
INFO_UNIT = 8.0
NOTHING = 2.0**-126  # a weight of 0 has a logarithm too


@dataclass(frozen=True, kw_only=True)
class Result:
    """As :class:`sw_model.reference.Result`, with the gate's decisions (density and entropy as floats)."""

    y: np.ndarray
    experts: np.ndarray
    weights: np.ndarray
    decisions: Decisions


def decide(
    layer: MoELayer,
    gate: Gate,
    x: np.ndarray,
    side: SideBand | None = None,
    resident: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, Decisions]:
    """Candidates [T, k], their weights, and which of them stay, for float64 tokens ``x`` [T, H]."""
    tokens = len(x)
    side = SideBand.empty(tokens) if side is None else side
    experts, weights, _ = reference.route(layer, x)
    h = _entropy(layer, x)
    density = gate.info / UNIT * side.info / INFO_UNIT + gate.entropy / UNIT * h
    if gate.density_row is not None:
        density = density + x @ gate.density_row.astype(np.float64)
    domain = np.zeros(tokens, dtype=np.int64)
    if gate.domain_rows is not None:
        domain = (x @ gate.domain_rows.astype(np.float64).T).argmax(axis=1)
    domain = np.where(side.tag >= 0, side.tag, domain)
    u = np.log2(np.maximum(weights, NOTHING)) + gate.domain_bias[domain[:, None], experts] / UNIT
    rank = np.argsort(np.argsort(-u, axis=1, kind="stable"), axis=1, kind="stable")
    allowed = np.zeros(tokens, dtype=np.int64)
    for tau in gate.tau:
        allowed += density >= _threshold(tau)
    absent = np.zeros(layer.n_experts) if resident is None else np.where(resident, 0, gate.miss)
    cost = (gate.cost + absent) / UNIT
    worth = u + gate.density / UNIT * density[:, None] - gate.lam / UNIT * cost[experts]
    quiet, poor = u < _threshold(gate.phi), worth < _threshold(gate.psi)
    fails = [rank >= allowed[:, None], quiet, poor, rank >= gate.cap]
    removed = np.zeros(experts.shape, dtype=np.int64)
    for level in range(len(fails), 0, -1):
        removed[fails[level - 1]] = level
    kept = removed == 0
    return experts, weights, Decisions(kept=kept, removed=removed, density=density, domain=domain, entropy=h)


def run(
    layer: MoELayer,
    gate: Gate,
    x: np.ndarray,
    side: SideBand | None = None,
    resident: np.ndarray | None = None,
) -> Result:
    """Compute y for tokens ``x`` [T, H]; the arguments of :func:`sw_model.golden.run`."""
    x = x.astype(np.float64)
    experts, weights, d = decide(layer, gate, x, side, resident)
    y = np.zeros_like(x)
    if layer.shared is not None:
        y += reference.shared_weight(layer, x)[:, None] * reference.expert(layer, layer.shared, x)
    elif gate.fallback is not None:
        y[~d.kept.any(axis=1)] = gate.fallback
    for e in np.unique(experts[d.kept]):
        at, rank = np.nonzero((experts == e) & d.kept)
        y[at] += weights[at, rank][:, None] * reference.expert(layer, layer.experts[e], x[at])
    return Result(y=y, experts=experts, weights=weights, decisions=d)


def _threshold(q: int) -> float:
    return -np.inf if q <= Q_MIN else q / UNIT


def _entropy(layer: MoELayer, x: np.ndarray) -> np.ndarray:
    """Of the router, over log2 E; 0 under sigmoid scoring and for a single expert."""
    if layer.rule.scoring != "softmax" or layer.n_experts < 2:
        return np.zeros(len(x))
    logits = x @ layer.router.astype(np.float64).T
    if layer.router_bias is not None:
        logits = logits + layer.router_bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    bits = np.where(p > 0, -p * np.log2(np.maximum(p, NOTHING)), 0.0)
    return np.asarray(bits.sum(axis=1) / np.log2(layer.n_experts))
