"""The golden model against the float64 reference: how much the formats cost, and that routing agrees."""

from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Any

import exact_moe
import numpy as np
import pytest
from random_layers import RULES, random_layer
from test_golden_exact import CONFIG

from sw_model import golden, reference
from sw_model.formats import Scaled, normalise
from sw_model.gate import Q_MAX, Q_MIN, entropy, log2_weight
from sw_model.moe import Expert, MoELayer, RouterRule
from sw_model.quantised import quantise
from sw_model.tables import EXP2

#: Least SQNR in dB by format; beyond the other bound nothing would be quantised.
BARS = {"int8": (30.0, 37.0), "fp8": (24.5, 33.0), "int4": (14.5, 18.0), "mxfp4": (13.0, 18.0)}


def sqnr_db(y: np.ndarray, exact: np.ndarray) -> float:
    return float(10 * np.log10((exact**2).sum() / ((y - exact) ** 2).sum()))


def outliers(rng: np.random.Generator, tokens: int, hidden: int) -> np.ndarray:
    """Gaussian tokens, one channel in 32 of them twelve times as large."""
    x = rng.standard_normal((tokens, hidden))
    x[:, rng.permutation(hidden)[: hidden // 32]] *= 12
    return x.astype(np.float32)


CONFIG_HERE = replace(CONFIG, max_hidden=192)


@cache
def _layer(rule: str) -> tuple[MoELayer, np.ndarray]:
    rng = np.random.default_rng(6)
    shape = {**RULES[rule], "hidden": 128, "width": 64, "experts": 8, "top_k": 3, "limit": 7.0}
    if shape.get("shared"):
        shape["shared"] = 64
    return random_layer(rng, **shape), outliers(rng, 1500, 128)


def group_margin(layer: MoELayer, x: np.ndarray) -> np.ndarray:
    """By how much the last group chosen beats the first one left out; inf if none is."""
    rule = layer.rule
    if rule.top_groups == rule.groups:
        return np.full(len(x), np.inf)
    logits = x.astype(np.float64) @ layer.router.astype(np.float64).T
    s = 1 / (1 + np.exp(-logits)) if rule.scoring == "sigmoid" else np.exp(logits - logits.max(1)[:, None])
    s /= 1 if rule.scoring == "sigmoid" else s.sum(axis=1, keepdims=True)
    s = s if layer.selection_bias is None else s + layer.selection_bias
    best = -np.sort(-s.reshape(len(x), rule.groups, -1), axis=2)
    groups = best[..., 0] if rule.group_score == "max" else best[..., :2].sum(axis=2)
    ranked = -np.sort(-groups, axis=1)
    return ranked[:, rule.top_groups - 1] - ranked[:, rule.top_groups]


@pytest.mark.parametrize("fmt", BARS)
@pytest.mark.parametrize("rule", RULES)
def test_signal_to_noise(rule: str, fmt: str) -> None:
    layer, x = _layer(rule)
    x = x[:200]
    result, exact = golden.run(quantise(layer, fmt, CONFIG_HERE), x, CONFIG_HERE), reference.run(layer, x)
    # Where two groups are as good as each other a whole group of experts may change.
    clear = group_margin(layer, x) > 1e-3
    assert clear.mean() > 0.9
    least, most = BARS[fmt]
    assert least < sqnr_db(result.y[clear], exact.y[clear]) < most


@pytest.mark.parametrize("rule", RULES)
def test_selection(rule: str) -> None:
    """Of the tokens whose last expert beats the next by 1e-3, 99.9 % choose the same; others are close."""
    layer, x = _layer(rule)
    small = replace(layer, experts=tuple(_narrow(e) for e in layer.experts))  # their width is not looked at
    exact = reference.run(small, x)
    result = golden.run(quantise(small, "int4", CONFIG_HERE), x, CONFIG_HERE)
    agree = (np.sort(result.experts, axis=1) == np.sort(exact.experts, axis=1)).all(axis=1)
    groups = group_margin(small, x)
    assert (exact.margin <= groups + 1e-12).all()
    assert np.isinf(groups).all() or np.isclose(exact.margin, groups).mean() > 0.05
    assert (exact.margin > 1e-3).sum() > 1000
    assert agree[exact.margin > 1e-3].mean() >= 0.999
    assert exact.margin[~agree].max(initial=0) < 1e-3
    same = (result.experts == exact.experts).all(axis=1)
    assert same.mean() > 0.97
    error = np.abs(result.weights[same] / golden.ONE - exact.weights[same])
    assert error.max() < 1e-3 * layer.rule.scale


def _narrow(e: Expert) -> Expert:
    biases = {n: getattr(e, n) for n in ("gate_bias", "up_bias", "down_bias")}
    first = {n: b if b is None or n == "down_bias" else b[:1] for n, b in biases.items()}
    return Expert(gate=e.gate[:1], up=e.up[:1], down=e.down[:, :1], **first)


# --- routing in integers ------------------------------------------------------------------------------------


def logits_as_rows(logits: np.ndarray) -> Scaled:
    """Unpacked numbers whose logits (Q15.16) are exactly these; they must fit 24 bits."""
    rows = normalise(logits.astype(np.int64), -golden.LOGIT_FRACTION)
    assert np.array_equal(golden.to_fixed(rows, golden.LOGIT_FRACTION), logits)
    return rows


@pytest.mark.parametrize("renormalise", [False, True])
def test_softmax_weights(renormalise: bool) -> None:
    """Softmax over Q15.16 log2 logits, within what table and rounding allow."""
    rng = np.random.default_rng(7)
    logits = np.concatenate([rng.integers(-(1 << s), 1 << s, (50, 8)) for s in (10, 17, 19, 23)])
    rule = RouterRule(top_k=3, renormalise=renormalise)
    routing = golden.route(logits_as_rows(logits), rule, None)
    experts, weights = routing.experts, routing.weights
    p = np.exp2((logits - logits.max(axis=1, keepdims=True)) / (1 << 16))
    chosen = np.take_along_axis(p, experts, axis=1)
    total = chosen.sum(axis=1, keepdims=True) if renormalise else p.sum(axis=1, keepdims=True)
    assert (np.diff(np.take_along_axis(logits, experts, axis=1)) <= 0).all()
    assert (np.diff(weights) <= 0).all()
    assert np.abs(weights / golden.ONE - chosen / total).max() < 4e-5
    if renormalise:
        assert (np.abs(weights.sum(axis=1) - golden.ONE) <= 2).all()


@pytest.mark.parametrize("scale", [1.0, 2.5, 16.0, 63.99])
def test_sigmoid_weights(scale: float) -> None:
    rng = np.random.default_rng(8)
    logits = np.concatenate([rng.integers(-(1 << s), 1 << s, (50, 8)) for s in (10, 17, 19)])
    bias = rng.normal(0, 0.4, 8).astype(np.float32)
    rule = RouterRule(top_k=3, renormalise=False, scoring="sigmoid", scale=scale)
    routing = golden.route(logits_as_rows(logits), rule, bias)
    p = 1 / (1 + np.exp(-logits / (1 << 16)))
    want = np.argsort(-(p + bias), axis=1, kind="stable")[:, :3]
    assert (routing.experts == want).all(axis=1).mean() > 0.95
    chosen = np.take_along_axis(p, routing.experts, axis=1)
    assert np.abs(routing.weights / golden.ONE - chosen * scale).max() < 1e-4 * max(1, scale)
    assert (routing.entropy == 0).all()


def test_entropy_of_the_router() -> None:
    """Against the entropy of the softmax in float64, normalised; even scores give 1, one winner 0."""
    rng = np.random.default_rng(9)
    for experts in (2, 5, 8, 16, 60):
        logits = np.concatenate(
            [rng.integers(-(1 << s), 1 << s, (60, experts)) for s in (12, 16, 17, 18, 19)]
        )
        logits[0], logits[1, 1:], logits[1, 0] = 77, -(1 << 22), 1 << 22
        distance = logits.max(axis=1, keepdims=True) - logits
        h = entropy(golden.exp2_neg(distance), distance, experts) / 256
        p = np.exp2(-distance / (1 << 16))
        p /= p.sum(axis=1, keepdims=True)
        exact = -(p * np.log2(np.maximum(p, 1e-300))).sum(axis=1) / np.log2(experts)
        assert np.abs(h - exact).max() < 2.5 / 256
        assert h[0] == 1 and h[1] == 0
    one = entropy(np.full((1, 1), 1 << 24), np.zeros((1, 1), np.int64), 1)
    assert one.tolist() == [0]


def test_exponential() -> None:
    """2**-d against the function: exact in its table, rounded to nearest even below it, 0 from 32 on."""
    d = np.concatenate([np.arange(0, 40 << 16, 977), np.arange(40) << 16, [(1 << 32) - 2]])
    p = golden.exp2_neg(d)
    for value, got in zip(d.tolist(), p.tolist(), strict=True):
        whole, part = divmod(value, 1 << 16)
        want = round(Fraction(int(EXP2(np.array(part))), 1 << whole)) if whole < 32 else 0
        assert got == want, value
    assert np.abs(p / (1 << 24) - np.exp2(-d / (1 << 16))).max() < 2e-5


@pytest.mark.parametrize("fraction", [8, 16, 24])
def test_to_fixed(fraction: int) -> None:
    """Against fractions, around every exponent of the range and saturated beyond it."""
    rng = np.random.default_rng(18)
    top = np.repeat(np.arange(-4 - fraction, 34 - fraction), 40)
    mag = rng.integers(1 << 23, 1 << 24, len(top))
    mag[::4], mag[1::4] = 1 << 23, (1 << 24) - 1
    drop = np.clip(23 - fraction - top[2::4], 1, 23)  # ties
    mag[2::4] = mag[2::4] >> drop << drop | 1 << (drop - 1) | 1 << 23
    sign = rng.random(len(top)) < 0.5
    got = golden.to_fixed(Scaled(sign=sign, top=top, mag=mag), fraction)
    for s, t, m, y in zip(sign, top.tolist(), mag.tolist(), got.tolist(), strict=True):
        exact = min(golden.FIXED_MAX, round(m * Fraction(2) ** (t - 23 + fraction)))
        assert y == (-exact if s else exact), (t, m)
    assert golden.FIXED_MAX in got and -golden.FIXED_MAX in got


def test_many_experts_that_tie() -> None:
    rng = np.random.default_rng(19)
    choice = rng.integers(0, 3, (20, 100)) << 16
    experts = golden.choose(choice, RouterRule(top_k=40, renormalise=True))
    for row, chosen in zip(choice.tolist(), experts.tolist(), strict=True):
        assert chosen == sorted(range(100), key=lambda e: (-row[e], e))[:40]


RULES_OF_GROUPS: list[dict[str, Any]] = [
    {"groups": 8, "top_groups": 3, "group_score": "max"},
    {"groups": 4, "top_groups": 1, "group_score": "top2", "scoring": "sigmoid"},
    {"groups": 2, "top_groups": 2, "group_score": "top2", "scoring": "sigmoid"},
    {"groups": 12, "top_groups": 5, "group_score": "max"},
]


@pytest.mark.parametrize("options", RULES_OF_GROUPS, ids=lambda o: f"{o['top_groups']}of{o['groups']}")
def test_groups_that_tie(options: dict[str, Any]) -> None:
    """Groups and experts tie to the lowest index."""
    rng = np.random.default_rng(20)
    rule = RouterRule(top_k=3, renormalise=True, **options)
    layer = quantise(
        random_layer(rng, experts=24, top_k=3, **options),
        "int4",
        replace(CONFIG, max_experts=24, max_groups=12),
    )
    for row in rng.integers(-2, 3, (200, 24)):
        assert golden.choose(row[None], rule)[0].tolist() == exact_moe._choose(row.tolist(), layer)


def test_the_least_weight_is_not_the_least_number() -> None:
    """log2 of a weight of 0 is the least Q7.8; biases may still lift it."""
    w = np.array([0, 1, 2, 3, golden.ONE, 63 * golden.ONE])
    assert log2_weight(w).tolist()[:3] == [Q_MIN, -16 << 8, -15 << 8]
    exact = np.log2(w[1:] / golden.ONE) * 256
    assert np.abs(log2_weight(w[1:]) - exact).max() < 1
    assert log2_weight(w).max() < Q_MAX
