"""The golden model against the float64 reference, and the properties that it promises."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from random_layers import random_layer, random_tokens
from test_golden_exact import CONFIG, SHAPES, bits

from sw_model import golden, reference
from sw_model.config import load_config
from sw_model.errors import ExpertileError
from sw_model.formats import BLOCK, Scaled
from sw_model.moe import Expert, MoELayer
from sw_model.quantised import quantise
from sw_model.tables import EXP2


def same(a: golden.Result, b: golden.Result) -> bool:
    return all(
        np.array_equal(p, q)
        for p, q in ((bits(a.y), bits(b.y)), (a.experts, b.experts), (a.weights, b.weights))
    )


# --- accuracy -----------------------------------------------------------------------------------------------


def sqnr_db(y: np.ndarray, exact: np.ndarray) -> float:
    return float(10 * np.log10((exact**2).sum() / ((y - exact) ** 2).sum()))


@pytest.mark.parametrize(("fmt", "least", "most"), [("int8", 33.0, 36.0), ("int4", 14.5, 17.0)])
@pytest.mark.parametrize(
    "shape", [{"top_k": 2}, {"renormalise": False, "shared": 128, "gated": True}], ids=["a", "b"]
)
def test_accuracy_on_gaussian_weights(fmt: str, least: float, most: float, shape: dict[str, Any]) -> None:
    """Signal to quantisation noise against float64; above ``most`` nothing would be quantised."""
    config = load_config("base")
    rng = np.random.default_rng(6)
    layer = random_layer(rng, hidden=256, width=128, experts=16, **shape)
    x = rng.standard_normal((96, 256)).astype(np.float32)
    exact = reference.run(layer, x)
    result = golden.run(quantise(layer, fmt, config), x, config)
    assert least < sqnr_db(result.y, exact.y) < most
    agree = (result.experts == exact.experts).all(axis=1)
    assert agree.mean() > 0.97
    error = np.abs(result.weights[agree] / golden.ONE - exact.weights[agree])
    assert error.max() < 2e-4


@pytest.mark.parametrize("renormalise", [False, True])
def test_routing_weights(renormalise: bool) -> None:
    """Softmax over Q15.16 log2 logits, within what table and rounding allow."""
    rng = np.random.default_rng(7)
    logits = np.concatenate([rng.integers(-(1 << s), 1 << s, (50, 8)) for s in (10, 17, 19, 25)])
    experts, weights = golden.route(logits, 3, renormalise)
    p = np.exp2((logits - logits.max(axis=1, keepdims=True)) / (1 << 16))
    chosen = np.take_along_axis(p, experts, axis=1)
    total = chosen.sum(axis=1, keepdims=True) if renormalise else p.sum(axis=1, keepdims=True)
    assert (np.diff(np.take_along_axis(logits, experts, axis=1)) <= 0).all()
    assert (np.diff(weights) <= 0).all()
    assert np.abs(weights / golden.ONE - chosen / total).max() < 4e-5
    if renormalise:
        assert (np.abs(weights.sum(axis=1) - golden.ONE) <= 2).all()


def test_exponential() -> None:
    """2**-d against the function: exact in its table, rounded to nearest even below it, 0 from 32 on."""
    d = np.concatenate([np.arange(0, 40 << 16, 977), np.arange(40) << 16, [(1 << 32) - 2]])
    p = golden.exp2_neg(d)
    for value, got in zip(d.tolist(), p.tolist(), strict=True):
        whole, part = divmod(value, 1 << 16)
        want = round(Fraction(int(EXP2(np.array(part))), 1 << whole)) if whole < 32 else 0
        assert got == want, value
    assert np.abs(p / (1 << 24) - np.exp2(-d / (1 << 16))).max() < 2e-5


def test_logits() -> None:
    """Q15.16 against fractions, around every exponent of the range and saturated beyond it."""
    rng = np.random.default_rng(18)
    top = np.repeat(np.arange(-20, 18), 40)
    mag = rng.integers(1 << 23, 1 << 24, len(top))
    mag[::4], mag[1::4] = 1 << 23, (1 << 24) - 1
    drop = np.clip(7 - top[2::4], 1, 23)  # ties
    mag[2::4] = mag[2::4] >> drop << drop | 1 << (drop - 1) | 1 << 23
    sign = rng.random(len(top)) < 0.5
    logits = golden.to_logit(Scaled(sign=sign, top=top, mag=mag))
    for s, t, m, logit in zip(sign, top.tolist(), mag.tolist(), logits.tolist(), strict=True):
        exact = min(golden.LOGIT_MAX, round(m * Fraction(2) ** (t - 23 + 16)))
        assert logit == (-exact if s else exact), (t, m)


def test_many_experts_that_tie() -> None:
    rng = np.random.default_rng(19)
    logits = rng.integers(0, 3, (20, 100)) << 16
    experts, _ = golden.route(logits, 40, True)
    for row, chosen in zip(logits.tolist(), experts.tolist(), strict=True):
        assert chosen == sorted(range(100), key=lambda e: (-row[e], e))[:40]


# --- properties ---------------------------------------------------------------------------------------------


def permuted(layer: MoELayer, order: np.ndarray) -> MoELayer:
    return replace(layer, router=layer.router[order], experts=tuple(layer.experts[e] for e in order))


@pytest.mark.parametrize("fmt", ["int8", "int4"])
def test_order_of_experts_and_blocks_changes_no_bit(fmt: str) -> None:
    rng = np.random.default_rng(8)
    layer = random_layer(rng, hidden=96, width=64, experts=6, top_k=3, shared=96, gated=True, wild=True)
    x = random_tokens(rng, 24, 96)
    x = x[np.abs(x).max(axis=1) > 0]  # a zero token is a tie, which the order decides
    x = x[np.abs(x).max(axis=1) < 2.0**30]
    x = x[np.abs(x).max(axis=1) > 2.0**-12]
    a = golden.run(quantise(layer, fmt, CONFIG), x, CONFIG)

    order = rng.permutation(6)
    b = golden.run(quantise(permuted(layer, order), fmt, CONFIG), x, CONFIG)
    assert np.array_equal(bits(a.y), bits(b.y))
    assert np.array_equal(order[b.experts], a.experts) and np.array_equal(a.weights, b.weights)

    def blocks(n: int) -> np.ndarray:
        return (rng.permutation(n // BLOCK)[:, None] * BLOCK + np.arange(BLOCK)).ravel()

    h, i, s = blocks(96), blocks(64), blocks(96)

    def moved(e: Expert, i: np.ndarray) -> Expert:
        return Expert(gate=e.gate[i][:, h], up=e.up[i][:, h], down=e.down[:, i])

    other = replace(
        layer,
        router=layer.router[:, h],
        experts=tuple(moved(e, i) for e in layer.experts),
        shared=moved(layer.shared, s),
        shared_gate=layer.shared_gate[h],
    )
    c = golden.run(quantise(other, fmt, CONFIG), x[:, h], CONFIG)
    assert same(a, c)


@pytest.mark.parametrize("shape", SHAPES[:3], ids=["plain", "ragged", "all"])
def test_tokens_do_not_meet(shape: dict[str, Any]) -> None:
    rng = np.random.default_rng(9)
    layer = quantise(random_layer(rng, **shape, wild=True), "int8", CONFIG)
    x = random_tokens(rng, 17, layer.hidden)
    whole = golden.run(layer, x, CONFIG)
    for a, b in ((0, 1), (1, 4), (3, 17), (16, 17)):
        part = golden.run(layer, x[a:b], CONFIG)
        assert same(
            part, replace(whole, y=whole.y[a:b], experts=whole.experts[a:b], weights=whole.weights[a:b])
        )
    back = golden.run(layer, x[::-1], CONFIG)
    assert np.array_equal(bits(back.y), bits(whole.y)[::-1])


@pytest.mark.xfail(raises=ValueError, reason="gemv reshapes an empty array with -1")
def test_no_tokens() -> None:
    rng = np.random.default_rng(10)
    for shape in SHAPES:
        layer = quantise(random_layer(rng, **shape), "int8", CONFIG)
        result = golden.run(layer, np.zeros((0, layer.hidden), np.float32), CONFIG)
        assert result.y.shape == (0, layer.hidden) and result.y.dtype == np.float32
        assert result.experts.shape == result.weights.shape == (0, layer.top_k)
        assert result.stats.tokens == result.stats.experts_used == result.stats.nibble_macs == 0


def test_zero_token() -> None:
    """Zero in, plus zero out; every logit ties, so the first experts are taken with equal weights."""
    rng = np.random.default_rng(11)
    layer = quantise(random_layer(rng, shared=32, gated=True, experts=6, top_k=4), "int8", CONFIG)
    for zero in (0.0, -0.0):
        result = golden.run(layer, np.full((2, 64), zero, np.float32), CONFIG)
        assert (bits(result.y) == 0).all()
        assert result.experts.tolist() == [[0, 1, 2, 3]] * 2
        assert result.weights.tolist() == [[1 << 14] * 4] * 2


def test_ties_take_the_lowest_index() -> None:
    rng = np.random.default_rng(12)
    layer = random_layer(rng, experts=6, top_k=2)
    router = layer.router.copy()
    router[[1, 4, 5]] = router[3] * 0 + np.abs(router[3])
    router[[0, 2, 3]] = -np.abs(router[3])
    x = np.abs(rng.standard_normal((5, 64))).astype(np.float32)
    result = golden.run(quantise(replace(layer, router=router), "int8", CONFIG), x, CONFIG)
    assert result.experts.tolist() == [[1, 4]] * 5
    assert (result.weights == 1 << 15).all()
    assert np.array_equal(reference.run(replace(layer, router=router), x).experts, result.experts)


def test_all_experts() -> None:
    """With top_k = E the sum over the chosen is the sum over all."""
    rng = np.random.default_rng(13)
    layer = random_layer(rng, experts=5, top_k=5, renormalise=True)
    x = random_tokens(rng, 8, 64)
    a = golden.run(quantise(layer, "int4", CONFIG), x, CONFIG)
    b = golden.run(quantise(replace(layer, renormalise=False), "int4", CONFIG), x, CONFIG)
    assert same(a, b)
    assert np.array_equal(np.sort(a.experts, axis=1), np.tile(np.arange(5), (8, 1)))


def test_gate_of_the_shared_expert() -> None:
    """A gate of zeros is a weight of one half, as is half the down projection ungated."""
    rng = np.random.default_rng(14)
    ungated = random_layer(rng, shared=32)
    x = random_tokens(rng, 8, 64)
    half = replace(ungated, shared_gate=np.zeros(64, np.float32))
    down = replace(ungated.shared, down=ungated.shared.down / 2)
    results = [
        golden.run(quantise(layer, "int8", CONFIG), x, CONFIG)
        for layer in (half, replace(ungated, shared=down))
    ]
    assert same(*results)
    open_gate = golden.run(quantise(ungated, "int8", CONFIG), x, CONFIG)
    none = golden.run(quantise(replace(ungated, shared=None), "int8", CONFIG), x, CONFIG)
    assert not np.array_equal(open_gate.y, results[0].y) and not np.array_equal(open_gate.y, none.y)
    assert np.array_equal(open_gate.weights, none.weights)


def test_ragged_is_filled_up_with_zeros() -> None:
    rng = np.random.default_rng(15)
    layer = random_layer(rng, hidden=40, width=33, shared=7, gated=True)

    def fill(a: np.ndarray, *shape: int) -> np.ndarray:
        return np.pad(a, [(0, n - m) for n, m in zip(shape, a.shape, strict=True)])

    def wide(e: Expert) -> Expert:
        i = -(-e.intermediate // BLOCK) * BLOCK
        return Expert(gate=fill(e.gate, i, 64), up=fill(e.up, i, 64), down=fill(e.down, 64, i))

    padded = replace(
        layer,
        router=fill(layer.router, 4, 64),
        experts=tuple(wide(e) for e in layer.experts),
        shared=wide(layer.shared),
        shared_gate=fill(layer.shared_gate, 64),
    )
    x = random_tokens(rng, 8, 40)
    a = golden.run(quantise(layer, "int8", CONFIG), x, CONFIG)
    b = golden.run(quantise(padded, "int8", CONFIG), fill(x, 8, 64), CONFIG)
    assert np.array_equal(bits(a.y), bits(b.y[:, :40].copy())) and (b.y[:, 40:] == 0).all()
    assert np.array_equal(a.weights, b.weights)


@pytest.mark.parametrize(("low", "high"), [(-40, -52), (30, 34)], ids=["tiny", "huge"])
def test_powers_of_two(low: int, high: int) -> None:
    """Where every sigmoid is one half (tiny x) or 0 or 1 (huge x), y goes with x squared, bit for bit."""
    rng = np.random.default_rng(16)
    layer = quantise(random_layer(rng, shared=32, gated=True), "int8", CONFIG)
    x = rng.standard_normal((6, 64)).astype(np.float32)
    a = golden.run(layer, np.ldexp(x, low), CONFIG)
    b = golden.run(layer, np.ldexp(x, high), CONFIG)
    assert np.array_equal(a.weights, b.weights) and np.array_equal(a.experts, b.experts)
    assert np.array_equal(bits(np.ldexp(a.y, 2 * (high - low))), bits(b.y))
    assert (a.y != 0).all()


def test_stats() -> None:
    rng = np.random.default_rng(17)
    layer = random_layer(rng, hidden=40, width=33, experts=4, top_k=2, shared=20, gated=True)
    stats = golden.run(quantise(layer, "int8", CONFIG), random_tokens(rng, 3, 40), CONFIG).stats
    router = 5 * 2 * 4 * 2  # rows, blocks, planes, byte sets
    expert = (66 * 2 + 40 * 2) * 2
    shared = (40 * 2 + 40 * 1) * 2
    assert stats == golden.Stats(
        tokens=3, experts_used=6, nibble_macs=3 * 32 * (router + 2 * expert + shared)
    )


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 64)), "float64"),
        (np.zeros((2, 64), np.float16), "float16"),
        (np.zeros((2, 63), np.float32), r"\[2, 63\].*64"),
        (np.zeros(64, np.float32), r"\[64\]"),
        (np.zeros((1, 2, 64), np.float32), r"\[1, 2, 64\]"),
        (np.array([[0.0] * 64, [0.0] * 63 + [np.nan]], np.float32), "token 1"),
        (np.array([[np.inf] + [0.0] * 63], np.float32), "token 0"),
        (np.array([[-np.inf] + [0.0] * 63], np.float32), "token 0"),
    ],
)
def test_bad_input(x: np.ndarray, message: str) -> None:
    layer = quantise(random_layer(np.random.default_rng(0)), "int8", CONFIG)
    with pytest.raises(ExpertileError, match=message):
        golden.run(layer, x, CONFIG)
