"""The floating formats exhaustively against ml_dtypes; coded checkpoints, biases and scale searches."""

from fractions import Fraction
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from test_formats import magnitudes, nearest

from sw_model.coded import CodedMatrix, quantise_coded
from sw_model.formats import (
    BIAS_TOPS,
    BLOCK,
    EXPERT_FORMATS,
    FP8,
    INT4,
    INT8,
    INT16,
    MXFP4,
    WEIGHT_FORMATS,
    QuantisedMatrix,
    WeightFormat,
    append_bias_block,
    bias_blocks,
    quantise_act8,
    quantise_weights,
    unpack_float32,
)
from sw_model.scale_search import FRACTIONS, search_scales

FLOATS = {FP8: (ml_dtypes.float8_e4m3fn, 2.0**9), MXFP4: (ml_dtypes.float4_e2m1fn, 2.0)}
floats = pytest.mark.parametrize("fmt", FLOATS, ids=lambda f: f.name)
formats = pytest.mark.parametrize("fmt", EXPERT_FORMATS.values(), ids=lambda f: f.name)

# --- codes --------------------------------------------------------------------------------------------------


@floats
def test_every_code(fmt: WeightFormat) -> None:
    """Decoded as ml_dtypes has it, and encoded back; the largest is the format's."""
    kind, unit = FLOATS[fmt]
    codes = np.arange(len(magnitudes(fmt)))
    decoded = fmt.decode(codes)
    assert np.array_equal(decoded / unit, codes.astype(np.uint8).view(kind).astype(np.float64))
    assert np.array_equal(fmt.encode(decoded), codes)
    assert decoded.max() == fmt.max_magnitude == float(ml_dtypes.finfo(kind).max) * unit
    assert 2.0**-fmt.unit_exp == unit


@pytest.mark.parametrize("fmt", [INT4, INT8, INT16], ids=lambda f: f.name)
def test_every_integer(fmt: WeightFormat) -> None:
    codes = np.arange(fmt.max_magnitude + 1)
    assert np.array_equal(fmt.decode(codes), codes) and np.array_equal(fmt.encode(codes), codes)
    assert fmt.max_magnitude == (1 << (fmt.bits - 1)) - 1
    x, most = np.arange(-40, 41) / 4, fmt.max_magnitude
    assert np.array_equal(fmt.round(x), np.clip(np.rint(x), -most, most))


def test_codes_are_told_apart() -> None:
    assert len({f.code for f in WEIGHT_FORMATS.values()}) == len(WEIGHT_FORMATS)
    for fmt in WEIGHT_FORMATS.values():
        nibbles = -(-fmt.max_magnitude.bit_length() // 4)
        assert fmt.macs == nibbles and fmt.steps == nibbles + (fmt is FP8)
        assert fmt.words == -(-fmt.bits // 4)


@floats
@pytest.mark.parametrize("source", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_rounding_of_every_16_bit_number(fmt: WeightFormat, source: type) -> None:
    """To nearest even as ml_dtypes rounds; what lies beyond the range saturates."""
    kind, unit = FLOATS[fmt]
    bits = np.arange(1 << 16, dtype=np.uint16)
    infinite = np.array(np.inf, np.float32).astype(source).view(np.uint16)
    x = bits[(bits & infinite) != infinite].view(source).astype(np.float32)
    got = fmt.round(x.astype(np.float64) * unit)
    most = fmt.max_magnitude / unit
    want = np.clip(x, -most, most).astype(kind).astype(np.float64) * unit
    assert np.array_equal(got, want)
    assert (np.sign(got) * np.sign(x) >= 0).all()


@floats
def test_rounding_at_every_border(fmt: WeightFormat) -> None:
    """Each midpoint of two neighbours goes to the even code, and the numbers beside it to the nearer."""
    grid = magnitudes(fmt)
    for i, (a, b) in enumerate(pairwise(grid)):
        middle = (a + b) / 2
        for x in (middle, np.nextafter(middle, 0), np.nextafter(middle, np.inf), -middle):
            assert fmt.round(np.array(x)) == nearest(fmt, Fraction(float(x))), x
        assert fmt.round(np.array(middle)) == (a if i % 2 == 0 else b)


# --- coded checkpoints --------------------------------------------------------------------------------------


def random_codes(rng: np.random.Generator, fmt: WeightFormat, rows: int, columns: int) -> np.ndarray:
    codes = rng.choice(magnitudes(fmt), (rows, columns))
    return np.where(rng.random((rows, columns)) < 0.5, -codes, codes)


def restored(q: QuantisedMatrix, fmt: WeightFormat) -> np.ndarray:
    assert q.fmt is fmt
    return q.codes.reshape(q.rows, -1)[:, : q.columns]


@pytest.mark.parametrize("columns", [32, 64, 90])
def test_mxfp4_stays_bit_for_bit(columns: int) -> None:
    """Power-of-two scales within the spread: the decoded weights are equal, zeros and empty blocks too."""
    rng = np.random.default_rng(columns)
    codes = random_codes(rng, MXFP4, 40, columns)
    codes[3], codes[5, :32] = 0, 0
    blocks = -(-columns // BLOCK)
    scale = np.ldexp(1.0, rng.integers(-100, 100, (40, 1)) + rng.integers(0, 9, (40, blocks)))
    coded = CodedMatrix(fmt=MXFP4, magnitudes=codes.astype(np.int8), scale=scale)
    q, lost = quantise_coded(coded, spread=8)
    assert lost == 0
    assert np.array_equal(restored(q, MXFP4), codes)
    assert np.array_equal(q.to_float(), coded.to_float())


def test_mxfp4_beyond_the_spread() -> None:
    """A block too far below the row's largest is lifted by whole octaves; what that costs is counted."""
    codes = np.zeros((3, 64), np.int8)
    codes[:, :32], codes[:, 32:] = 12, 12
    codes[1, 32:] = 8
    scale = np.array([[1.0, 2.0**-9], [1.0, 2.0**-10], [1.0, 2.0**-8]])
    coded = CodedMatrix(fmt=MXFP4, magnitudes=codes, scale=scale)
    q, lost = quantise_coded(coded, spread=8)
    assert lost == 0 and np.array_equal(q.to_float(), coded.to_float())  # 12 -> 6 and 8 -> 2 are there
    codes[1, 40] = 1
    q, lost = quantise_coded(coded, spread=8)
    assert lost == 1
    assert np.array_equal(q.to_float()[[0, 2]], coded.to_float()[[0, 2]])


def test_fp8_keeps_its_codes() -> None:
    """Scales of any float32 are rounded to the nearest bfloat16; the codes stay."""
    rng = np.random.default_rng(4)
    codes = random_codes(rng, FP8, 64, 100)
    scale = (2.0 ** rng.uniform(-3, 0, (64, 4)) * 2.0 ** rng.integers(-40, 40, (64, 1))).astype(np.float32)
    coded = CodedMatrix(fmt=FP8, magnitudes=codes, scale=scale.astype(np.float64))
    q, lost = quantise_coded(coded, spread=4)
    assert lost == 0
    assert np.array_equal(restored(q, FP8), codes)
    kept = np.ldexp(q.mant.astype(np.float64), q.shift + q.row_exp[:, None] + 9)
    used = np.abs(np.pad(codes, [(0, 0), (0, 28)]).reshape(64, 4, 32)).max(axis=2) > 0
    want = scale.astype(ml_dtypes.bfloat16).astype(np.float64)
    assert np.array_equal(kept[used], want[used])


def test_coded_rows_under_a_floor() -> None:
    rng = np.random.default_rng(5)
    codes = random_codes(rng, MXFP4, 6, 32)
    coded = CodedMatrix(fmt=MXFP4, magnitudes=codes, scale=np.ldexp(1.0, np.arange(6) - 6)[:, None])
    free, lost = quantise_coded(coded, spread=8)
    assert lost == 0
    floor = int(free.row_exp[3])
    q, lost = quantise_coded(coded, spread=8, floor=floor)
    assert (q.row_exp >= floor).all()
    assert np.array_equal(q.to_float()[3:], coded.to_float()[3:])
    wrong = (q.to_float() != coded.to_float()).any(axis=1)
    assert 0 < lost == wrong.sum() <= 3


# --- biases -------------------------------------------------------------------------------------------------


def bias_of(m: QuantisedMatrix) -> np.ndarray:
    """What the bias block adds: its codes on the constants."""
    constants = np.zeros(BLOCK)
    constants[: len(BIAS_TOPS)] = np.ldexp(1.0, BIAS_TOPS)
    scale = np.ldexp(m.mant[:, -1].astype(np.float64), m.shift[:, -1] + m.row_exp)
    return (m.codes[:, -1] @ constants) * scale


@pytest.mark.parametrize("fmt", WEIGHT_FORMATS.values(), ids=lambda f: f.name)
def test_biases(fmt: WeightFormat) -> None:
    """To 2**-9 of themselves in every format, where they are not far smaller than the weights beside them."""
    rng = np.random.default_rng(6)
    n = 4000
    w = rng.uniform(-1, 1, (n, 32)) * 2.0 ** rng.integers(-3, 1, (n, 1))
    bias = rng.uniform(0.02, 4, n) * rng.choice([-1, 1], n)
    m = quantise_weights(w, fmt, spread=8, bias=bias)
    assert (m.blocks, m.columns) == (2, 32)
    assert np.array_equal(m.codes[:, :1], quantise_weights(w, fmt, spread=30).codes) or fmt is not INT4
    assert (np.abs(bias_of(m) - bias) <= 2.0**-9 * np.abs(bias)).all()
    assert (m.codes[:, -1, len(BIAS_TOPS) :] == 0).all()
    assert np.abs(m.codes).max() <= fmt.max_magnitude


@formats
def test_biases_of_any_size(fmt: WeightFormat) -> None:
    """A tiny bias is held to a part of the least scale that the row allows; zero stays zero."""
    w = np.ones((5, 32))
    bias = np.array([0.0, 1e-30, -1e-5, 1.0, 1e6])
    m = quantise_weights(w, fmt, spread=8, bias=bias)
    least = np.ldexp(1.0, (m.row_exp + m.shift[:, -1]) + 7)
    assert (np.abs(bias_of(m) - bias) <= np.maximum(2.0**-9 * np.abs(bias), least * 2.0**-7)).all()
    assert bias_of(m)[0] == 0
    with pytest.raises(ValueError, match="finite"):
        quantise_weights(w, fmt, spread=8, bias=np.array([0, 0, np.nan, 0, 0]))


@formats
def test_a_matrix_of_a_bias_alone(fmt: WeightFormat) -> None:
    bias = np.array([1.0, -3.7, 0.01, 0.0])
    m = quantise_weights(np.zeros((4, 0)), fmt, spread=8, bias=bias)
    assert (m.blocks, m.columns) == (1, 0)
    assert (np.abs(bias_of(m) - bias) <= 2.0**-9 * np.abs(bias)).all()


def test_the_constants_are_exact_activations() -> None:
    """1, 1/4, 1/16, 1/64 in eight bits behind tokens that are not larger than they are."""
    blocks = bias_blocks(3)
    want = np.zeros(BLOCK)
    want[:4] = [1, 1 / 4, 1 / 16, 1 / 64]
    assert np.array_equal(blocks.to_float()[:, 0], np.tile(want, (3, 1)))
    x = unpack_float32(np.full((3, 1, BLOCK), 0.3, np.float32))
    both = append_bias_block(x)
    assert both.mag.shape == (3, 2, BLOCK)
    q = quantise_act8(both, both.top.max(axis=(1, 2)), spread=10)
    assert np.array_equal(q.to_float()[:, BLOCK:], np.tile(want, (3, 1)))


# --- scale search -------------------------------------------------------------------------------------------


def loss(w: np.ndarray, fmt: WeightFormat, scales: np.ndarray, matters: np.ndarray) -> np.ndarray:
    """Of each block, in float64 from the definition."""
    columns = w.shape[1]
    scale = np.repeat(np.where(scales > 0, scales, 1), BLOCK, axis=1)[:, :columns]
    error = matters * (w - scale * fmt.round(w / scale)) ** 2
    padded = np.pad(error, [(0, 0), (0, -columns % BLOCK)])
    return padded.reshape(len(w), -1, BLOCK).sum(axis=2)


@formats
@pytest.mark.parametrize("known", [False, True])
def test_search_is_never_worse(fmt: WeightFormat, known: bool) -> None:
    """On its own objective, block by block; and it earns something on Gaussian weights in few bits."""
    rng = np.random.default_rng(7)
    w = rng.standard_normal((50, 90)) * 2.0 ** rng.integers(-9, 9, (50, 1))
    w[4], w[5, :40] = 0, 0
    matters = rng.uniform(0, 3, 90) ** 4 if known else np.ones(90)
    found = search_scales(w, fmt, matters if known else None)
    largest = np.abs(np.pad(w, [(0, 0), (0, 6)]).reshape(50, 3, BLOCK)).max(axis=2) / fmt.max_magnitude
    assert (found <= largest).all() and (found >= FRACTIONS.min() * largest).all()
    before, after = (loss(w, fmt, s, matters) for s in (largest, found))
    assert (after <= before * (1 + 1e-12)).all()
    if fmt.bits == 4:
        gain = (before / np.maximum(after, 1e-300))[before > 0]
        assert np.exp(np.log(gain).mean()) > (1.3 if known else 1.05)


@formats
def test_search_keeps_what_fits_exactly(fmt: WeightFormat) -> None:
    rng = np.random.default_rng(8)
    codes = random_codes(rng, fmt, 20, 64) if fmt in FLOATS else rng.integers(-7, 8, (20, 64))
    codes[:, [0, 32]] = fmt.max_magnitude
    scales = search_scales(codes * 0.25, fmt)
    assert (scales == 0.25).all()
