"""The MoE layer on exact fractions, one number at a time: an oracle for the golden model.

It takes the quantised weights and the function tables from the specification, and nothing else: activations,
sums, roundings, softmax and the combine are worked out anew, without widths, limbs or an order of summation.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from test_formats import log2_floor, power, rounded

from sw_model.config import HardwareConfig
from sw_model.formats import BLOCK, QuantisedMatrix
from sw_model.quantised import QuantisedExpert, QuantisedLayer
from sw_model.tables import EXP2, SIGMOID

ONE = 1 << 16


@dataclass(frozen=True)
class Exact:
    """y as binary32 bits [H], experts and Q1.16 weights [k] of one token."""

    y: list[int]
    experts: list[int]
    weights: list[int]


def _fractions(a: np.ndarray) -> list[Fraction]:
    return [Fraction(float(v)) for v in a]


def _dot(a: list[Fraction], b: list[Fraction]) -> Fraction:
    return sum((v * w for v, w in zip(a, b, strict=True) if v and w), Fraction(0))


def value(sign: bool, top: int, mag: int) -> Fraction:
    """An unpacked number."""
    return (-1 if sign else 1) * int(mag) * power(int(top) - 23)


def round24(v: Fraction) -> Fraction:
    """The nearest number of 24 bits, ties to even."""
    if not v:
        return v
    lsb = power(log2_floor(abs(v)) - 23)
    return round(v / lsb) * lsb


def _quantise(vectors: list[list[Fraction]], spread: int, fraction: int, most: int, least: int) -> list[list]:
    """Vectors that share one largest exponent, in blocks; ``least`` is the exponent of a zero."""

    def top(block: list[Fraction]) -> int:
        return max((max(log2_floor(abs(v)), least) for v in block if v), default=least)

    token = max(top(v) for v in vectors)
    out = []
    for vector in vectors:
        values = []
        for start in range(0, len(vector), BLOCK):
            block = vector[start : start + BLOCK]
            lsb = power(max(top(block), token - spread) - fraction)
            values += [max(-most, min(most, round(v / lsb))) * lsb for v in block]
        out.append(values)
    return out


def sigmoid(v: Fraction) -> int:
    """Q1.16, by the table."""
    arg = min((abs(v) * (1 << 12)).__floor__(), (1 << 16) - 1)
    s = int(SIGMOID(np.array(arg)))
    return ONE - s if v < 0 else s


def _route(logits: list[int], k: int, renormalise: bool) -> tuple[list[int], list[int]]:
    experts = sorted(range(len(logits)), key=lambda e: (-logits[e], e))[:k]

    def exponential(logit: int) -> int:
        whole, part = divmod(max(logits) - logit, 1 << 16)
        return round(Fraction(int(EXP2(np.array(part))), 1 << whole)) if whole < 32 else 0

    p = [exponential(logit) for logit in logits]
    total = sum(p[e] for e in experts) if renormalise else sum(p)
    return experts, [(Fraction(p[e] * ONE, total) + Fraction(1, 2)).__floor__() for e in experts]


def run(layer: QuantisedLayer, x: np.ndarray, config: HardwareConfig) -> list[Exact]:
    """Every token of ``x`` [T, H] float32, each by itself."""
    decoded: dict[int, list[list[Fraction]]] = {}

    def product(m: QuantisedMatrix, v: list[Fraction]) -> list[Fraction]:
        if id(m) not in decoded:
            decoded[id(m)] = [_fractions(row) for row in m.to_float()]  # float64 holds each weight exactly
        return [_dot(row, v) for row in decoded[id(m)]]

    def one(token: list[Fraction]) -> Exact:
        (x8,) = _quantise([token], config.activation_spread, 6, 127, -126)
        (x16,) = _quantise([token], config.router_spread, 13, 1 << 14, -126)
        scores = [round24(s) for s in product(layer.router, x16)]
        limit = (1 << 31) - 1
        logits = [max(-limit, min(limit, round(s * ONE))) for s in scores[: layer.n_experts]]
        experts, weights = _route(logits, layer.top_k, layer.renormalise)
        slots: list[tuple[QuantisedExpert, int]] = []
        if layer.shared is not None:
            slots.append((layer.shared, sigmoid(scores[-1]) if layer.shared_gated else ONE))
        slots += [(layer.experts[e], w) for e, w in zip(experts, weights, strict=True)]
        hs = []
        for expert, _ in slots:
            sums = [round24(s) for s in product(expert.gate_up, x8)]
            pairs = zip(sums[::2], sums[1::2], strict=True)
            hs.append([round24(round24(g * u) * Fraction(sigmoid(g), ONE)) for g, u in pairs])
        h8 = _quantise(hs, config.activation_spread, 6, 127, -1024)
        y = [Fraction(0)] * layer.hidden
        for (expert, weight), h in zip(slots, h8, strict=True):
            y = [a + b * Fraction(weight, ONE) for a, b in zip(y, product(expert.down, h), strict=True)]
        return Exact([int(rounded(v)) for v in y], experts, weights)

    return [one(_fractions(token)) for token in x]
