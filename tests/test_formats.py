"""Number formats against oracles that share nothing with them: exact fractions, float64, ml_dtypes."""

from bisect import bisect_left
from fractions import Fraction
from functools import cache

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sw_model import formats
from sw_model.formats import (
    BLOCK,
    EXPERT_FORMATS,
    INT4,
    INT8,
    ROW_EXP_BIAS,
    WEIGHT_FORMATS,
    QuantisedMatrix,
    WeightFormat,
    quantise_weights,
)

prove = settings(derandomize=True, deadline=None, database=None, max_examples=200)

SPREAD = 8
LARGEST = Fraction(2**24 - 1) * 2**104
finite_bits = st.integers(0, 2**32 - 1).filter(lambda b: (b >> 23) & 0xFF != 0xFF)


def float32_of(bits: list[int] | np.ndarray) -> np.ndarray:
    return np.asarray(bits, dtype=np.uint32).view(np.float32)


def finite_bfloat16() -> np.ndarray:
    """Every finite bfloat16, as float32."""
    x = float32_of(np.arange(1 << 16, dtype=np.uint32) << 16)
    return x[np.isfinite(x)]


def power(exponent: int) -> Fraction:
    return Fraction(2) ** int(exponent)


def log2_floor(x: Fraction) -> int:
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if power(e) <= x else e - 1


# --- integers ---------------------------------------------------------------------------------------------


def test_round_shift_small_values_exhaustively() -> None:
    value = np.arange(-700, 701)[:, None]
    shift = np.arange(12)
    expected = [[round(Fraction(int(v), 1 << int(s))) for s in shift] for v in value[:, 0]]
    assert np.array_equal(formats.round_shift(value, shift), expected)


@prove
@given(st.integers(-(2**62), 2**62), st.integers(0, 62))
def test_round_shift(value: int, shift: int) -> None:
    assert formats.round_shift(np.array(value), shift) == round(Fraction(value, 1 << shift))
    tie = (value >> shift << shift) + (1 << shift >> 1)
    if abs(tie) < 2**63:
        assert formats.round_shift(np.array(tie), shift) == round(Fraction(tie, 1 << shift))


def test_bit_length() -> None:
    values = [0, *(v for k in range(63) for v in ((1 << k) - 1, 1 << k, (1 << k) + 1)), (1 << 63) - 1]
    assert formats.bit_length(np.array(values)).tolist() == [v.bit_length() for v in values]


@prove
@given(st.integers(-(2**62), 2**62), st.integers(-300, 300))
def test_normalise(value: int, exponent: int) -> None:
    n = formats.normalise(np.array([value]), exponent)
    sign, top, mag = bool(n.sign[0]), int(n.top[0]), int(n.mag[0])
    if value == 0:
        assert (sign, top, mag) == (False, formats.TOP_MIN, 0)
        return
    exact = abs(value) * power(exponent)
    lsb = power(log2_floor(exact) - 23)
    assert sign == (value < 0)
    assert 1 << 23 <= mag < 1 << 24
    assert mag * power(top - 23) == round(exact / lsb) * lsb


def test_normalise_rounds_as_float32_does() -> None:
    rng = np.random.default_rng(1)
    value = rng.integers(-(2**62), 2**62, 4000) >> rng.integers(0, 62, 4000)
    near = (rng.integers(2**23, 2**24, 2000) * 2 + 1 << 20) + rng.integers(-1, 2, 2000)  # ties, and beside
    value = np.concatenate([value, near, [2**24 - 1, 2**25 - 1, 2**25 - 2, 2**62 - 1, -1, 1]])
    n = formats.normalise(value, 0)
    assert np.array_equal(n.to_float(), value.astype(np.float32).astype(np.float64))


# --- float32 in ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low", [0, 1, 0x8000, 0xFFFF])
def test_unpack_float32_every_sign_and_exponent(low: int) -> None:
    x = float32_of(np.arange(1 << 16, dtype=np.uint32) << 16 | low)
    x = x[np.isfinite(x)]
    s = formats.unpack_float32(x)
    assert np.array_equal(s.to_float(), x.astype(np.float64))
    assert np.array_equal(s.sign, np.signbit(x))
    assert (s.top >= -126).all() and (s.top <= 127).all()
    normal = np.abs(x) >= np.finfo(np.float32).tiny
    assert np.array_equal(s.mag >> 23 == 1, normal)
    assert (s.top[~normal] == -126).all()


def test_pad_blocks() -> None:
    a = np.arange(2 * 33).reshape(2, 33)
    padded = formats.pad_blocks(a, -7)
    assert padded.shape == (2, 2, BLOCK)
    assert np.array_equal(padded.reshape(2, -1)[:, :33], a)
    assert (padded.reshape(2, -1)[:, 33:] == -7).all()
    assert formats.pad_blocks(np.zeros((3, 64))).shape == (3, 2, BLOCK)


# --- weights ------------------------------------------------------------------------------------------------


def check_matrix(w: np.ndarray, m: QuantisedMatrix, spread: int, floor: int = 1 - ROW_EXP_BIAS) -> None:
    """Every property of :func:`quantise_weights`, each scale and code worked out anew in fractions."""
    assert (m.rows, m.columns, m.blocks) == (*w.shape, -(-w.shape[1] // BLOCK))
    assert ((m.mant >= 128) & (m.mant <= 255)).all()
    assert ((m.shift >= 0) & (m.shift <= spread)).all()
    assert (m.shift.min(axis=1) == 0).all()
    assert ((m.row_exp + ROW_EXP_BIAS >= 1) & (m.row_exp + m.shift.max(axis=1) + ROW_EXP_BIAS <= 254)).all()
    assert np.abs(m.codes).max(initial=0) <= m.fmt.max_magnitude
    padded = formats.pad_blocks(w.astype(np.float64))
    for r in range(m.rows):
        exp = m.shift[r] + m.row_exp[r]
        ideals = [Fraction(float(np.abs(b).max())) / m.fmt.max_magnitude for b in padded[r]]
        highest = max((_bfloat16_up(i)[1] for i in ideals if i), default=1 - ROW_EXP_BIAS)
        least = max(floor, highest - spread)
        for b, ideal in enumerate(ideals):
            scale = int(m.mant[r, b]) * power(exp[b])
            stored = ml_dtypes.bfloat16(float(scale))
            assert Fraction(float(stored)) == scale
            assert scale >= ideal
            mant, e = _bfloat16_up(ideal) if ideal else (128, least)
            assert (int(m.mant[r, b]), int(exp[b])) == ((mant, e) if e >= least else (128, least))
            codes = [nearest(m.fmt, Fraction(float(v)) / scale) for v in padded[r, b]]
            assert m.codes[r, b].tolist() == codes
    assert (m.codes.reshape(m.rows, -1)[:, m.columns :] == 0).all()
    error = np.abs(m.to_float() - w)
    half = np.repeat(np.ldexp(m.mant / 2, m.shift + m.row_exp[:, None]), BLOCK, axis=1)[:, : m.columns]
    if m.fmt.mantissa_bits is None:
        assert (error <= half).all()
    else:  # half an LSB, or of the element's own binade
        assert (error <= np.maximum(half, np.abs(w) * 2.0 ** -(m.fmt.mantissa_bits + 1))).all()


@cache
def magnitudes(fmt: WeightFormat) -> list[int]:
    """All that the format has, rising, in its units; the index of each is its code."""
    if fmt.mantissa_bits is None:
        return list(range(fmt.max_magnitude + 1))
    bits = fmt.bits - 1
    codes = np.arange(1 << bits, dtype=np.uint8)
    kind, unit = {"fp8": (ml_dtypes.float8_e4m3fn, 2**9), "mxfp4": (ml_dtypes.float4_e2m1fn, 2)}[fmt.name]
    values = codes.view(kind).astype(np.float64) * unit
    return [int(v) for v in values if np.isfinite(v)]


def nearest(fmt: WeightFormat, x: Fraction) -> int:
    """The nearest magnitude with the sign of ``x``, ties to the even code."""
    if fmt.mantissa_bits is None:
        return max(-fmt.max_magnitude, min(fmt.max_magnitude, round(x)))
    grid = magnitudes(fmt)
    above = min(bisect_left(grid, abs(x)), len(grid) - 1)
    best = min(range(max(above - 1, 0), above + 1), key=lambda i: (abs(abs(x) - grid[i]), i % 2))
    return -grid[best] if x < 0 else grid[best]


def _bfloat16_up(x: Fraction) -> tuple[int, int]:
    """The smallest mantissa of 8 bits and exponent with mant * 2**exp >= x > 0."""
    e = log2_floor(x) - 7
    mant = -((-x / power(e)).__floor__())
    return (128, e + 1) if mant == 256 else (mant, e)


@pytest.mark.parametrize("fmt", WEIGHT_FORMATS.values(), ids=lambda f: f.name)
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 100])
def test_quantise_weights(fmt: WeightFormat, columns: int) -> None:
    rng = np.random.default_rng(columns)
    w = rng.standard_normal((8, columns)) * 2.0 ** rng.integers(-20, 20, (8, 1))
    w *= 2.0 ** np.repeat(rng.integers(-12, 3, (8, -(-columns // BLOCK))), BLOCK, axis=1)[:, :columns]
    w[2] = 0
    w[3, :BLOCK] = 0
    w = w.astype(np.float32)
    check_matrix(w, quantise_weights(w, fmt, spread=SPREAD), SPREAD)


@pytest.mark.parametrize("fmt", EXPERT_FORMATS.values(), ids=lambda f: f.name)
def test_quantise_weights_extremes(fmt: WeightFormat) -> None:
    largest, tiny = np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal
    w = np.zeros((7, 64), np.float32)
    w[0, 0], w[0, 1] = largest, -largest
    w[1, 5] = tiny
    w[2, 5], w[2, 40] = tiny, largest
    w[3] = np.float32(2.0**-126) * np.linspace(-1, 1, 64, dtype=np.float32)
    w[4] = 1
    w[5] = np.float32(fmt.max_magnitude)  # scale exactly 1
    w[6, 0], w[6, 1:4] = fmt.max_magnitude, [0.5, 1.5, 2.5]  # ties
    m = quantise_weights(w, fmt, spread=SPREAD)
    check_matrix(w, m, SPREAD)
    assert m.codes[6, 0, 1:4].tolist() == [0, 2, 2]
    assert (m.codes[5] == fmt.max_magnitude).all()


def test_a_scale_that_rounds_up_to_the_next_octave() -> None:
    w = np.array([[np.nextafter(np.float32(INT8.max_magnitude * 2), np.float32(0))]], np.float32)
    m = quantise_weights(w, INT8, spread=SPREAD)
    assert m.mant[0, 0] == 128 and m.codes[0, 0, 0] == INT8.max_magnitude
    check_matrix(w, m, SPREAD)


def test_spread_lifts_small_blocks_only() -> None:
    w = np.concatenate([np.full(32, 2.0**e) for e in (0, -7, -8, -9, -30)]).astype(np.float32)[None]
    m = quantise_weights(w, INT4, spread=SPREAD)
    check_matrix(w, m, SPREAD)
    assert m.shift[0].tolist() == [8, 1, 0, 0, 0]
    assert m.mant[0, 2] == m.mant[0, 0] and m.mant[0, 3] == 128


def test_floor_lifts_rows() -> None:
    rng = np.random.default_rng(3)
    w = (rng.standard_normal((6, 64)) * 2.0 ** np.array([[0], [-4], [-8], [-16], [-30], [0]])).astype(
        np.float32
    )
    w[5] = 0
    free = quantise_weights(w, INT8, spread=SPREAD)
    floor = int(free.row_exp.max()) - 6
    m = quantise_weights(w, INT8, spread=SPREAD, floor=floor)
    check_matrix(w, m, SPREAD, floor)
    assert (m.row_exp >= floor).all() and m.row_exp[5] == floor
    assert np.array_equal(m.codes[0], free.codes[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_must_be_finite(bad: float) -> None:
    w = np.ones((3, 40), np.float32)
    w[1, 35] = bad
    with pytest.raises(ValueError, match="finite"):
        quantise_weights(w, INT8, spread=SPREAD)


def test_weights_beyond_a_bfloat16_scale() -> None:
    with pytest.raises(ValueError, match="range"):
        quantise_weights(np.array([[1e300]]), INT8, spread=SPREAD)
    top = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
    assert quantise_weights(np.array([[127 * top]]), INT8, spread=SPREAD).mant[0, 0] == 255
    with pytest.raises(ValueError, match="range"):
        quantise_weights(np.array([[127 * top * 1.001]]), INT8, spread=SPREAD)


@prove
@given(
    st.lists(finite_bits, min_size=1, max_size=70),
    st.sampled_from(list(EXPERT_FORMATS.values())),
    st.integers(1, 12),
)
def test_quantise_any_float32_row(bits: list[int], fmt: WeightFormat, spread: int) -> None:
    w = float32_of(bits)[None]
    check_matrix(w, quantise_weights(w, fmt, spread=spread), spread)


# --- float32 out --------------------------------------------------------------------------------------------


def rounded(exact: Fraction) -> np.uint32:
    """Bits of the binary32 nearest to ``exact``, ties to even, from the definition of the format."""
    sign, x = (1 << 31 if exact < 0 else 0), abs(exact)
    if x == 0:
        return np.uint32(sign)
    lsb = max(log2_floor(x) - 23, -149)
    k = round(x / power(lsb))
    if k * power(lsb) > LARGEST:
        return np.uint32(sign | 0xFF << 23)
    return np.uint32(sign | int(np.float32(float(k * power(lsb))).view(np.uint32)))


def check_pack(values: list[int], exponents: list[int]) -> None:
    mags = [abs(v) for v in values]
    bits = formats.pack_float32(
        np.array([v < 0 for v in values]),
        np.array([m >> 32 for m in mags], dtype=np.int64),
        np.array([m & 0xFFFFFFFF for m in mags], dtype=np.int64),
        np.array(exponents, dtype=np.int64),
    )
    assert bits.dtype == np.float32
    for v, e, b in zip(values, exponents, bits.view(np.uint32), strict=True):
        assert b == rounded(v * power(e)), (v, e)


@prove
@given(st.integers(-(2**94) + 1, 2**94 - 1), st.integers(-260, 130))
def test_pack_float32(value: int, exponent: int) -> None:
    check_pack([value, value >> 30, value >> 60], [exponent] * 3)


@prove
@given(st.integers(1 << 23, (1 << 24) - 1), st.integers(1, 69), st.integers(-1, 1), st.integers(-300, 60))
def test_pack_float32_ties(mant: int, below: int, beside: int, exponent: int) -> None:
    """24 bits and exactly half an LSB, and the neighbours of that, in one limb and in two."""
    check_pack([(mant << below) + (1 << below >> 1) + beside], [exponent])


def test_pack_float32_edges() -> None:
    one_ulp_below_infinity = (2**24 - 1) << 1
    cases = [
        (0, 0), (0, 500), (1, -149), (1, -150), (3, -150), (1, -151), (3, -151), (5, -151), (1, -300),
        (-1, -150), (1, 127), (1, 128), (-1, 128), (1, 400), (2**24 - 1, 104),
        (one_ulp_below_infinity, 103),
        (one_ulp_below_infinity + 1, 103), (one_ulp_below_infinity + 1 << 40, 63),
        ((one_ulp_below_infinity + 1 << 40) - 1, 63),
        (2**23 - 1, -149), (2**24 - 1, -150), (2**24 - 3, -150), (2**93, -93), (2**94 - 1, -242),
        (2**94 - 1, -243), (2**94 - 1, -244), (2**94 - 1, -300), (2**32, -32), (2**32 - 1, -32),
        (2**62, -62), (2**62 + 1, -62), (2**63 - 1, -62), (2**24 + 1, 0), (2**24 + 3, 0),
        (2**56 + 2**32 + 1, 0),
    ]  # fmt: skip
    check_pack(*(list(c) for c in zip(*cases, strict=True)))
    check_pack(*(list(c) for c in zip(*((-v, e) for v, e in cases if v), strict=True)))


def test_pack_float32_against_numpy() -> None:
    rng = np.random.default_rng(4)
    value = rng.integers(0, 2**53, 20000) >> rng.integers(0, 53, 20000)
    exponent = rng.integers(-200, 120, 20000)
    sign = rng.random(20000) < 0.5
    got = formats.pack_float32(sign, value >> 32, value & 0xFFFFFFFF, exponent)
    with np.errstate(over="ignore"):
        expected = (np.where(sign, -1.0, 1.0) * np.ldexp(value.astype(np.float64), exponent)).astype(
            np.float32
        )
    assert np.array_equal(got.view(np.uint32), expected.view(np.uint32))
    assert np.isinf(got).sum() > 100 and (np.abs(got) < np.finfo(np.float32).tiny).sum() > 1000
