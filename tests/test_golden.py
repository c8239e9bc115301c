"""The properties that the golden model promises, and what it refuses."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from random_layers import RULES, random_gate, random_layer, random_tokens
from test_golden_exact import CONFIG, SHAPES, bits

from sw_model import golden, reference
from sw_model.errors import ExpertileError
from sw_model.formats import BLOCK, EXPERT_FORMATS
from sw_model.gate import Q_MIN
from sw_model.moe import Expert, MoELayer
from sw_model.quantised import quantise
from sw_model.result import REMOVED, Stats


def same(a: golden.Result, b: golden.Result) -> bool:
    return all(
        np.array_equal(p, q)
        for p, q in ((bits(a.y), bits(b.y)), (a.experts, b.experts), (a.weights, b.weights))
    )


# --- properties ---------------------------------------------------------------------------------------------


def permuted(layer: MoELayer, order: np.ndarray) -> MoELayer:
    return replace(layer, router=layer.router[order], experts=tuple(layer.experts[e] for e in order))


@pytest.mark.parametrize("fmt", EXPERT_FORMATS)
def test_order_of_experts_and_blocks_changes_no_bit(fmt: str) -> None:
    rng = np.random.default_rng(8)
    layer = random_layer(rng, hidden=96, width=64, experts=6, top_k=3, shared=96, gated=True, temper="wild")
    x = random_tokens(rng, 24, 96)
    x = x[np.abs(x).max(axis=1) > 0]  # a zero token is a tie, which the order decides
    x = x[np.abs(x).max(axis=1) < 2.0**13]  # and so are saturated logits
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
    layer = quantise(random_layer(rng, **shape, temper="wild"), "int8", CONFIG)
    x = random_tokens(rng, 17, layer.hidden)
    whole = golden.run(layer, x, CONFIG)
    for a, b in ((0, 1), (1, 4), (3, 17), (16, 17)):
        part = golden.run(layer, x[a:b], CONFIG)
        assert same(
            part, replace(whole, y=whole.y[a:b], experts=whole.experts[a:b], weights=whole.weights[a:b])
        )
    back = golden.run(layer, x[::-1], CONFIG)
    assert np.array_equal(bits(back.y), bits(whole.y)[::-1])


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_no_tokens(rule: str, gated: bool) -> None:
    rng = np.random.default_rng(10)
    plain = random_layer(rng, **RULES[rule])
    layer = quantise(plain, "int8", CONFIG, gate=random_gate(rng, plain) if gated else None)
    result = golden.run(layer, np.zeros((0, layer.hidden), np.float32), CONFIG)
    assert result.y.shape == (0, layer.hidden) and result.y.dtype == np.float32
    assert result.experts.shape == result.weights.shape == (0, layer.rule.top_k)
    s = result.stats
    assert s.tokens == s.experts_used == s.macs == s.nibble_passes == s.word_reads == 0
    assert not any(s.removed.values())


def test_a_gate_that_lets_all_pass_changes_no_bit() -> None:
    rng = np.random.default_rng(23)
    for rule in RULES:
        plain = random_layer(rng, **RULES[rule], router_gain=2.0)
        x = random_tokens(rng, 9, plain.hidden)
        k = plain.rule.top_k
        gate = replace(
            random_gate(rng, plain), tau=(Q_MIN,) * k, phi=Q_MIN, psi=Q_MIN, lam=0, density=0, cap=k
        )
        gated = golden.run(quantise(plain, "int8", CONFIG, gate=gate), x, CONFIG)
        free = golden.run(quantise(plain, "int8", CONFIG), x, CONFIG)
        assert gated.decisions is not None and gated.decisions.kept.all()
        assert np.array_equal(gated.experts, free.experts) and np.array_equal(gated.weights, free.weights)
        # A fallback row far below the others may move the combine's LSB, which no sum sees.
        assert np.array_equal(bits(gated.y), bits(free.y))
        assert gated.stats.experts_used == free.stats.experts_used


def test_the_empty_route() -> None:
    """The base expert alone, or the calibrated vector to 2**-9 and better; no routed expert is read."""
    rng = np.random.default_rng(24)
    for shared in (0, 32):
        plain = random_layer(rng, shared=shared)
        gate = replace(random_gate(rng, plain), cap=0)
        x = random_tokens(rng, 9, 64)
        result = golden.run(quantise(plain, "int8", CONFIG, gate=gate), x, CONFIG)
        assert result.stats.experts_used == 0 and result.stats.removed["EMPTY_TOKENS"] == len(x)
        if shared:
            nothing = tuple(replace(e, down=e.down * 0) for e in plain.experts)
            base = golden.run(quantise(replace(plain, experts=nothing), "int8", CONFIG), x, CONFIG)
            assert np.array_equal(bits(result.y), bits(base.y))
        else:
            assert (bits(result.y) == bits(result.y[:1])).all()
            error = np.abs(result.y[0] - gate.fallback)
            largest = np.abs(gate.fallback)
            assert (error <= 2.0**-9 * largest).all()


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
    free = replace(layer, rule=replace(layer.rule, renormalise=False))
    b = golden.run(quantise(free, "int4", CONFIG), x, CONFIG)
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


@pytest.mark.parametrize(
    ("fmt", "words", "passes"),
    [("int8", 2, 2), ("int8-high", 1, 1), ("int4", 1, 1), ("fp8", 2, 5), ("mxfp4", 1, 1)],
)
def test_stats(fmt: str, words: int, passes: int) -> None:
    rng = np.random.default_rng(17)
    layer = random_layer(rng, hidden=40, width=33, experts=4, top_k=2, shared=20, gated=True)
    stats = golden.run(quantise(layer, fmt, CONFIG), random_tokens(rng, 3, 40), CONFIG).stats
    router = 5 * 2  # rows, blocks
    expert = 66 * 2 + 40 * 2
    shared = 40 * 2 + 40 * 1
    blocks = 2 * expert + shared
    assert stats == Stats(
        tokens=3,
        experts_used=6,
        macs=3 * 32 * (router + blocks),
        nibble_passes=3 * (router * 4 * 2 + blocks * passes),  # four nibbles, high and low bytes
        word_reads=3 * (router * 4 * 2 + blocks * words),
        routed_reads=3 * 2 * expert * words,
        removed=dict.fromkeys((*REMOVED, "EMPTY_TOKENS"), 0),
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
