"""Calibration of the three-level gate: parameters of :mod:`sw_model.gate` from what a layer really sees.

With E_e(x) the output of a candidate e of token x and means over calibration tokens,

    B[g][e]     = log2 of the mean norm of E_e(x) over tokens of domain g that chose e
    domain rows   ridge regression of one-hot domains on x; the argmax says the domain
    density       a_I I + a_H H + v . x fits log2 |E_e(x)| - B[g][e], the mean over a token's candidates:
                  by how much this token's experts say more than is usual for them
    C_e           cycles of expert e over the layer's mean; a miss adds the cycles that loading it takes
    tau, phi      low quantiles: level 1 drops candidates of the least dense tokens, level 2 the quietest
    psi           one order statistic of u + a D - lambda C over what levels 1 and 2 leave

tau, phi and psi are taken on the integers that the golden model computes, so they do what they should there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sw_model import golden, reference
from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError
from sw_model.formats import QuantisedMatrix
from sw_model.gate import (
    INFO_FRACTION,
    Q_MAX,
    Q_MIN,
    Gate,
    SideBand,
    log2_weight,
    saturate,
    scaled,
    to_q,
)
from sw_model.moe import MoELayer
from sw_model.quantised import QuantisedLayer, quantise

__all__ = ["Settings", "Tokens", "calibrate", "open_gate", "set_thresholds"]

FEWEST = 8  # tokens of a domain that make a mean of their own
STREAM_BYTES = 16  # that the weight stream brings a cycle
WORD_BYTES = 16
SCALES_A_BEAT = 4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the gate is calibrated for.

    target : mean experts a token
    level1, level2 : share of tokens that level 1, of candidates that level 2 is concerned with
    density : a, the weight of the density in level 3
    lam : lambda, octaves that the cost of one mean expert weighs
    """

    target: float = 1.2
    level1: float = 0.01
    level2: float = 0.005
    density: float = 1.0
    lam: float = 0.25


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """x float32 [T, H]; domain int [T], of ``domains``; info, the side band's bytes [T]."""

    x: np.ndarray
    domain: np.ndarray
    info: np.ndarray
    domains: int

    @property
    def side(self) -> SideBand:
        """Without tags, as the layer will run."""
        return SideBand(info=self.info, tag=np.full(len(self.x), -1, dtype=np.int64))


def calibrate(
    layer: MoELayer,
    tokens: Tokens,
    settings: Settings,
    config: HardwareConfig,
    fmt: str = "int8",
    density_row: np.ndarray | None = None,
) -> QuantisedLayer:
    """``layer``, quantised, with its gate.

    Parameters
    ----------
    density_row : float32 [H], a trained v; then a_I = a_H = 0. None: fitted

    Raises
    ------
    ExpertileError : a target over top_k or not above 0, too few tokens, a layer or gate over the maxima of
        ``config``
    """
    if not 0 < settings.target <= layer.rule.top_k:
        raise ExpertileError(
            f"target of {settings.target:g} experts: it must lie above 0 and not over the layer's top_k of "
            f"{layer.rule.top_k}"
        )
    if len(tokens.x) < 2 * layer.rule.top_k:
        raise ExpertileError(f"{len(tokens.x)} tokens are too few to calibrate on; give more text")
    golden.check_input(tokens.x, layer.hidden)
    quantised = quantise(layer, fmt, config, gate=open_gate(layer, tokens, settings, density_row))
    gate = quantised.gate
    assert gate is not None
    cost, miss = _costs(quantised, config)
    return set_thresholds(
        replace(quantised, gate=replace(gate, cost=cost, miss=miss)), tokens, settings, config
    )


def open_gate(
    layer: MoELayer, tokens: Tokens, settings: Settings, density_row: np.ndarray | None = None
) -> Gate:
    """The gate's tables and rows, its thresholds still open, its costs 0."""
    x = tokens.x.astype(np.float64)
    experts, weights, _ = reference.route(layer, x)
    norm = np.zeros(experts.shape)
    routed = np.zeros_like(x)
    for e in np.unique(experts):
        at, rank = np.nonzero(experts == e)
        y = reference.expert(layer, layer.experts[e], x[at])
        norm[at, rank] = np.linalg.norm(y, axis=1)
        routed[at] += weights[at, rank][:, None] * y
    loud = np.log2(np.maximum(norm, 1e-30))
    bias = _domain_bias(norm, experts, tokens, layer.n_experts)
    info, entropy = 0.0, 0.0
    if density_row is None:
        louder = (loud - bias[tokens.domain[:, None], experts]).mean(axis=1)
        h = _entropy(layer, x)
        density_row, (info, entropy) = _fit_density(x, tokens.info / 2**INFO_FRACTION, h, louder)
    return Gate(
        tau=(Q_MIN,) * layer.rule.top_k,
        info=int(to_q(info)),
        entropy=int(to_q(entropy)),
        density=int(to_q(settings.density)),
        lam=int(to_q(settings.lam)),
        domain_bias=to_q(bias),
        cost=np.zeros(layer.n_experts, dtype=np.int64),
        miss=np.zeros(layer.n_experts, dtype=np.int64),
        density_row=density_row.astype(np.float32),
        domain_rows=_fit_domains(x, tokens) if tokens.domains > 1 else None,
        fallback=routed.mean(axis=0).astype(np.float32) if layer.shared is None else None,
    )


def _domain_bias(norm: np.ndarray, experts: np.ndarray, tokens: Tokens, n_experts: int) -> np.ndarray:
    """B [G, E]; a pair that hardly occurs takes the expert's mean, an expert that never does the layer's."""
    domain = np.broadcast_to(tokens.domain[:, None], experts.shape)
    flat = domain * n_experts + experts
    shape = (tokens.domains, n_experts)
    count = np.bincount(flat.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
    total = np.bincount(flat.ravel(), norm.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
    used = count.sum(axis=0)
    of_expert = np.where(used > 0, total.sum(axis=0) / np.maximum(used, 1), norm.mean())
    mean = np.where(count >= FEWEST, total / np.maximum(count, 1), of_expert)
    return np.asarray(np.log2(np.maximum(mean, 1e-30)))


def _entropy(layer: MoELayer, x: np.ndarray) -> np.ndarray:
    """Of the router, over log2 E; 0 under sigmoid scoring, as in the gate."""
    if layer.rule.scoring != "softmax" or layer.n_experts < 2:
        return np.zeros(len(x))
    logits = x @ layer.router.astype(np.float64).T
    if layer.router_bias is not None:
        logits += layer.router_bias
    logits -= logits.max(axis=1, keepdims=True)
    p = np.exp(logits)
    p /= p.sum(axis=1, keepdims=True)
    return np.asarray(-(p * np.log2(np.maximum(p, 1e-30))).sum(axis=1) / np.log2(layer.n_experts))


def _ridge(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """argmin |a w - b|^2 + r |w|^2, r a thousandth of a's mean square times its rows: w [columns, ...]."""
    gram = a.T @ a
    gram[np.diag_indices(len(gram))] += 1e-3 * np.trace(gram) / len(gram) + 1e-12
    return np.asarray(np.linalg.solve(gram, a.T @ b))


def _fit_density(
    x: np.ndarray, info: np.ndarray, entropy: np.ndarray, louder: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """v [H] and (a_I, a_H). The mean of the fit has no place in the gate: psi takes it up."""
    more = np.stack([info, entropy], axis=1)
    a = np.concatenate([x, more], axis=1)
    spread = np.maximum(a.std(axis=0), 1e-9)
    spread[: x.shape[1]] = spread[: x.shape[1]].mean()
    fit = _ridge((a - a.mean(axis=0)) / spread, louder - louder.mean()) / spread
    return fit[: x.shape[1]], fit[x.shape[1] :]


def _fit_domains(x: np.ndarray, tokens: Tokens) -> np.ndarray:
    """Rows [G, H], every domain with the same say however many tokens it has."""
    one_hot = np.eye(tokens.domains)[tokens.domain]
    say = 1 / np.sqrt(np.maximum(one_hot.sum(axis=0), 1))[tokens.domain]
    return _ridge(x * say[:, None], one_hot * say[:, None]).T.astype(np.float32)


def _costs(layer: QuantisedLayer, config: HardwareConfig) -> tuple[np.ndarray, np.ndarray]:
    """C and what a miss adds [E], in Q7.8, of the mean expert's cycles on the array."""

    def cycles(m: QuantisedMatrix) -> float:
        return m.rows * m.blocks * m.fmt.steps * config.step_cycles / config.tiles

    def size(m: QuantisedMatrix) -> float:
        blocks = m.rows * m.blocks
        return blocks * m.fmt.words * WORD_BYTES + blocks * STREAM_BYTES / SCALES_A_BEAT

    work = np.array([cycles(e.gate_up) + cycles(e.down) for e in layer.experts])
    load = np.array([size(e.gate_up) + size(e.down) for e in layer.experts]) / STREAM_BYTES
    return to_q(work / work.mean()), to_q(load / work.mean())


def set_thresholds(
    layer: QuantisedLayer, tokens: Tokens, settings: Settings, config: HardwareConfig
) -> QuantisedLayer:
    """The same layer with tau, phi and psi of its gate set on the golden model's integers."""
    assert layer.gate is not None
    k = layer.rule.top_k
    shut = replace(layer.gate, tau=(Q_MIN,) * k, phi=Q_MIN, psi=Q_MAX)  # nothing runs but router and base
    seen = golden.run(replace(layer, gate=shut), tokens.x, config, tokens.side)
    d = seen.decisions
    assert d is not None
    u = saturate(log2_weight(seen.weights) + shut.domain_bias[d.domain[:, None], seen.experts])
    # The best candidate of all but the very least dense tokens passes level 1.
    low, lower = (_quantile(d.density, share) for share in (settings.level1, settings.level1 / 10))
    tau = (lower,) + (low,) * (k - 1)
    phi = _quantile(u.ravel(), settings.level2)
    rank = np.argsort(np.argsort(-u, axis=1, kind="stable"), axis=1, kind="stable")
    allowed = (d.density[:, None] >= np.array(tau)).sum(axis=1)
    worth = saturate(u + scaled(shut.density, d.density)[:, None] - scaled(shut.lam, shut.cost)[seen.experts])
    passes = (rank < allowed[:, None]) & (u >= phi) & (rank < shut.cap)
    psi = order_statistic(worth[passes], round(settings.target * len(tokens.x)))
    return replace(layer, gate=replace(shut, tau=tau, phi=phi, psi=psi))


def _quantile(values: np.ndarray, share: float) -> int:
    """The least value that at most ``share`` of ``values`` lie below; Q_MIN for a share of 0."""
    if share <= 0:
        return Q_MIN
    return int(np.sort(values, axis=None)[min(int(share * values.size), values.size - 1)])


def order_statistic(worth: np.ndarray, keep: int) -> int:
    """The threshold that keeps, as nearly as ties allow, the ``keep`` largest; Q_MIN if there are no more."""
    if keep >= worth.size:
        return Q_MIN
    if keep <= 0:
        return Q_MAX
    value = int(np.sort(worth)[::-1][keep - 1])
    with_ties, without = int((worth >= value).sum()), int((worth > value).sum())
    return value if with_ties - keep <= keep - without else value + 1
