"""The MoE layer in float64, straight from the checkpoint's own rule: what the integers are measured against.

The equations are those of :mod:`sw_model.moe`. This module shares no code with the golden model, on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sw_model.moe import CLAMPED_ALPHA, Activation, Expert, MoELayer


@dataclass(frozen=True, kw_only=True)
class Result:
    """y [T, H] float64; experts [T, k] by falling choice score; weights [T, k]; margin [T]: by how much the
    last chosen expert beats the first one left out, or the last chosen group the first one left out, where
    that is less (inf if none is)."""

    y: np.ndarray
    experts: np.ndarray
    weights: np.ndarray
    margin: np.ndarray


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    y = x @ weight.astype(np.float64).T
    return y if bias is None else y + bias.astype(np.float64)


def hidden_of(layer: MoELayer, e: Expert, x: np.ndarray) -> np.ndarray:
    """h [T, I] of expert ``e``: what its down projection multiplies."""
    gate = _linear(x, e.gate, e.gate_bias)
    up = _linear(x, e.up, e.up_bias)
    if layer.activation is Activation.CLAMPED:
        gate = np.minimum(gate, layer.limit)
        up = np.clip(up, -layer.limit, layer.limit) + 1.0
        return gate * _sigmoid(CLAMPED_ALPHA * gate) * up
    return gate * _sigmoid(gate) * up


def expert(layer: MoELayer, e: Expert, x: np.ndarray) -> np.ndarray:
    """E_e(x) [T, H] for float64 tokens ``x``."""
    return _linear(hidden_of(layer, e, x), e.down, e.down_bias)


def shared_weight(layer: MoELayer, x: np.ndarray) -> np.ndarray:
    """Weight [T] of the shared expert."""
    if layer.shared_gate is None:
        return np.ones(len(x))
    return _sigmoid(x.astype(np.float64) @ layer.shared_gate.astype(np.float64))


def route(layer: MoELayer, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """experts [T, k], weights [T, k], margin [T] for float64 tokens ``x``."""
    rule = layer.rule
    logits = _linear(x, layer.router, layer.router_bias)
    if rule.scoring == "sigmoid":
        scores = _sigmoid(logits)
    else:
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
    choice = scores if layer.selection_bias is None else scores + layer.selection_bias.astype(np.float64)
    margin = np.full(len(x), np.inf)
    if rule.groups > 1:
        grouped = choice.reshape(len(x), rule.groups, choice.shape[1] // rule.groups)
        ranked = -np.sort(-grouped, axis=2)
        group = ranked[..., 0] if rule.group_score == "max" else ranked[..., :2].sum(axis=2)
        by_score = np.argsort(-group, axis=1, kind="stable")
        if rule.top_groups < rule.groups:
            last, next_ = by_score[:, rule.top_groups - 1], by_score[:, rule.top_groups]
            tokens = np.arange(len(x))
            margin = group[tokens, last] - group[tokens, next_]
        best = by_score[:, : rule.top_groups]
        kept = np.zeros_like(group, dtype=bool)
        np.put_along_axis(kept, best, True, axis=1)
        choice = np.where(kept[:, :, None], grouped, -np.inf).reshape(choice.shape)
    order = np.argsort(-choice, axis=1, kind="stable")
    experts = order[:, : rule.top_k]
    weights = np.take_along_axis(scores, experts, axis=1)
    if rule.renormalise:
        weights = weights / weights.sum(axis=1, keepdims=True)
    ranked = np.take_along_axis(choice, order, axis=1)
    following = ranked[:, rule.top_k] if rule.top_k < layer.n_experts else np.full(len(x), -np.inf)
    return experts, weights * rule.scale, np.minimum(margin, ranked[:, rule.top_k - 1] - following)


def run(layer: MoELayer, x: np.ndarray) -> Result:
    """Compute y for tokens ``x`` [T, H]."""
    x = x.astype(np.float64)
    experts, weights, margin = route(layer, x)
    y = np.zeros_like(x)
    if layer.shared is not None:
        y += shared_weight(layer, x)[:, None] * expert(layer, layer.shared, x)
    for e in np.unique(experts):
        tokens, rank = np.nonzero(experts == e)
        y[tokens] += weights[tokens, rank][:, None] * expert(layer, layer.experts[e], x[tokens])
    return Result(y=y, experts=experts, weights=weights, margin=margin)
