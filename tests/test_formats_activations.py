"""Activation quantisers against float64 and fractions; exhaustive where 16 bits of input allow it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from test_formats import finite_bfloat16, finite_bits, float32_of, power, prove

from sw_model import formats
from sw_model.formats import ACT8_MAX, BLOCK, Scaled


def blocks_of(x: np.ndarray) -> tuple[Scaled, np.ndarray]:
    """Tokens [T, n] as unpacked blocks, and their largest exponent."""
    s = formats.unpack_float32(x)
    parts = {n: formats.pad_blocks(getattr(s, n), f) for n, f in (("sign", 0), ("top", -126), ("mag", 0))}
    b = Scaled(**{**parts, "sign": parts["sign"].astype(bool)})
    return b, b.top.max(axis=(1, 2))


def oracle(x: np.ndarray, spread: int, fraction: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes [T, blocks, BLOCK] and block exponents X [T, blocks], in float64."""
    v = formats.pad_blocks(x.astype(np.float64))
    top = np.frexp(np.abs(v).max(axis=2))[1] - 1
    top = np.where(np.abs(v).max(axis=2) == 0, -126, np.maximum(top, -126))
    top = np.maximum(top, top.max(axis=1, keepdims=True) - spread)
    return np.clip(np.rint(np.ldexp(v, fraction - top[:, :, None])), -most, most), top


def check_act(x: np.ndarray, spread: int) -> None:
    for quantise, fraction, most in (
        (formats.quantise_act8, 6, ACT8_MAX),
        (formats.quantise_act16, 13, 1 << 14),
    ):
        b, token_top = blocks_of(x)
        q = quantise(b, token_top, spread=spread)
        codes, top = oracle(x, spread, fraction, most)
        assert np.array_equal(q.codes, codes)
        assert np.array_equal(q.shift + q.base[:, None], top - fraction)
        assert ((q.shift >= 0) & (q.shift <= spread)).all()
        assert (q.shift.max(axis=1) == spread).all()
        value = np.ldexp(codes, (top - fraction)[:, :, None]).reshape(len(x), -1)
        assert np.array_equal(q.to_float(), value)


def test_activations_every_bfloat16_alone() -> None:
    """All finite bfloat16, ties of INT8 among them, each as a token of one element."""
    check_act(finite_bfloat16()[:, None], 10)


def test_activations_every_bfloat16_beside_one() -> None:
    """Under the exponent of another element of its block, and of another block."""
    x = finite_bfloat16()
    x = x[np.abs(x) < 2][::3, None]
    one = np.ones_like(x)
    check_act(np.concatenate([x, one], axis=1), 10)
    check_act(
        np.pad(np.concatenate([x, one], axis=1), [(0, 0), (0, 31)])[:, [*range(0, 1), *range(2, 33), 1]], 4
    )


def test_activations_every_15_bit_mantissa() -> None:
    """Every mantissa down to half an LSB of the router's 16 bits: all ties, and the carry into 2**14."""
    x = (1 + np.arange(1 << 14) / (1 << 14)).astype(np.float32)[:, None]
    check_act(np.concatenate([x, -x], axis=1), 4)
    b, top = blocks_of(x)
    assert formats.quantise_act16(b, top, spread=4).codes.max() == 1 << 14


def test_int8_saturates_at_127() -> None:
    b, top = blocks_of(
        np.array([[1.9999, -1.9999, 127 / 64, 127.49 / 64, 126.5 / 64, 125.5 / 64]], np.float32)
    )
    codes = formats.quantise_act8(b, top, spread=10).codes[0, 0, :6]
    assert codes.tolist() == [127, -127, 127, 127, 126, 126]


def test_activation_spread_clamps() -> None:
    x = np.zeros((1, 96), np.float32)
    x[0, 0], x[0, 32], x[0, 64] = 1.0, 2.0**-10, 1.5 * 2.0**-11
    b, top = blocks_of(x)
    q = formats.quantise_act8(b, top, spread=10)
    assert q.shift[0].tolist() == [10, 0, 0]
    assert q.codes[0, :, 0].tolist() == [64, 64, 48]


def test_zero_and_subnormal_tokens() -> None:
    tiny = np.finfo(np.float32).smallest_subnormal
    x = np.zeros((4, 40), np.float32)
    x[1, 3], x[2], x[3, 39] = tiny, np.float32(2.0**-127), np.float32(2.0**-126) - tiny
    x[0, 0] = -0.0
    check_act(x, 10)


@prove
@given(st.lists(finite_bits, min_size=1, max_size=70), st.integers(1, 16))
def test_any_token(bits: list[int], spread: int) -> None:
    check_act(float32_of(bits)[None], spread)


@prove
@given(st.lists(st.integers(-600, 500), min_size=32, max_size=64), st.data())
def test_results_beyond_float32(tops: list[int], data: st.DataObject) -> None:
    """Numbers of SwiGLU (any exponent, zeros at TOP_MIN) on a token's common exponent."""
    mags = data.draw(
        st.lists(st.integers(1 << 23, (1 << 24) - 1) | st.just(0), min_size=len(tops), max_size=len(tops))
    )
    tops = [t if m else formats.TOP_MIN for t, m in zip(tops, mags, strict=True)]
    common = max(*tops, data.draw(st.integers(-600, 500)))
    x = Scaled(
        sign=formats.pad_blocks(np.arange(len(tops))[None] % 3 == 0),
        top=formats.pad_blocks(np.array([tops]), formats.TOP_MIN),
        mag=formats.pad_blocks(np.array([mags])),
    )
    q = formats.quantise_act8(x, np.array([common]), spread=10)
    for i, (top, mag) in enumerate(zip(tops, mags, strict=True)):
        block = max(*x.top[0, i // BLOCK], common - 10)
        code = min(127, round(mag * power(top - 23) / power(block - 6)))
        assert q.codes[0].flat[i] == (-code if i % 3 == 0 else code)
        assert q.shift[0, i // BLOCK] + q.base[0] == block - 6
