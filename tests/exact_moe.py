"""The MoE layer on exact fractions, one number at a time: an oracle for the golden model.

It takes the quantised weights and the function tables from the specification, and nothing else: activations,
sums, roundings, routing, the gate and the combine are worked out anew, without widths, limbs or an order of
summation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import floor, log2

import numpy as np
from test_formats import log2_floor, power, rounded

from sw_model.config import HardwareConfig
from sw_model.formats import BLOCK, INT8, QuantisedMatrix
from sw_model.gate import Gate, SideBand
from sw_model.moe import Activation
from sw_model.quantised import QuantisedExpert, QuantisedLayer
from sw_model.tables import EXP2, LOG2, SIGMOID

ONE = 1 << 16
CONSTANTS = [Fraction(1), Fraction(1, 4), Fraction(1, 16), Fraction(1, 64)] + [Fraction(0)] * 28
Vector = list[Fraction]


@dataclass(frozen=True)
class Exact:
    """y as binary32 bits [H], experts and Q7.16 weights [k] of one token; which level removed each, or 0."""

    y: list[int]
    experts: list[int]
    weights: list[int]
    removed: list[int]


def _fractions(a: np.ndarray) -> Vector:
    return [Fraction(float(v)) for v in a]


def _whole(v: Vector) -> tuple[list[int], int]:
    """Integers, and what they all have to be divided by: quicker to multiply than fractions."""
    below = max(x.denominator for x in v)
    return [x.numerator * (below // x.denominator) for x in v], below


def _dot(row: tuple[list[int], int], v: tuple[list[int], int]) -> Fraction:
    return Fraction(sum(a * b for a, b in zip(row[0], v[0], strict=False)), row[1] * v[1])


def value(sign: bool, top: int, mag: int) -> Fraction:
    """An unpacked number."""
    return (-1 if sign else 1) * int(mag) * power(int(top) - 23)


def round24(v: Fraction) -> Fraction:
    """The nearest number of 24 bits, ties to even."""
    if not v:
        return v
    lsb = power(log2_floor(abs(v)) - 23)
    return round(v / lsb) * lsb


def fixed(v: Fraction, fraction: int) -> int:
    """Signed fixed point of 32 bits."""
    most = (1 << 31) - 1
    return max(-most, min(most, round(v * (1 << fraction))))


def _filled(v: Vector, biased: bool) -> Vector:
    return v + [Fraction(0)] * (-len(v) % BLOCK) + (CONSTANTS if biased else [])


def _quantise(vectors: list[Vector], spread: int, fraction: int, most: int, least: int) -> list[Vector]:
    """Vectors that share one largest exponent, in blocks; ``least`` is the exponent of a zero."""

    def top(block: Vector) -> int:
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


def sigmoid(v: Fraction, alpha: Fraction = Fraction(1)) -> int:
    """Q1.24, by the table; alpha has 16 bits of fraction."""
    arg = min(floor(abs(v) * alpha * (1 << 16)), (1 << 20) - 1)
    s = int(SIGMOID(np.array(arg)))
    return (1 << 24) - s if v < 0 else s


def share(v: Fraction) -> int:
    """A sigmoid as a weight, Q1.16."""
    return round(Fraction(sigmoid(v), 1 << 8))


def swiglu(g: Fraction, u: Fraction) -> Fraction:
    return round24(round24(g * u) * Fraction(share(g), ONE))


def clamped(g: Fraction, u: Fraction, limit: Fraction) -> Fraction:
    g, u = min(g, limit), max(-limit, min(u, limit))
    u = round24(Fraction(fixed(u, 24), 1 << 24) + 1)
    alpha = Fraction(round(1.702 * (1 << 16)), 1 << 16)
    s = round(Fraction(sigmoid(g, alpha), 1 << 8))
    return round24(round24(g * u) * Fraction(s, ONE))


def _choose(scores: list[int], layer: QuantisedLayer) -> list[int]:
    """Best first, ties to the lowest index, within the best groups."""
    rule = layer.rule
    size = len(scores) // rule.groups
    of = [sorted(scores[g * size : (g + 1) * size], reverse=True) for g in range(rule.groups)]
    group = [s[0] if rule.group_score == "max" else sum(s[:2]) for s in of]
    kept = sorted(range(rule.groups), key=lambda g: (-group[g], g))[: rule.top_groups]
    eligible = [e for e in range(len(scores)) if e // size in kept]
    return sorted(eligible, key=lambda e: (-scores[e], e))[: rule.top_k]


def _exponential(distance: int) -> int:
    whole, part = divmod(distance, 1 << 16)
    return round(Fraction(int(EXP2(np.array(part))), 1 << whole)) if whole < 32 else 0


def _route(rows: Vector, layer: QuantisedLayer) -> tuple[list[int], list[int], int]:
    """Experts, their weights, and the entropy in Q7.8."""
    rule, entropy = layer.rule, 0
    if rule.scoring == "softmax":
        choice = [fixed(v, 16) for v in rows]
        distance = [max(choice) - c for c in choice]
        p = [_exponential(d) for d in distance]
        whole = sum(p)
        entropy = _entropy(p, distance)
    else:
        p = [sigmoid(v) for v in rows]
        bias = [Fraction(0)] * len(p) if layer.selection_bias is None else _fractions(layer.selection_bias)
        choice = [s + fixed(b, 24) for s, b in zip(p, bias, strict=True)]
        whole = 1 << 24
    experts = _choose(choice, layer)
    total = sum(p[e] for e in experts) if rule.renormalise else whole
    weights = [floor(Fraction(p[e] * ONE, total) + Fraction(1, 2)) for e in experts]
    scale = Fraction(round(rule.scale * 1024), 1024)
    return experts, [floor(w * scale + Fraction(1, 2)) for w in weights], entropy


def _log2(v: Fraction) -> int:
    """Q7.8, of the 12 bits behind the leading one."""
    whole = log2_floor(v)
    return (whole << 8) + int(LOG2(np.array(floor((v / power(whole) - 1) * (1 << 12)))))


def _entropy(p: list[int], distance: list[int]) -> int:
    total = sum(p)
    mean = sum(a * min(d >> 8, (1 << 14) - 1) for a, d in zip(p, distance, strict=True)) // total
    scale = 0 if len(p) < 2 else round(ONE / log2(len(p)))
    return floor(Fraction((_log2(Fraction(total, 1 << 24)) + mean) * scale, ONE) + Fraction(1, 2))


def _q(v: int) -> int:
    return max(-(1 << 15), min((1 << 15) - 1, v))


def _half_up(v: Fraction) -> int:
    return floor(v + Fraction(1, 2))


def _admit(
    gate: Gate, experts: list[int], weights: list[int], entropy: int, row: int, domain: int, info: int,
    resident: Callable[[int], bool],
) -> list[int]:  # fmt: skip
    """The level that removes each candidate, or 0."""
    density = _q(_half_up(Fraction(gate.info * (info << 5) + gate.entropy * entropy + (row << 8), 1 << 8)))
    u = [
        _q((_log2(Fraction(w, ONE)) if w else -(1 << 15)) + int(gate.domain_bias[domain][e]))
        for e, w in zip(experts, weights, strict=True)
    ]
    allowed = sum(density >= tau for tau in gate.tau)
    removed = []
    for j, e in enumerate(experts):
        rank = sum(u[i] > u[j] or (u[i] == u[j] and i < j) for i in range(len(u)))
        cost = _q(int(gate.cost[e]) + (0 if resident(e) else int(gate.miss[e])))
        credit, charge = (
            _half_up(Fraction(gate.density * density, 256)),
            _half_up(Fraction(gate.lam * cost, 256)),
        )
        worth = _q(u[j] + credit - charge)
        levels = [rank >= allowed, u[j] < gate.phi, worth < gate.psi, rank >= gate.cap]
        removed.append(levels.index(True) + 1 if any(levels) else 0)
    return removed


def run(
    layer: QuantisedLayer,
    x: np.ndarray,
    config: HardwareConfig,
    side: SideBand | None = None,
    resident: np.ndarray | None = None,
) -> list[Exact]:
    """Every token of ``x`` [T, H] float32, each by itself."""
    decoded: dict[int, list[tuple[list[int], int]]] = {}
    here = (lambda e: True) if resident is None else (lambda e: bool(resident[e]))

    def read(code: int, m: QuantisedMatrix) -> int:
        if not layer.high_nibble or m.fmt is not INT8 or m is layer.fallback:
            return code
        return 0 if abs(code) < 16 else (abs(code) // 16 * 16 + 8) * (1 if code > 0 else -1)

    def product(m: QuantisedMatrix, v: Vector) -> Vector:
        if id(m) not in decoded:
            decoded[id(m)] = [
                _whole(
                    [
                        read(int(code), m) * int(m.mant[r, b]) * power(int(m.shift[r, b] + m.row_exp[r]))
                        for b in range(m.blocks)
                        for code in m.codes[r, b]
                    ]
                )
                for r in range(m.rows)
            ]
        # A matrix without biases leaves the constants behind its columns out.
        whole = _whole(v)
        return [_dot(row, whole) for row in decoded[id(m)]]

    def activated(expert: QuantisedExpert, x8: Vector) -> Vector:
        sums = [round24(s) for s in product(expert.gate_up, x8)]
        pairs = list(zip(sums[::2], sums[1::2], strict=True))
        if layer.activation is Activation.CLAMPED:
            limit = Fraction(float(np.float32(layer.limit)))
            return [clamped(g, u, limit) for g, u in pairs]
        return [swiglu(g, u) for g, u in pairs]

    def one(token: Vector, info: int, tag: int) -> Exact:
        filled = _filled(token, layer.router_biased or layer.expert_biased)
        (x8,) = _quantise([filled], config.activation_spread, 6, 127, -126)
        (x16,) = _quantise([filled], config.router_spread, 13, 1 << 14, -126)
        rows = [round24(s) for s in product(layer.router, x16)]
        experts, weights, entropy = _route(rows[: layer.n_experts], layer)
        rows = rows[layer.n_experts :]
        slots: list[tuple[QuantisedExpert, int]] = []
        if layer.shared is not None:
            slots.append((layer.shared, share(rows.pop(0)) if layer.shared_gated else ONE))
        removed = [0] * len(experts)
        if layer.gate is not None:
            row = _q(fixed(rows.pop(0), 8)) if layer.gate.density_row is not None else 0
            domains = [fixed(v, 16) for v in rows]
            domain = tag if tag >= 0 else domains.index(max(domains)) if domains else 0
            removed = _admit(layer.gate, experts, weights, entropy, row, domain, info, here)
        slots += [
            (layer.experts[e], w) for e, w, gone in zip(experts, weights, removed, strict=True) if not gone
        ]
        hs = [_filled(activated(expert, x8), layer.expert_biased) for expert, _ in slots]
        matrices = [(expert.down, weight) for expert, weight in slots]
        if not slots and layer.fallback is not None:
            hs, matrices = [CONSTANTS], [(layer.fallback, ONE)]
        h8 = _quantise(hs, config.activation_spread, 6, 127, -1024)
        y = [Fraction(0)] * layer.hidden
        for (down, weight), h in zip(matrices, h8, strict=True):
            y = [a + b * Fraction(weight, ONE) for a, b in zip(y, product(down, h), strict=True)]
        return Exact([int(rounded(v)) for v in y], experts, weights, removed)

    side = side if side is not None else SideBand.empty(len(x))
    bands = zip(side.info.tolist(), side.tag.tolist(), strict=True)
    return [one(_fractions(token), *band) for token, band in zip(x, bands, strict=True)]
