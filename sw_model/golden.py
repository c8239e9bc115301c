"""The golden model: the MoE layer in integers, bit for bit what the hardware computes.

    x (float32) -> quantise -> route -> expert passes -> combine -> y (float32)

After quantisation there are only integers. Every sum is exact; rounding (to nearest even) happens at named
places: the 24-bit normalisation of a row result, the tables, the re-quantisation of h, the routing weights
and the one final conversion to float32. NumPy's BLAS serves as an integer multiplier where all partial sums
are proven to stay below 2**53, which float64 holds exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from sw_model.combine import Combine
from sw_model.config import Feature, HardwareConfig
from sw_model.energy.counts import work
from sw_model.energy.governor import State
from sw_model.energy.meter import Governor, Setting
from sw_model.errors import ExpertileError
from sw_model.formats import (
    ACT8_FRACTION,
    ACT8_MAX,
    ACT16_MAX,
    BIAS_TOPS,
    MAG_BITS,
    TOP_MIN,
    QuantisedMatrix,
    QuantisedVectors,
    Scaled,
    append_bias_block,
    bias_blocks,
    normalise,
    pad_blocks,
    quantise_act8,
    quantise_act16,
    round_shift,
    unpack_float32,
)
from sw_model.gate import FRACTION, Decisions, SideBand, admit, entropy, saturate
from sw_model.moe import CLAMPED_ALPHA, Activation, RouterRule
from sw_model.quantised import QuantisedExpert, QuantisedLayer, check_features
from sw_model.result import Result, stats
from sw_model.tables import EXP2, EXP2_FRACTION, PROB_FRACTION, SIGMOID, SIGMOID_FRACTION

LOGIT_FRACTION = 16  # softmax logits are signed Q15.16 in the log2 domain
FIXED_MAX = (1 << 31) - 1  # fixed-point numbers have a sign and 31 bits
ONE = 1 << PROB_FRACTION
SCALE_FRACTION = 10  # the router's scale is Q6.10
ALPHA_FRACTION = 16  # the factor inside the sigmoid, Q1.16
ALPHA = {Activation.SILU: 1 << ALPHA_FRACTION, Activation.CLAMPED: round(CLAMPED_ALPHA * 2**ALPHA_FRACTION)}
UP_FRACTION = 24  # u + 1 is worked out in Q7.24


def gemv(m: QuantisedMatrix, x: QuantisedVectors, act_max: int) -> np.ndarray:
    """Exact row sums, int64 [T, rows]: sum over blocks of (codes . codes) * mant << (shift + shift)."""
    w = (m.codes * (m.mant << m.shift)[:, :, None]).reshape(m.rows, -1)
    a = (x.codes * (np.int64(1) << x.shift)[:, :, None]).reshape(len(x.codes), w.shape[1])
    largest = int(np.abs(w).max(initial=0)) * (act_max << int(x.shift.max(initial=0)))
    if largest * w.shape[1] < 1 << 53:
        return (a.astype(np.float64) @ w.astype(np.float64).T).astype(np.int64)
    return a @ w.T


def sigmoid(x: Scaled, alpha: int = 1 << ALPHA_FRACTION) -> np.ndarray:
    """sigmoid(alpha x) in Q1.24: alpha |x| truncated to Q4.16, saturated, looked up; 1 - s for negative x."""
    product = x.mag * alpha
    shift = np.clip(MAG_BITS - 1 + ALPHA_FRACTION - SIGMOID_FRACTION - x.top, 0, 62)
    arg = np.minimum(product >> shift, (1 << SIGMOID.arg_bits) - 1)
    arg = np.where(x.top >= 4, (1 << SIGMOID.arg_bits) - 1, arg)
    s = SIGMOID(arg)
    return np.where(x.sign, (1 << EXP2_FRACTION) - s, s)


def to_prob(q24: np.ndarray) -> np.ndarray:
    """Q1.24 to Q1.16, rounded to nearest even."""
    return round_shift(q24, EXP2_FRACTION - PROB_FRACTION)


def to_fixed(x: Scaled, fraction: int) -> np.ndarray:
    """Signed fixed point with 31 bits of magnitude, rounded to nearest even, saturated symmetrically."""
    whole = 31 - fraction
    mag = round_shift(x.mag << (31 - MAG_BITS), np.clip(whole - 1 - x.top, 0, 62))
    mag = np.where(x.top > whole - 1, FIXED_MAX, np.minimum(mag, FIXED_MAX))
    return np.where(x.sign, -mag, mag)


def clamp(x: Scaled, limit: Scaled, both: bool) -> Scaled:
    """min(x, limit), and max(x, -limit) too if ``both``; limit > 0."""
    over = (x.top > limit.top) | ((x.top == limit.top) & (x.mag > limit.mag))
    over &= True if both else ~x.sign
    return Scaled(sign=x.sign, top=np.where(over, limit.top, x.top), mag=np.where(over, limit.mag, x.mag))


def activate(gate: Scaled, up: Scaled, activation: Activation, limit: float) -> Scaled:
    """h of gate and up rows: (gate * up) * sigmoid(alpha gate), each product rounded to 24 bits.

    The clamped activation first limits both, and takes up + 1.
    """
    if activation is Activation.CLAMPED:
        most = unpack_float32(np.array(limit, dtype=np.float32))
        gate = clamp(gate, most, both=False)
        up = normalise(to_fixed(clamp(up, most, both=True), UP_FRACTION) + (1 << UP_FRACTION), -UP_FRACTION)
    product = normalise(gate.mag * up.mag, gate.top + up.top - 2 * (MAG_BITS - 1))
    s = to_prob(sigmoid(gate, ALPHA[activation]))
    h = normalise(product.mag * s, product.top - (MAG_BITS - 1) - PROB_FRACTION)
    return Scaled(sign=gate.sign ^ up.sign, top=h.top, mag=h.mag)


def exp2_neg(d: np.ndarray) -> np.ndarray:
    """2**-d for d >= 0 in Q16.16, as Q1.24; 0 from d = 32 on."""
    whole, frac = d >> LOGIT_FRACTION, d & ((1 << LOGIT_FRACTION) - 1)
    return np.where(whole < 32, round_shift(EXP2(frac), np.minimum(whole, 32)), 0)


def choose(choice: np.ndarray, rule: RouterRule) -> np.ndarray:
    """The k best of [T, E] within the best groups, best first, ties to the lowest index."""
    if rule.groups > 1:
        grouped = choice.reshape(len(choice), rule.groups, choice.shape[1] // rule.groups)
        ranked = -np.sort(-grouped, axis=2)
        group = ranked[..., 0] if rule.group_score == "max" else ranked[..., 0] + ranked[..., 1]
        best = np.argsort(-group, axis=1, kind="stable")[:, : rule.top_groups]
        kept = np.zeros(group.shape, dtype=bool)
        np.put_along_axis(kept, best, True, axis=1)
        choice = np.where(kept[:, :, None], grouped, np.iinfo(np.int64).min // 2).reshape(choice.shape)
    return np.argsort(-choice, axis=1, kind="stable")[:, : rule.top_k]


@dataclass(frozen=True, kw_only=True)
class Routing:
    """experts [T, k], best first; weights [T, k]; entropy [T] in Q7.8 (0 under sigmoid scoring)."""

    experts: np.ndarray
    weights: np.ndarray
    entropy: np.ndarray

    def of(self, t: slice) -> Routing:
        """Of some tokens."""
        return Routing(experts=self.experts[t], weights=self.weights[t], entropy=self.entropy[t])


def route(rows: Scaled, rule: RouterRule, selection_bias: np.ndarray | None) -> Routing:
    """Router rows [T, E] to experts [T, k], best first, and their weights (Q7.16).

    softmax: p = 2**(l - largest l), the choice on l;   sigmoid: p = sigmoid(l), the choice on p + bias
    w = (floor(p * 2**17 / sum) + 1) >> 1, the sum over the chosen experts if renormalised, else over all
    (softmax) or 1 (sigmoid); then w * scale, rounded half up.
    """
    h = np.zeros(len(rows.mag), dtype=np.int64)
    if rule.scoring == "softmax":
        choice = to_fixed(rows, LOGIT_FRACTION)
        distance = choice.max(axis=1, keepdims=True, initial=-FIXED_MAX) - choice
        p = exp2_neg(distance)
        everything = p.sum(axis=1, keepdims=True)
        h = entropy(p, distance, p.shape[1])
    else:
        p = sigmoid(rows)
        choice = p if selection_bias is None else p + fixed_bias(selection_bias)
        everything = np.full((len(p), 1), 1 << EXP2_FRACTION)
    experts = choose(choice, rule)
    chosen = np.take_along_axis(p, experts, axis=1)
    total = chosen.sum(axis=1, keepdims=True) if rule.renormalise else everything
    weights = (((chosen << (PROB_FRACTION + 1)) // total) + 1) >> 1
    weights = (weights * fixed_scale(rule.scale) + (1 << (SCALE_FRACTION - 1))) >> SCALE_FRACTION
    return Routing(experts=experts, weights=weights, entropy=h)


def fixed_bias(bias: np.ndarray) -> np.ndarray:
    """Selection bias in Q7.24, saturated, as the hardware's table holds it."""
    return np.clip(np.rint(bias.astype(np.float64) * 2**EXP2_FRACTION), -FIXED_MAX, FIXED_MAX).astype(
        np.int64
    )


def fixed_scale(scale: float) -> int:
    """The router's scale in Q6.10."""
    return round(scale * 2**SCALE_FRACTION)


def check_input(x: np.ndarray, hidden: int) -> None:
    """Raise :class:`ExpertileError` unless ``x`` is finite float32 [tokens, hidden]."""
    if x.dtype != np.float32:
        raise ExpertileError(f"input: dtype {x.dtype}, expected float32; convert it with x.astype('float32')")
    if x.ndim != 2 or x.shape[1] != hidden:
        raise ExpertileError(f"input: shape {list(x.shape)}, expected [tokens, {hidden}]")
    if not np.isfinite(x).all():
        token = int(np.nonzero(~np.isfinite(x).all(axis=1))[0][0])
        raise ExpertileError(f"input: NaN or infinity in token {token}; every value must be finite")


def _part(x: Scaled, columns: slice | int) -> Scaled:
    return Scaled(sign=x.sign[:, columns], top=x.top[:, columns], mag=x.mag[:, columns])


def _gate(
    layer: QuantisedLayer, rows: Scaled, routing: Routing, side: SideBand, resident: np.ndarray
) -> Decisions | None:
    """The three-level gate's decisions; None without a gate."""
    if layer.gate is None:
        return None
    tokens, at = len(rows.mag), layer.n_experts + layer.shared_gated
    density, domain = np.zeros((2, tokens), dtype=np.int64)
    if layer.gate.density_row is not None:
        density = saturate(to_fixed(_part(rows, at), FRACTION))
        at += 1
    if layer.gate.domain_rows is not None:
        domain = to_fixed(_part(rows, slice(at, None)), LOGIT_FRACTION).argmax(axis=1)
    if len(side.tag) != tokens or side.tag.max(initial=-1) >= len(layer.gate.domain_bias):
        raise ExpertileError(
            f"side band: {len(side.tag)} entries for {tokens} tokens, or a tag beyond the gate's domains"
        )
    return admit(
        layer.gate,
        experts=routing.experts,
        weights=routing.weights,
        density_row=density,
        domain=domain,
        h=routing.entropy,
        side=side,
        resident=resident,
    )


def _govern(
    layer: QuantisedLayer,
    rows: Scaled,
    routing: Routing,
    side: SideBand,
    resident: np.ndarray,
    config: HardwareConfig,
    governor: Governor,
) -> tuple[Decisions | None, tuple[Setting, ...]]:
    """:func:`_gate` token by token, each under what the ones before it have left."""
    parts, settings = [], []
    for t in range(len(routing.experts)):
        one = slice(t, t + 1)
        moved = layer if layer.gate is None else replace(layer, gate=governor.gate(layer.gate))
        row = Scaled(sign=rows.sign[one], top=rows.top[one], mag=rows.mag[one])
        beside = SideBand(info=side.info[one], tag=side.tag[one])
        decided = _gate(moved, row, routing.of(one), beside, resident)
        kept = np.ones((1, routing.experts.shape[1]), bool) if decided is None else decided.kept
        high = _high(layer, config, [governor.state])
        settings.append(governor.spend(layer, work(layer, routing.experts[one], kept, high)))
        parts += [] if decided is None else [decided]
    if not parts:
        return None, tuple(settings)
    return Decisions.join(parts), tuple(settings)


def _high(layer: QuantisedLayer, config: HardwareConfig, of: Iterable[Setting | State]) -> np.ndarray:
    """bool [T]: of INT8 weights the high nibble alone is read, where macros can."""
    asked = np.array([bool(s.high) for s in of], dtype=bool)
    return asked & (not config.whole_weights) | layer.high_nibble


def run(
    layer: QuantisedLayer,
    x: np.ndarray,
    config: HardwareConfig,
    side: SideBand | None = None,
    resident: np.ndarray | None = None,
    governor: Governor | None = None,
) -> Result:
    """Compute the layer for tokens ``x`` [T, H] float32.

    Parameters
    ----------
    side : what comes with the tokens; None: no information, no tags
    resident : bool [E], experts whose weights are on chip; None: all
    governor : moves the gate from token to token, and goes on from run to run; None: there is none

    Raises
    ------
    ExpertileError : x of the wrong shape or dtype, or not finite, or a block that ``config`` is made without
    """
    check_input(x, layer.hidden)
    check_features(layer, config)
    if governor is not None:
        config.require(Feature.GOVERNOR, "a governor")
    tokens = len(x)
    numbers = unpack_float32(x)
    blocks = Scaled(
        sign=pad_blocks(numbers.sign, False), top=pad_blocks(numbers.top, -126), mag=pad_blocks(numbers.mag)
    )
    if layer.x_biased:
        blocks = append_bias_block(blocks)
    token_top = blocks.top.max(axis=(1, 2), initial=-126)
    x8 = quantise_act8(blocks, token_top, spread=config.activation_spread)
    x16 = quantise_act16(blocks, token_top, spread=config.router_spread)

    everyone = np.arange(tokens)
    scores = gemv(layer.router, _select(x16, everyone, layer.router.blocks), ACT16_MAX)
    rows = normalise(scores, layer.router.row_exp + x16.base[:, None])
    routing = route(_part(rows, slice(layer.n_experts)), layer.rule, layer.selection_bias)
    side = side if side is not None else SideBand.empty(tokens)
    resident = resident if resident is not None else np.ones(layer.n_experts, dtype=bool)
    settings: tuple[Setting, ...] = ()
    if governor is None:
        decisions = _gate(layer, rows, routing, side, resident)
    else:
        decisions, settings = _govern(layer, rows, routing, side, resident, config, governor)
    kept = decisions.kept if decisions is not None else np.ones(routing.experts.shape, dtype=bool)

    high = np.full(tokens, layer.high_nibble) if governor is None else _high(layer, config, settings)

    # One entry a slot: (expert as it is read, its tokens, their weights).
    slots: list[tuple[QuantisedExpert, np.ndarray, np.ndarray]] = []
    if layer.shared is not None:
        share = np.full(tokens, ONE)
        if layer.shared_gated:
            share = to_prob(sigmoid(_part(rows, layer.n_experts)))
        slots += _readings(layer.shared, everyone, share, high)
    for e in np.unique(routing.experts[kept]):
        chosen, rank = np.nonzero((routing.experts == e) & kept)
        slots += _readings(layer.experts[e], chosen, routing.weights[chosen, rank], high)

    # All of a token's h share one LSB, so every h is known before the first is quantised.
    hs = []
    h_top = np.full(tokens, TOP_MIN, dtype=np.int64)
    for expert, chosen, _ in slots:
        xe = _select(x8, chosen, expert.gate_up.blocks)
        gu = normalise(gemv(expert.gate_up, xe, ACT8_MAX), expert.gate_up.row_exp + xe.base[:, None])
        h = activate(
            _part(gu, slice(0, None, 2)), _part(gu, slice(1, None, 2)), layer.activation, layer.limit
        )
        h = Scaled(sign=pad_blocks(h.sign, False), top=pad_blocks(h.top, TOP_MIN), mag=pad_blocks(h.mag))
        if layer.expert_biased:
            h = append_bias_block(h)
        hs.append(h)
        h_top[chosen] = np.maximum(h_top[chosen], h.top.max(axis=(1, 2)))
    alone = np.nonzero(~kept.any(axis=1))[0] if layer.fallback is not None else everyone[:0]
    h_top[alone] = BIAS_TOPS[0]

    total = Combine(tokens, layer.hidden)
    for (expert, chosen, weight), h in zip(slots, hs, strict=True):
        h8 = quantise_act8(h, h_top[chosen], spread=config.activation_spread)
        acc = gemv(expert.down, h8, ACT8_MAX)
        total.add(chosen, acc, weight, expert.down.row_exp - layer.down_base)
    if layer.fallback is not None and len(alone):
        h8 = quantise_act8(bias_blocks(len(alone)), h_top[alone], spread=config.activation_spread)
        acc = gemv(layer.fallback, h8, ACT8_MAX)
        total.add(alone, acc, np.full(len(alone), ONE), layer.fallback.row_exp - layer.down_base)
    base = h_top - config.activation_spread - ACT8_FRACTION
    y = total.result((layer.down_base + base - PROB_FRACTION)[:, None])
    done = work(layer, routing.experts, kept, high)
    return Result(
        y=y,
        experts=routing.experts,
        weights=routing.weights,
        decisions=decisions,
        stats=stats(done, kept, decisions),
        work=done,
        high=high,
        settings=settings,
    )


def _readings(
    expert: QuantisedExpert, chosen: np.ndarray, weight: np.ndarray, high: np.ndarray
) -> Iterator[tuple[QuantisedExpert, np.ndarray, np.ndarray]]:
    """Slots of an expert: that of the tokens that read it whole, that of those that read high nibbles."""
    for nibble in (False, True):
        mine = high[chosen] == nibble
        if mine.any():
            yield expert.high() if nibble else expert, chosen[mine], weight[mine]


def _select(x: QuantisedVectors, tokens: np.ndarray, blocks: int) -> QuantisedVectors:
    """Some tokens, and of them the first blocks (a matrix without biases leaves the constants out)."""
    return QuantisedVectors(
        codes=x.codes[tokens, :blocks], shift=x.shift[tokens, :blocks], base=x.base[tokens]
    )
