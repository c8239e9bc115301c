"""The MoE layer in float64, straight from the checkpoint's own rule: what the integers are measured against.

    p = softmax(W x)                 over the E experts
    S = the k largest p              ties to the lowest index
    w = p[S], divided by its sum if the checkpoint renormalises
    y = sum_e w_e * E_e(x)  +  sigmoid(g . x) * Base(x)        E(x) = down(silu(gate x) * up x)

This module shares no code with the golden model, on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sw_model.moe import Expert, MoELayer


@dataclass(frozen=True, kw_only=True)
class Result:
    """y [T, H] float64; experts [T, k] by falling weight; weights [T, k]."""

    y: np.ndarray
    experts: np.ndarray
    weights: np.ndarray


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _expert(e: Expert, x: np.ndarray) -> np.ndarray:
    gate = x @ e.gate.astype(np.float64).T
    up = x @ e.up.astype(np.float64).T
    return (gate * _sigmoid(gate) * up) @ e.down.astype(np.float64).T


def run(layer: MoELayer, x: np.ndarray) -> Result:
    """Compute y for tokens ``x`` [T, H]."""
    x = x.astype(np.float64)
    logits = x @ layer.router.astype(np.float64).T
    probs = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    experts = np.argsort(-logits, axis=1, kind="stable")[:, : layer.top_k]
    weights = np.take_along_axis(probs, experts, axis=1)
    if layer.renormalise:
        weights = weights / weights.sum(axis=1, keepdims=True)

    y = np.zeros_like(x)
    if layer.shared is not None:
        gate = (
            1.0 if layer.shared_gate is None else _sigmoid(x @ layer.shared_gate.astype(np.float64))[:, None]
        )
        y += gate * _expert(layer.shared, x)
    for e in np.unique(experts):
        tokens, rank = np.nonzero(experts == e)
        y[tokens] += weights[tokens, rank][:, None] * _expert(layer.experts[e], x[tokens])
    return Result(y=y, experts=experts, weights=weights)
