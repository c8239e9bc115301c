"""The golden model: the MoE layer in integers, bit for bit what the hardware computes.

    x (float32) -> quantise -> route -> expert passes -> combine -> y (float32)

After quantisation there are only integers. Every sum is exact; rounding (to nearest even) happens at named
places: the 24-bit normalisation of a row result, the tables, the re-quantisation of h, the routing weights
and the one final conversion to float32. NumPy's BLAS serves as an integer multiplier where all partial sums
are proven to stay below 2**53, which float64 holds exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError
from sw_model.formats import (
    ACT8_MAX,
    ACT16_MAX,
    BLOCK,
    MAG_BITS,
    TOP_MIN,
    QuantisedMatrix,
    QuantisedVectors,
    Scaled,
    normalise,
    pack_float32,
    pad_blocks,
    quantise_act8,
    quantise_act16,
    round_shift,
    unpack_float32,
)
from sw_model.quantised import QuantisedExpert, QuantisedLayer
from sw_model.tables import EXP2, PROB_FRACTION, SIGMOID, SIGMOID_FRACTION

LOGIT_FRACTION = 16  # logits are signed Q15.16 in the log2 domain
LOGIT_MAX = (1 << 31) - 1
ONE = 1 << PROB_FRACTION


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What the work was: nibble multiply-accumulates and macro word reads, as the hardware counts them."""

    tokens: int
    experts_used: int
    nibble_macs: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """y [T, H] float32; experts [T, k] by falling logit; weights [T, k] in Q1.16."""

    y: np.ndarray
    experts: np.ndarray
    weights: np.ndarray
    stats: Stats = field(repr=False)


def gemv(m: QuantisedMatrix, x: QuantisedVectors, act_max: int) -> np.ndarray:
    """Exact row sums, int64 [T, rows]: sum over blocks of (codes . codes) * mant << (shift + shift)."""
    w = (m.codes * (m.mant << m.shift)[:, :, None]).reshape(m.rows, -1)
    a = (x.codes * (np.int64(1) << x.shift)[:, :, None]).reshape(len(x.codes), -1)
    largest = int(np.abs(w).max(initial=0)) * (act_max << int(x.shift.max(initial=0)))
    if largest * w.shape[1] < 1 << 53:
        return (a.astype(np.float64) @ w.astype(np.float64).T).astype(np.int64)
    return a @ w.T


def sigmoid(x: Scaled) -> np.ndarray:
    """sigmoid(x) in Q1.16: |x| truncated to Q4.12, saturated, looked up; 1 - s for negative x."""
    shift = np.clip(MAG_BITS - 1 - SIGMOID_FRACTION - x.top, 0, MAG_BITS)
    arg = np.where(x.top >= 4, (1 << SIGMOID.arg_bits) - 1, x.mag >> shift)
    s = SIGMOID(arg)
    return np.where(x.sign, ONE - s, s)


def swiglu(gate: Scaled, up: Scaled) -> Scaled:
    """h = (gate * up) * sigmoid(gate), each product rounded to 24 bits."""
    product = normalise(gate.mag * up.mag, gate.top + up.top - 2 * (MAG_BITS - 1))
    h = normalise(product.mag * sigmoid(gate), product.top - (MAG_BITS - 1) - PROB_FRACTION)
    return Scaled(sign=gate.sign ^ up.sign, top=h.top, mag=h.mag)


def to_logit(x: Scaled) -> np.ndarray:
    """Q15.16, rounded to nearest even, saturated symmetrically."""
    wide = x.mag << 7
    mag = round_shift(wide, np.clip(14 - x.top, 0, 62))
    mag = np.where(x.top > 14, LOGIT_MAX, mag)
    return np.where(x.sign, -mag, mag)


def exp2_neg(d: np.ndarray) -> np.ndarray:
    """2**-d for d >= 0 in Q16.16, as Q1.24; 0 from d = 32 on."""
    whole, frac = d >> LOGIT_FRACTION, d & ((1 << LOGIT_FRACTION) - 1)
    return np.where(whole < 32, round_shift(EXP2(frac), np.minimum(whole, 32)), 0)


def route(logits: np.ndarray, top_k: int, renormalise: bool) -> tuple[np.ndarray, np.ndarray]:
    """Softmax top-k on Q15.16 log2 logits [T, E]: experts [T, k] (ties to the lowest index), weights Q1.16.

    w = floor(p * 2**17 / sum, + 1) >> 1, the sum over the chosen experts if ``renormalise``, else over all.
    """
    experts = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    p = exp2_neg(logits.max(axis=1, keepdims=True) - logits)
    chosen = np.take_along_axis(p, experts, axis=1)
    total = (chosen if renormalise else p).sum(axis=1, keepdims=True)
    return experts, (((chosen << (PROB_FRACTION + 1)) // total) + 1) >> 1


class _Combine:
    """Exact weighted sum of row results in two limbs: high * 2**32 + low."""

    def __init__(self, tokens: int, hidden: int) -> None:
        self.high = np.zeros((tokens, hidden), dtype=np.int64)
        self.low = np.zeros((tokens, hidden), dtype=np.int64)

    def add(self, tokens: np.ndarray, acc: np.ndarray, weight: np.ndarray, shift: np.ndarray) -> None:
        self.high[tokens] += ((acc >> 32) * weight[:, None]) << shift
        self.low[tokens] += ((acc & 0xFFFFFFFF) * weight[:, None]) << shift

    def result(self, lsb_exp: np.ndarray) -> np.ndarray:
        high, low = self.high + (self.low >> 32), self.low & 0xFFFFFFFF
        negative = high < 0
        borrow = negative & (low > 0)
        low = np.where(borrow, (1 << 32) - low, low)
        high = np.where(negative, -high - borrow, high)
        return pack_float32(negative, high, low, lsb_exp)


def check_input(x: np.ndarray, hidden: int) -> None:
    """Raise :class:`ExpertileError` unless ``x`` is finite float32 [tokens, hidden]."""
    if x.dtype != np.float32:
        raise ExpertileError(f"input: dtype {x.dtype}, expected float32; convert it with x.astype('float32')")
    if x.ndim != 2 or x.shape[1] != hidden:
        raise ExpertileError(f"input: shape {list(x.shape)}, expected [tokens, {hidden}]")
    if not np.isfinite(x).all():
        token = int(np.nonzero(~np.isfinite(x).all(axis=1))[0][0])
        raise ExpertileError(f"input: NaN or infinity in token {token}; every value must be finite")


def run(layer: QuantisedLayer, x: np.ndarray, config: HardwareConfig) -> Result:
    """Compute the layer for tokens ``x`` [T, H] float32.

    Raises
    ------
    ExpertileError : x of the wrong shape or dtype, or not finite
    """
    check_input(x, layer.hidden)
    tokens = len(x)
    blocks = Scaled(
        **{
            name: pad_blocks(getattr(unpack_float32(x), name), fill)
            for name, fill in (("sign", False), ("top", -126), ("mag", 0))
        }
    )
    token_top = blocks.top.max(axis=(1, 2), initial=-126)
    x8 = quantise_act8(blocks, token_top, spread=config.activation_spread)
    x16 = quantise_act16(blocks, token_top, spread=config.router_spread)

    scores = gemv(layer.router, x16, ACT16_MAX)
    rows = normalise(scores, layer.router.row_exp + x16.base[:, None])
    logits = to_logit(rows)[:, : layer.n_experts]
    experts, weights = route(logits, layer.top_k, layer.renormalise)

    # One entry a slot: (expert, its tokens, their Q1.16 weights).
    slots: list[tuple[QuantisedExpert, np.ndarray, np.ndarray]] = []
    if layer.shared is not None:
        last = Scaled(sign=rows.sign[:, -1], top=rows.top[:, -1], mag=rows.mag[:, -1])
        share = sigmoid(last) if layer.shared_gated else np.full(tokens, ONE)
        slots.append((layer.shared, np.arange(tokens), share))
    for e in np.unique(experts):
        chosen, rank = np.nonzero(experts == e)
        slots.append((layer.experts[e], chosen, weights[chosen, rank]))

    # All of a token's h share one LSB, so every h is known before the first is quantised.
    hs = []
    h_top = np.full(tokens, TOP_MIN, dtype=np.int64)
    for expert, chosen, _ in slots:
        xe = QuantisedVectors(codes=x8.codes[chosen], shift=x8.shift[chosen], base=x8.base[chosen])
        gu = normalise(gemv(expert.gate_up, xe, ACT8_MAX), expert.gate_up.row_exp + xe.base[:, None])
        g, u = (Scaled(sign=gu.sign[:, i::2], top=gu.top[:, i::2], mag=gu.mag[:, i::2]) for i in (0, 1))
        h = swiglu(g, u)
        hs.append(h)
        h_top[chosen] = np.maximum(h_top[chosen], h.top.max(axis=1))

    total = _Combine(tokens, layer.hidden)
    for (expert, chosen, weight), h in zip(slots, hs, strict=True):
        padded = Scaled(sign=pad_blocks(h.sign, False), top=pad_blocks(h.top, TOP_MIN), mag=pad_blocks(h.mag))
        h8 = quantise_act8(padded, h_top[chosen], spread=config.activation_spread)
        acc = gemv(expert.down, h8, ACT8_MAX)
        total.add(chosen, acc, weight, expert.down.row_exp - layer.down_base)
    base = h_top - config.activation_spread - 6
    y = total.result((layer.down_base + base - PROB_FRACTION)[:, None])
    return Result(y=y, experts=experts, weights=weights, stats=_stats(layer, tokens))


def _stats(layer: QuantisedLayer, tokens: int) -> Stats:
    def macs(m: QuantisedMatrix, sets: int = 1) -> int:
        return m.rows * m.blocks * BLOCK * m.fmt.planes * sets

    expert = [e for e in (layer.experts[0],) * layer.top_k]
    if layer.shared is not None:
        expert.append(layer.shared)
    per_token = macs(layer.router, 2) + sum(macs(e.gate_up) + macs(e.down) for e in expert)
    return Stats(tokens=tokens, experts_used=tokens * layer.top_k, nibble_macs=tokens * per_token)
