"""The golden model bit for bit against exact fractions, and its sums against Python's integers."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import exact_moe
import numpy as np
import pytest
from random_layers import RULES, random_gate, random_layer, random_side, random_tokens

from sw_model import golden
from sw_model.combine import Combine
from sw_model.config import HardwareConfig
from sw_model.formats import (
    BLOCK,
    EXPERT_FORMATS,
    FP8,
    INT4,
    INT8,
    INT16,
    ROUTER_FORMAT,
    TOP_MIN,
    QuantisedMatrix,
    QuantisedVectors,
    Scaled,
    WeightFormat,
)
from sw_model.gate import SideBand
from sw_model.golden import ALPHA, gemv
from sw_model.moe import Activation
from sw_model.quantised import ExpertFormats, QuantisedLayer, quantise

CONFIG = HardwareConfig(
    name="golden", tiles=2, words=1 << 16, scales=1 << 16, max_hidden=128, max_intermediate=128,
    max_experts=8, max_top_k=8,
)  # fmt: skip

SHAPES: list[dict[str, Any]] = [
    {},
    {"hidden": 40, "width": 33, "shared": 20, "gated": True},
    {"hidden": 33, "width": 70, "renormalise": False},
    {"hidden": 2, "width": 1, "experts": 3, "shared": 1},
    {"hidden": 96, "width": 24, "shared": 64, "renormalise": False, "top_k": 1},
    {"experts": 5, "top_k": 5, "shared": 32},
    {"experts": 1, "top_k": 1},
]


def bits(y: np.ndarray) -> np.ndarray:
    assert y.dtype == np.float32
    return y.view(np.uint32)


def check_exact(
    layer: QuantisedLayer,
    x: np.ndarray,
    config: HardwareConfig,
    side: SideBand | None = None,
    resident: np.ndarray | None = None,
) -> None:
    result = golden.run(layer, x, config, side, resident)
    for t, want in enumerate(exact_moe.run(layer, x, config, side, resident)):
        assert result.experts[t].tolist() == want.experts, t
        assert result.weights[t].tolist() == want.weights, t
        if result.decisions is not None:
            assert result.decisions.removed[t].tolist() == want.removed, t
            assert result.decisions.kept[t].tolist() == [not r for r in want.removed], t
        assert bits(result.y)[t].tolist() == want.y, t


@pytest.mark.parametrize("fmt", EXPERT_FORMATS)
@pytest.mark.parametrize("temper", ["tame", "wild"])
@pytest.mark.parametrize(
    "shape", SHAPES, ids=lambda s: "-".join(f"{k}{v:d}" for k, v in s.items()) or "plain"
)
def test_equals_exact_arithmetic(shape: dict[str, Any], temper: str, fmt: str) -> None:
    rng = np.random.default_rng(len(shape))
    layer = quantise(random_layer(rng, **shape, temper=temper), fmt, CONFIG)
    check_exact(layer, random_tokens(rng, 6, layer.hidden), CONFIG)


@pytest.mark.parametrize("fmt", EXPERT_FORMATS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_equals_exact_arithmetic(rule: str, fmt: str) -> None:
    """Ties, large logits and every special token under every family's rule."""
    rng = np.random.default_rng(20)
    plain = random_layer(rng, **{"width": 33, **RULES[rule]}, router_gain=2.0)
    check_exact(quantise(plain, fmt, CONFIG), random_tokens(rng, 6, plain.hidden), CONFIG)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("rule", RULES)
def test_the_gate_equals_exact_arithmetic(rule: str, seed: int) -> None:
    rng = np.random.default_rng(21 + seed)
    shape = {**RULES[rule], "hidden": 33, "width": 20, "top_k": 2 + seed}
    plain = random_layer(rng, **{**shape, "experts": max(4, shape.get("experts", 4))})
    gate = random_gate(rng, plain, domains=1 + 2 * seed, rows=bool(seed), density=not seed)
    layer = quantise(plain, "int8", CONFIG, gate=gate)
    x = random_tokens(rng, 14, plain.hidden)
    side = random_side(rng, len(x), len(gate.domain_bias))
    check_exact(layer, x, CONFIG, side, rng.random(plain.n_experts) < 0.6)
    check_exact(layer, x[:4], CONFIG)


@pytest.mark.parametrize("rule", ["qwen2_moe", "deepseek_v3", "gpt_oss"])
@pytest.mark.parametrize("gated", [False, True])
def test_high_nibbles_equal_exact_arithmetic(rule: str, gated: bool) -> None:
    """Of INT8 the high nibble alone, biases too; other formats, the router and the fallback whole."""
    rng = np.random.default_rng(29)
    plain = random_layer(rng, **{**RULES[rule], "width": 33})
    gate = random_gate(rng, plain) if gated else None
    names = ["int8", *EXPERT_FORMATS]
    mixed = [ExpertFormats(gate_up=names[e % 5], down="int8") for e in range(len(plain.everyone))]
    x = random_tokens(rng, 8, plain.hidden)
    side = random_side(rng, len(x), 3)
    for formats in ("int8-high", mixed):
        layer = replace(quantise(plain, formats, CONFIG, gate=gate), high_nibble=True)
        check_exact(layer, x, CONFIG, side)
        whole = golden.run(replace(layer, high_nibble=False), x, CONFIG, side)
        assert (bits(whole.y) != bits(golden.run(layer, x, CONFIG, side).y)).any()


def test_a_layer_may_mix_formats() -> None:
    rng = np.random.default_rng(22)
    plain = random_layer(rng, width=40, shared=40, gated=True, experts=5, expert_bias=True)
    names = list(EXPERT_FORMATS)
    formats = [ExpertFormats(gate_up=names[e % 4], down=names[(e + e // 4 + 1) % 4]) for e in range(6)]
    layer = quantise(plain, formats, CONFIG)
    assert [e.formats for e in layer.everyone] == formats
    check_exact(layer, random_tokens(rng, 5, plain.hidden), CONFIG)


def test_equals_exact_arithmetic_at_the_ends_of_float32() -> None:
    """Outputs that are subnormal, that overflow, and inputs at the largest and least float32."""
    rng = np.random.default_rng(2)
    layer = quantise(random_layer(rng, hidden=32, shared=32, gated=True), "int8", CONFIG)
    info = np.finfo(np.float32)
    x = rng.standard_normal((8, 32)) * 2.0 ** np.array([[-63], [-66], [-70], [-74], [62], [64], [70], [0]])
    x[6, :2] = info.max, -info.max
    x[7] = info.smallest_subnormal
    x = x.astype(np.float32)
    y = golden.run(layer, x, CONFIG).y
    assert np.isinf(y).any() and ((np.abs(y) < info.tiny) & (y != 0)).any()
    check_exact(layer, x, CONFIG)


@pytest.mark.parametrize("fmt", ["int8", "fp8"])
@pytest.mark.parametrize("spreads", [(1, 1, 1, 1, 1), (8, 16, 6, 4, 5), (12, 6, 2, 10, 2)])
def test_equals_exact_arithmetic_with_other_spreads(spreads: tuple[int, ...], fmt: str) -> None:
    names = ("weight_spread", "activation_spread", "router_spread", "down_spread", "fp8_spread")
    config = replace(CONFIG, **dict(zip(names, spreads, strict=True)))
    rng = np.random.default_rng(3)
    layer = quantise(random_layer(rng, shared=40, gated=True, temper="wild"), fmt, config)
    check_exact(layer, random_tokens(rng, 4, layer.hidden), config)


def widest_down_spread() -> int:
    """The largest that a configuration is let to have."""
    for spread in range(31, 0, -1):
        try:
            return replace(CONFIG, down_spread=spread).down_spread
        except ValueError:
            pass
    raise AssertionError


@pytest.mark.parametrize("down_spread", [12, widest_down_spread()])
@pytest.mark.parametrize("fmt", ["int8", "fp8"])
def test_every_configuration_that_is_accepted_is_exact(fmt: str, down_spread: int) -> None:
    """Rows of the down projections as far apart as the configuration lets them, at the largest weights."""
    config = replace(CONFIG, down_spread=down_spread)
    rng = np.random.default_rng(4)
    layer = random_layer(rng, hidden=8, width=64, experts=8, top_k=8, shared=32, scale=63.9)
    for e in layer.everyone:
        e.down[0] = np.abs(e.down[0]) * 2.0 ** (down_spread + 2)
    check_exact(quantise(layer, fmt, config), random_tokens(rng, 9, layer.hidden), config)


def test_a_configuration_with_too_wide_a_combine_is_refused() -> None:
    with pytest.raises(ValueError, match="accumulators exceed"):
        replace(CONFIG, down_spread=widest_down_spread() + 1)


def few_bits(rng: np.random.Generator, n: int) -> np.ndarray:
    """Magnitudes of 24 bits with 13 that count, whose products are often ties; some full ones."""
    mag = rng.integers(1 << 12, 1 << 13, n) << 11
    mag[::3] = rng.integers(1 << 23, 1 << 24, len(mag[::3]))
    mag[1::3] |= rng.integers(0, 2, len(mag[1::3]))
    mag[::50] = 0
    return mag


@pytest.mark.parametrize("activation", Activation, ids=lambda a: a.value)
def test_activation(activation: Activation) -> None:
    """h of gate and up in fractions, each product rounded to 24 bits; the clamped one about its limit."""
    rng = np.random.default_rng(5)
    n, limit = 3000, 7.0
    tops = rng.integers(-14, 5, n), rng.integers(-200, 200, n)
    gate, up = (Scaled(sign=rng.random(n) < 0.5, top=t, mag=few_bits(rng, n)) for t in tops)
    if activation is Activation.CLAMPED:
        up.top[:2000] = rng.integers(-26, 5, 2000)
        for a in (gate, up):  # at the limit, and one LSB on either side of it
            a.top[100:160], a.mag[100:160] = 2, (7 << 21) + rng.integers(-1, 2, 60)
    for a in (gate, up):
        a.top[a.mag == 0] = TOP_MIN
    h = golden.activate(gate, up, activation, limit)
    ties = 0
    for i in range(n):
        g, u = (exact_moe.value(v.sign[i], v.top[i], v.mag[i]) for v in (gate, up))
        ties += int(gate.mag[i]) * int(up.mag[i]) % (1 << 23) == 1 << 22
        silu = activation is Activation.SILU
        want = exact_moe.swiglu(g, u) if silu else exact_moe.clamped(g, u, Fraction(limit))
        assert exact_moe.value(h.sign[i], h.top[i], h.mag[i]) == want
        assert (h.top[i] == TOP_MIN) == (h.mag[i] == 0)
    assert ties > 20


@pytest.mark.parametrize("activation", Activation, ids=lambda a: a.value)
def test_sigmoid(activation: Activation) -> None:
    """The argument is truncated to Q4.16, never rounded, and saturates at 16."""
    alpha = ALPHA[activation]
    mags = np.array([1 << 23, (1 << 24) - 1, (1 << 23) + 1, (1 << 24) - (1 << 4), (1 << 24) - (1 << 8)])
    top = np.repeat(np.arange(-20, 7), len(mags) * 2)
    mag = np.tile(np.repeat(mags, 2), 27)
    sign = np.arange(len(mag)) % 2 == 1
    got = golden.sigmoid(Scaled(sign=sign, top=top, mag=mag), alpha).tolist()
    exact = Fraction(alpha, 1 << 16)
    assert got == [exact_moe.sigmoid(exact_moe.value(*v), exact) for v in zip(sign, top, mag, strict=True)]
    limit = golden.sigmoid(Scaled(sign=np.array([True]), top=np.array([500]), mag=np.array([1 << 23])), alpha)
    assert limit[0] == exact_moe.sigmoid(Fraction(-(2**60)))


def python_sums(m: QuantisedMatrix, x: QuantisedVectors) -> list[list[int]]:
    out = []
    for t in range(len(x.codes)):
        out.append([])
        for r in range(m.rows):
            out[-1].append(0)
            for b in range(m.blocks):
                block = sum(int(c) * int(a) for c, a in zip(m.codes[r, b], x.codes[t, b], strict=True))
                out[-1][r] += block * int(m.mant[r, b]) << int(m.shift[r, b] + x.shift[t, b])
    return out


def operands(
    rng: np.random.Generator, code: int, act: int, shift: int, act_shift: int, blocks: int, worst: bool
) -> tuple[QuantisedMatrix, QuantisedVectors]:
    """Two rows and two tokens of opposite sign at the worst, or random ones below it."""
    fmt = next(f for f in (INT4, INT8, INT16, FP8) if f.max_magnitude >= code)
    shape, ones = (2, blocks, BLOCK), np.ones((2, blocks), np.int64)
    sign = np.array([1, -1])[:, None, None]
    codes = sign * code * np.ones(shape, np.int32) if worst else rng.integers(-code, code + 1, shape)
    acts = sign * act * np.ones(shape, np.int32) if worst else rng.integers(-act, act + 1, shape)
    mant, up, act_up = (
        (255 * ones, shift * ones, act_shift * ones)
        if worst
        else (
            rng.integers(128, 256, ones.shape),
            rng.integers(0, shift + 1, ones.shape),
            rng.integers(0, act_shift + 1, ones.shape),
        )
    )
    zero = np.zeros(2, np.int64)
    matrix = QuantisedMatrix(
        fmt=fmt, codes=codes.astype(np.int32), mant=mant, shift=up, row_exp=zero, columns=blocks * BLOCK
    )
    return matrix, QuantisedVectors(codes=acts.astype(np.int32), shift=act_up, base=zero)


@pytest.mark.parametrize("worst", [False, True], ids=["random", "worst"])
@pytest.mark.parametrize("blocks", [1, 3, 4, 8, 64])
@pytest.mark.parametrize(
    ("code", "act", "shift", "act_shift"),
    [
        (7, 127, 8, 10),
        (127, 127, 8, 10),
        (448 << 9, 127, 4, 10),
        (32767, 1 << 14, 4, 4),
        (32767, 1 << 14, 0, 0),
        (127, 127, 12, 13),
    ],
)
def test_gemv_is_exact(code: int, act: int, shift: int, act_shift: int, blocks: int, worst: bool) -> None:
    """On either side of the border between float64 and int64 products."""
    rng = np.random.default_rng(blocks)
    m, x = operands(rng, code, act, shift, act_shift, blocks, worst)
    assert gemv(m, x, act).tolist() == python_sums(m, x)
    # The order of the blocks is nobody's business.
    order = rng.permutation(blocks)
    m2 = replace(m, codes=m.codes[:, order], mant=m.mant[:, order], shift=m.shift[:, order])
    x2 = replace(x, codes=x.codes[:, order], shift=x.shift[:, order])
    assert np.array_equal(gemv(m2, x2, act), gemv(m, x, act))


@pytest.mark.parametrize("blocks", [4, 8, 16, 64])
def test_gemv_is_exact_to_the_last_bit(blocks: int) -> None:
    """Sums of 52 to 57 bits whose last bit is odd: float64 may serve below 2**53 and not beyond."""
    rng = np.random.default_rng(blocks)
    m, x = operands(rng, 32767, (1 << 14) - 1, 4, 4, blocks, worst=True)
    m.codes[:] -= 2 * np.sign(m.codes) * rng.integers(0, 3, m.codes.shape)
    x.codes[:] -= 2 * np.sign(x.codes) * rng.integers(0, 3, x.codes.shape)
    m.shift[:, -1] = x.shift[:, -1] = 0
    m.codes[:, -1, 1:] = 0
    sums = python_sums(m, x)
    assert all(s % 2 for row in sums for s in row)
    assert gemv(m, x, 1 << 14).tolist() == sums


def worst_row(config: HardwareConfig, fmt: WeightFormat) -> int:
    """What the largest operands of a whole row in ``fmt`` add up to."""
    act, act_spread = (
        (1 << 14, config.router_spread) if fmt is ROUTER_FORMAT else (127, config.activation_spread)
    )
    rng = np.random.default_rng(0)
    m, x = operands(
        rng, fmt.max_magnitude, act, config.spread(fmt), act_spread, config.max_blocks, worst=True
    )
    sums = gemv(m, x, act)
    assert sums.tolist() == python_sums(m, x)
    return int(np.abs(sums).max())


@pytest.mark.parametrize(
    ("spreads", "binding"),
    [({}, "fp8"), ({"fp8_spread": 1, "weight_spread": 14}, "int8"), ({"router_spread": 8}, "int16")],
)
def test_bounds(spreads: dict[str, int], binding: str) -> None:
    """The worst row of the format that defines ``acc_bound`` reaches it, and no other exceeds it."""
    config = replace(CONFIG, **spreads, max_hidden=256)
    worst = {fmt.name: worst_row(config, fmt) for fmt in (*EXPERT_FORMATS.values(), ROUTER_FORMAT)}
    assert max(worst, key=worst.__getitem__) == binding
    assert config.acc_bound == worst[binding]
    assert config.acc_bound.bit_length() == config.acc_bits - 1
    experts = max(worst[name] for name in EXPERT_FORMATS)
    bound = experts * (config.max_top_k + 1) * ((1 << 23) - 1) << config.down_spread
    assert bound < 1 << (config.combine_bits - 1) <= 2 * bound


def test_the_largest_rows_combine_exactly() -> None:
    """Operands that reach the bound, through the golden model's own sums and combine."""
    config = CONFIG
    assert worst_row(config, FP8) == config.acc_bound
    acc = np.array([[config.acc_bound, -config.acc_bound]])
    total = Combine(1, 2)  # the widest sum it is let to take
    weight, shift = np.array([(1 << 23) - 1]), np.full(2, config.down_spread)
    for _ in range(config.max_slots):
        total.add(np.array([0]), acc, weight, shift)
    y = total.result(np.array([[-60]]))
    exact = config.acc_bound * ((1 << 23) - 1) * config.max_slots << config.down_spread
    want = np.float32(float(Fraction(exact, 1 << 60)))
    assert y.tolist() == [[want, -want]]
