"""The golden model bit for bit against exact fractions, and its sums against Python's integers."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import exact_moe
import numpy as np
import pytest
from random_layers import random_layer, random_tokens

from sw_model import golden
from sw_model.config import HardwareConfig
from sw_model.formats import BLOCK, INT4, INT8, INT16, TOP_MIN, QuantisedMatrix, QuantisedVectors, Scaled
from sw_model.golden import gemv
from sw_model.quantised import QuantisedLayer, quantise

CONFIG = HardwareConfig(
    name="golden", tiles=2, words=1 << 16, scales=1 << 16, max_hidden=128, max_intermediate=128,
    max_experts=8, max_top_k=8,
)  # fmt: skip

WRAPS = "the low limb of the combine wraps around"

SHAPES: list[dict[str, Any]] = [
    {},
    {"hidden": 40, "width": 33, "shared": 20, "gated": True},
    {"hidden": 33, "width": 70, "renormalise": False},
    {"hidden": 1, "width": 1, "experts": 3, "shared": 1},
    {"hidden": 96, "width": 24, "shared": 64, "renormalise": False, "top_k": 1},
    {"experts": 5, "top_k": 5, "shared": 32},
    {"experts": 1, "top_k": 1},
]


def bits(y: np.ndarray) -> np.ndarray:
    assert y.dtype == np.float32
    return y.view(np.uint32)


def check_exact(layer: QuantisedLayer, x: np.ndarray, config: HardwareConfig) -> None:
    result = golden.run(layer, x, config)
    for t, want in enumerate(exact_moe.run(layer, x, config)):
        assert result.experts[t].tolist() == want.experts, t
        assert result.weights[t].tolist() == want.weights, t
        assert bits(result.y)[t].tolist() == want.y, t


@pytest.mark.parametrize("fmt", ["int8", "int4"])
@pytest.mark.parametrize("wild", [False, True], ids=["tame", "wild"])
@pytest.mark.parametrize(
    "shape", SHAPES, ids=lambda s: "-".join(f"{k}{v:d}" for k, v in s.items()) or "plain"
)
def test_equals_exact_arithmetic(shape: dict[str, Any], wild: bool, fmt: str) -> None:
    rng = np.random.default_rng(len(shape))
    layer = quantise(random_layer(rng, **shape, wild=wild), fmt, CONFIG)
    check_exact(layer, random_tokens(rng, 6, layer.hidden), CONFIG)


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


@pytest.mark.parametrize("spreads", [(1, 1, 1, 1), (8, 16, 6, 4), (12, 6, 2, 10)])
def test_equals_exact_arithmetic_with_other_spreads(spreads: tuple[int, ...]) -> None:
    names = ("weight_spread", "activation_spread", "router_spread", "down_spread")
    config = replace(CONFIG, **dict(zip(names, spreads, strict=True)))
    rng = np.random.default_rng(3)
    layer = quantise(random_layer(rng, shared=40, gated=True, wild=True), "int8", config)
    check_exact(layer, random_tokens(rng, 4, layer.hidden), config)


@pytest.mark.parametrize("down_spread", [12, pytest.param(20, marks=pytest.mark.xfail(reason=WRAPS))])
def test_every_configuration_that_is_accepted_is_exact(down_spread: int) -> None:
    """Rows of the down projections as far apart as the configuration lets them."""
    try:
        config = replace(CONFIG, down_spread=down_spread)
    except ValueError:
        return  # refused: also good
    rng = np.random.default_rng(4)
    layer = random_layer(rng, hidden=8, width=64, experts=2, shared=32)
    for e in (*layer.experts, layer.shared):
        e.down[0] = np.abs(e.down[0]) * 2.0 ** (down_spread + 2)
    check_exact(quantise(layer, "int8", config), random_tokens(rng, 9, layer.hidden), config)


def few_bits(rng: np.random.Generator, n: int) -> np.ndarray:
    """Magnitudes of 24 bits with 13 that count, whose products are often ties; some full ones."""
    mag = rng.integers(1 << 12, 1 << 13, n) << 11
    mag[::3] = rng.integers(1 << 23, 1 << 24, len(mag[::3]))
    mag[1::3] |= rng.integers(0, 2, len(mag[1::3]))
    mag[::50] = 0
    return mag


def test_swiglu() -> None:
    """h = (gate * up) * sigmoid(gate) in fractions, each product rounded to 24 bits."""
    rng = np.random.default_rng(5)
    n = 3000
    tops = rng.integers(-14, 5, n), rng.integers(-200, 200, n)
    gate, up = (Scaled(sign=rng.random(n) < 0.5, top=t, mag=few_bits(rng, n)) for t in tops)
    h = golden.swiglu(gate, up)
    ties = 0
    for i in range(n):
        g, u = (exact_moe.value(v.sign[i], v.top[i], v.mag[i]) for v in (gate, up))
        ties += int(gate.mag[i]) * int(up.mag[i]) % (1 << 23) == 1 << 22
        want = exact_moe.round24(exact_moe.round24(g * u) * Fraction(exact_moe.sigmoid(g), 1 << 16))
        assert exact_moe.value(h.sign[i], h.top[i], h.mag[i]) == want
        assert (h.top[i] == TOP_MIN) == (h.mag[i] == 0)
    assert ties > 20


def test_sigmoid() -> None:
    """The argument is truncated to Q4.12, never rounded, and saturates at 16."""
    mags = np.array([1 << 23, (1 << 24) - 1, (1 << 23) + 1, (1 << 24) - (1 << 8), (1 << 24) - (1 << 12)])
    top = np.repeat(np.arange(-16, 7), len(mags) * 2)
    mag = np.tile(np.repeat(mags, 2), 23)
    sign = np.arange(len(mag)) % 2 == 1
    got = golden.sigmoid(Scaled(sign=sign, top=top, mag=mag)).tolist()
    assert got == [exact_moe.sigmoid(exact_moe.value(*v)) for v in zip(sign, top, mag, strict=True)]


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
    fmt = next(f for f in (INT4, INT8, INT16) if f.max_magnitude >= code)
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
    [(7, 127, 8, 10), (127, 127, 8, 10), (32767, 1 << 14, 4, 4), (32767, 1 << 14, 0, 0), (127, 127, 12, 13)],
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


@pytest.mark.parametrize("router_spread", [1, 4])
def test_bounds(router_spread: int) -> None:
    """The worst expert row reaches ``acc_bound`` where that binds; the worst router row never exceeds it."""
    config = replace(CONFIG, router_spread=router_spread, max_hidden=256)
    rng = np.random.default_rng(0)
    blocks, spreads = config.max_blocks, (config.weight_spread, config.activation_spread)
    m, x = operands(rng, 127, 127, *spreads, blocks, worst=True)
    expert = int(np.abs(gemv(m, x, 127)).max())
    m, x = operands(rng, 32767, 1 << 14, router_spread, router_spread, blocks, worst=True)
    router = int(np.abs(gemv(m, x, 1 << 14)).max())
    assert max(expert, router) <= config.acc_bound < 1 << (config.acc_bits - 1)
    assert config.acc_bound < 1.01 * max(expert, router)
    if expert > router:
        assert expert == config.acc_bound
    bound = config.acc_bound * (config.max_top_k + 1) << 16 + config.down_spread
    assert bound < 1 << (config.combine_bits - 1) <= 2 * bound
