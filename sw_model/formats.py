"""Number formats: the one definition that the golden model, the compiler and the hardware share.

Weights come in blocks of ``BLOCK`` along the reduction axis, each with a positive bfloat16 scale, and a
matrix row has one exponent onto which all its block scales are aligned::

    w[r, 32 b + i]  ~=  code[r, b, i] * mant[r, b] * 2**(shift[r, b] + row_exp[r])

    code   integer, |code| <= fmt.max_magnitude      mant   128 .. 255 (bfloat16 mantissa, hidden bit in)
    shift  0 .. spread                               row_exp  bfloat16 exponent - 134

Activations follow OCP Microscaling MXINT8: blocks of 32 elements with a power-of-two (E8M0) block exponent,
rounded to nearest even. A token's block exponents are clamped to within ``spread`` octaves of its largest, so
that every product of the token lands on a fixed LSB (see :mod:`sw_model.widths`).

Source: OCP Microscaling Formats (MX) Specification 1.0; bfloat16 scales: ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

BLOCK = 32
NIBBLE = 4

# Bit layout of one scale entry (20 bits), used by the compiler and by the tiles.
MANT_BITS = 8
SHIFT_BITS = 5
ROW_EXP_BITS = 8
SCALE_BITS = (MANT_BITS - 1) + SHIFT_BITS + ROW_EXP_BITS
ROW_EXP_BIAS = 134  # bfloat16 bias 127, plus 7 because the mantissa is an integer of 8 bits

# Layout of an unpacked number ("Scaled"): value = (-1)**sign * mag * 2**(top - 23).
MAG_BITS = 24
TOP_BITS = 11
TOP_MIN = -(1 << (TOP_BITS - 1))


@dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """A weight format: sign x magnitude, the magnitude an integer in units of ``2**unit_exp``.

    Parameters
    ----------
    name : as users write it
    code : number by which contexts in the hardware name it
    words : stored nibbles of an element, that is macro words of a block
    steps : array cycles a block takes, one a nibble of the magnitude (FP8 needs one more to read its code)
    mantissa_bits : of a floating format, whose magnitudes thin out upwards; None: integer
    max_magnitude : largest magnitude, in units
    unit_exp : exponent of the unit when codes come from a checkpoint
    """

    name: str
    code: int
    words: int
    steps: int
    mantissa_bits: int | None
    max_magnitude: int
    unit_exp: int = 0

    @property
    def bits(self) -> int:
        """Stored bits of one element."""
        return NIBBLE * self.words

    @property
    def macs(self) -> int:
        """Nibble multiplications of one element."""
        return -(-self.max_magnitude.bit_length() // NIBBLE)

    def round(self, x: np.ndarray) -> np.ndarray:
        """Nearest signed magnitudes (float64, in units), ties to even, saturated."""
        step = np.float64(1.0)
        if self.mantissa_bits is not None:
            exponent = np.frexp(x)[1] - 1  # floor(log2 |x|), and -1 for 0
            step = np.ldexp(1.0, np.maximum(exponent - self.mantissa_bits, 0))
        return np.clip(np.rint(x / step) * step, -self.max_magnitude, self.max_magnitude)

    def encode(self, magnitude: np.ndarray) -> np.ndarray:
        """Stored code of non-negative magnitudes: the integer itself, or {exponent, mantissa}."""
        if self.mantissa_bits is None:
            return magnitude
        exponent = np.maximum(bit_length(magnitude) - 1 - self.mantissa_bits, 0)
        return (exponent << self.mantissa_bits) + (magnitude >> exponent)

    def decode(self, code: np.ndarray) -> np.ndarray:
        """Magnitude of stored codes without sign; the inverse of :meth:`encode`."""
        code = np.asarray(code, dtype=np.int64)
        if self.mantissa_bits is None:
            return code
        exponent, mantissa = code >> self.mantissa_bits, code & ((1 << self.mantissa_bits) - 1)
        normal = exponent > 0
        return (mantissa + (normal << self.mantissa_bits)) << np.maximum(exponent - 1, 0)


def _integer(name: str, code: int, planes: int) -> WeightFormat:
    # The top nibble also holds the sign.
    most = (1 << (NIBBLE * planes - 1)) - 1
    return WeightFormat(
        name=name, code=code, words=planes, steps=planes, mantissa_bits=None, max_magnitude=most
    )


INT4 = _integer("int4", 0, 1)
INT8 = _integer("int8", 1, 2)
INT16 = _integer("int16", 2, 4)
#: E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 (OCP MX 1.0), in units of 1/2.
MXFP4 = WeightFormat(name="mxfp4", code=3, words=1, steps=1, mantissa_bits=1, max_magnitude=12, unit_exp=-1)
#: E4M3 without infinities (OCP OFP8), largest 448, in units of 2**-9.
FP8 = WeightFormat(name="fp8", code=4, words=2, steps=6, mantissa_bits=3, max_magnitude=448 << 9, unit_exp=-9)
WEIGHT_FORMATS = {fmt.name: fmt for fmt in (INT4, INT8, INT16, MXFP4, FP8)}
EXPERT_FORMATS = {fmt.name: fmt for fmt in (INT8, INT4, FP8, MXFP4)}
ROUTER_FORMAT = INT16

#: A bias rides in a block of its own, on four constant activations: 1, 1/4, 1/16, 1/64.
BIAS_TOPS = (0, -2, -4, -6)

ACT8_BITS = 8
ACT8_MAX = 127  # |INT8 activation|
ACT8_FRACTION = 6  # MXINT8: element LSB = 2**(X - 6)
ACT16_FRACTION = 13  # router: 15-bit magnitude <= 2**14, so that both bytes are signed INT8
ACT16_MAX = 1 << 14
ACT16_LOW_BITS = 8


SCALED_PARTS = ("sign", "top", "mag")


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """Arrays of unpacked numbers: ``(-1)**sign * mag * 2**(top - 23)``; ``mag`` has 24 bits, 0 means zero."""

    sign: np.ndarray
    top: np.ndarray
    mag: np.ndarray

    def to_float(self) -> np.ndarray:
        """Exact value in float64 (exponents beyond its range become 0 or inf)."""
        return np.where(self.sign, -1.0, 1.0) * np.ldexp(
            self.mag.astype(np.float64), self.top - (MAG_BITS - 1)
        )


@dataclass(frozen=True, kw_only=True)
class QuantisedMatrix:
    """A weight matrix [rows, columns] in blocks along the columns, padded to whole blocks with zeros."""

    fmt: WeightFormat
    codes: np.ndarray  # int32 [rows, blocks, BLOCK]
    mant: np.ndarray  # int64 [rows, blocks], 128 .. 255
    shift: np.ndarray  # int64 [rows, blocks], 0 .. spread
    row_exp: np.ndarray  # int64 [rows]
    columns: int  # before padding

    @property
    def rows(self) -> int:
        return self.codes.shape[0]

    @property
    def blocks(self) -> int:
        return self.codes.shape[1]

    def high(self) -> QuantisedMatrix:
        """As it counts where of INT8 only high nibbles are read; other formats are read whole.

        A high nibble n stands for the middle of the magnitudes that have it, 16 n + 8, and 0 for 0.
        """
        if self.fmt is not INT8:
            return self
        nibble = np.abs(self.codes) >> NIBBLE
        middle = (nibble << NIBBLE) + (1 << (NIBBLE - 1))
        return replace(self, codes=np.where(nibble > 0, np.sign(self.codes) * middle, 0).astype(np.int32))

    def to_float(self) -> np.ndarray:
        """Decoded weights, float64 [rows, columns]."""
        scale = np.ldexp(self.mant.astype(np.float64), self.shift + self.row_exp[:, None])
        return (self.codes * scale[:, :, None]).reshape(self.rows, -1)[:, : self.columns]


@dataclass(frozen=True, kw_only=True)
class QuantisedVectors:
    """Quantised activations of T tokens: value = code * 2**(shift + base)."""

    codes: np.ndarray  # int32 [T, blocks, BLOCK]
    shift: np.ndarray  # int64 [T, blocks]
    base: np.ndarray  # int64 [T]

    def to_float(self) -> np.ndarray:
        """Decoded activations, float64 [T, blocks * BLOCK]."""
        scale = np.ldexp(1.0, self.shift + self.base[:, None])
        return (self.codes * scale[:, :, None]).reshape(self.codes.shape[0], -1)


def round_shift(value: np.ndarray, shift: np.ndarray | int) -> np.ndarray:
    """``value / 2**shift`` rounded to nearest even, for int64 values and shifts 0 .. 62 (elementwise)."""
    value = np.asarray(value, dtype=np.int64)
    shift = np.asarray(shift, dtype=np.int64)
    floor = value >> shift
    rest = value - (floor << shift)
    half = np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), 0)
    up = (shift > 0) & ((rest > half) | ((rest == half) & ((floor & 1) == 1)))
    return floor + up


def bit_length(value: np.ndarray) -> np.ndarray:
    """Bits needed for each non-negative int64 (0 for 0)."""
    value = np.asarray(value, dtype=np.int64)
    length = np.zeros(value.shape, dtype=np.int64)
    for step in (32, 16, 8, 4, 2, 1):
        big = (value >> step) > 0
        length += np.where(big, step, 0)
        value = np.where(big, value >> step, value)
    return length + (value > 0)


def normalise(value: np.ndarray, lsb_exp: np.ndarray | int) -> Scaled:
    """Signed int64 ``value * 2**lsb_exp`` as :class:`Scaled`, magnitude rounded to 24 bits (nearest even)."""
    value = np.asarray(value, dtype=np.int64)
    mag = np.abs(value)
    length = bit_length(mag)
    right = np.maximum(length - MAG_BITS, 0)
    mag24 = round_shift(mag, right) << np.maximum(MAG_BITS - length, 0)
    carry = mag24 >> MAG_BITS
    mag24 = mag24 >> carry
    top = np.where(mag == 0, TOP_MIN, length - 1 + carry + lsb_exp)
    return Scaled(sign=value < 0, top=top, mag=mag24)


def unpack_float32(x: np.ndarray) -> Scaled:
    """Finite float32 values as :class:`Scaled`; subnormals keep ``top = -126`` and lack the leading one."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32).astype(np.int64)
    field = (bits >> 23) & 0xFF
    mag = (bits & 0x7FFFFF) | np.where(field > 0, 1 << 23, 0)
    return Scaled(sign=(bits >> 31) == 1, top=np.maximum(field, 1) - 127, mag=mag)


def pad_blocks(a: np.ndarray, fill: int | float = 0) -> np.ndarray:
    """[..., n] as [..., blocks, BLOCK], the last block filled up."""
    blocks = -(-a.shape[-1] // BLOCK)
    pad = [(0, 0)] * (a.ndim - 1) + [(0, blocks * BLOCK - a.shape[-1])]
    return np.pad(a, pad, constant_values=fill).reshape(*a.shape[:-1], blocks, BLOCK)


def _block_scales(ideal: np.ndarray, *, spread: int, floor: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Smallest allowed bfloat16 scales >= ideal [rows, blocks], as mantissas and exponents."""
    fraction, exponent = np.frexp(ideal)  # ideal = fraction * 2**exponent, fraction in [0.5, 1)
    mant = np.ceil(fraction * 256).astype(np.int64)  # upwards, so that no element saturates
    exp = exponent.astype(np.int64) - 8
    exp, mant = np.where(mant == 256, exp + 1, exp), np.where(mant == 256, 128, mant)
    lowest = 1 - ROW_EXP_BIAS
    exp = np.where(mant == 0, lowest, exp)
    least = np.maximum(exp.max(axis=1, keepdims=True) - spread, lowest if floor is None else floor)
    mant = np.where((exp < least) | (mant == 0), 128, mant)
    exp = np.maximum(exp, least)
    if (exp + ROW_EXP_BIAS > 254).any():
        raise ValueError("weights exceed the range of a bfloat16 block scale")
    return mant, exp


def _bias_codes(bias: np.ndarray, scale: np.ndarray, fmt: WeightFormat) -> np.ndarray:
    """Signed magnitudes [rows, BLOCK] whose sum over the constants of ``BIAS_TOPS`` meets ``bias``."""
    codes = np.zeros((len(bias), BLOCK))
    rest = bias / scale
    for lane, top in enumerate(BIAS_TOPS):
        codes[:, lane] = fmt.round(np.ldexp(rest, -top))
        rest = rest - np.ldexp(codes[:, lane], top)
    return codes


def quantise_weights(
    w: np.ndarray,
    fmt: WeightFormat,
    *,
    spread: int,
    floor: int | None = None,
    bias: np.ndarray | None = None,
    ideal: np.ndarray | None = None,
) -> QuantisedMatrix:
    """Quantise [rows, columns]: per block, scale = max |w| / max magnitude rounded up to bfloat16, and
    magnitude = round(w / scale), to nearest even in the format.

    A block whose scale lies more than ``spread`` octaves below the row's largest (or under the exponent
    ``floor``) takes the smallest scale allowed there. ``bias`` [rows] appends a block. ``ideal`` [rows,
    blocks] gives the scales to start from instead (codes of a checkpoint, or a search).

    Raises ``ValueError`` on non-finite weights.
    """
    blocks = pad_blocks(np.asarray(w, dtype=np.float64))
    if not np.isfinite(blocks).all() or (bias is not None and not np.isfinite(bias).all()):
        raise ValueError("weights must be finite")
    if ideal is None:
        ideal = np.abs(blocks).max(axis=2) / fmt.max_magnitude
    if bias is not None:
        ideal = np.concatenate([ideal, (np.abs(bias) / fmt.max_magnitude)[:, None]], axis=1)
    mant, exp = _block_scales(ideal, spread=spread, floor=floor)
    scale = np.ldexp(mant.astype(np.float64), exp)
    codes = fmt.round(blocks / scale[:, : blocks.shape[1], None])
    if bias is not None:
        last = _bias_codes(bias.astype(np.float64), scale[:, -1], fmt)
        codes = np.concatenate([codes, last[:, None]], axis=1)
    row_exp = exp.min(axis=1)
    return QuantisedMatrix(
        fmt=fmt,
        codes=codes.astype(np.int32),
        mant=mant,
        shift=exp - row_exp[:, None],
        row_exp=row_exp,
        columns=w.shape[1],
    )


def bias_blocks(tokens: int) -> Scaled:
    """The constants of ``BIAS_TOPS``, a block a token: [T, 1, BLOCK]."""
    lanes = len(BIAS_TOPS)
    shape = (tokens, 1, BLOCK)
    top = np.full(shape, TOP_MIN, dtype=np.int64)
    top[..., :lanes] = BIAS_TOPS
    mag = np.zeros(shape, dtype=np.int64)
    mag[..., :lanes] = 1 << (MAG_BITS - 1)
    return Scaled(sign=np.zeros(shape, dtype=bool), top=top, mag=mag)


def append_bias_block(x: Scaled) -> Scaled:
    """Blocks [T, blocks, BLOCK] with the constants of ``BIAS_TOPS`` in a block behind them."""
    constants = bias_blocks(len(x.mag))
    parts = {
        name: np.concatenate([getattr(x, name), getattr(constants, name)], axis=1) for name in SCALED_PARTS
    }
    return Scaled(**parts)


def _quantise_blocks(x: Scaled, token_top: np.ndarray, *, spread: int, fraction: int) -> QuantisedVectors:
    """Blocks [T, blocks, BLOCK] with element LSB 2**(X - fraction); codes not yet saturated."""
    block_top = np.maximum(x.top.max(axis=2), token_top[:, None] - spread)
    shift = np.minimum(MAG_BITS - 1 - fraction + block_top[:, :, None] - x.top, 62)
    mag = round_shift(x.mag, shift)
    base = token_top - spread
    return QuantisedVectors(
        codes=np.where(x.sign, -mag, mag).astype(np.int32),
        shift=block_top - base[:, None],
        base=base - fraction,
    )


def quantise_act8(x: Scaled, token_top: np.ndarray, *, spread: int) -> QuantisedVectors:
    """MXINT8 blocks [T, blocks, BLOCK]: X = max(block, token - spread), code = RNE(x * 2**(6 - X)) in +-127.

    ``token_top`` [T] is the largest ``top`` of each token (over all the vectors that share its LSB).
    """
    q = _quantise_blocks(x, token_top, spread=spread, fraction=ACT8_FRACTION)
    return QuantisedVectors(codes=np.clip(q.codes, -ACT8_MAX, ACT8_MAX), shift=q.shift, base=q.base)


def quantise_act16(x: Scaled, token_top: np.ndarray, *, spread: int) -> QuantisedVectors:
    """INT16 blocks for the router: code = RNE(x * 2**(13 - X)), |code| <= 2**14, so nothing saturates."""
    return _quantise_blocks(x, token_top, spread=spread, fraction=ACT16_FRACTION)


def pack_float32(sign: np.ndarray, high: np.ndarray, low: np.ndarray, lsb_exp: np.ndarray) -> np.ndarray:
    """The one final rounding: magnitude ``(high * 2**32 + low) * 2**lsb_exp`` to float32, nearest even.

    high: int64 >= 0 (below 2**62), low: int64 in 0 .. 2**32 - 1. Subnormals are exact to their LSB of
    2**-149; values beyond the largest finite float32 become infinity, as IEEE 754 has it.
    """
    big = high > 0
    length = np.where(big, bit_length(high) + 32, bit_length(low))
    # Keep at most 62 bits, the rest as a sticky bit, so that one round_shift decides.
    drop = np.maximum(length - 62, 0)
    kept = np.where(big, (high << (32 - np.minimum(drop, 32))) | (low >> drop), low)
    kept = kept | ((low & ((np.int64(1) << drop) - 1)) != 0)
    exp = lsb_exp + drop
    right = np.maximum(length - drop - MAG_BITS, -149 - exp)
    left = np.clip(-right, 0, MAG_BITS)
    mant = round_shift(kept << left, np.clip(right, 0, 62))
    mant = np.where(right > 62, 0, mant)
    exp = exp + right
    carry = mant >> MAG_BITS
    mant, exp = mant >> carry, exp + carry
    field = np.where(mant >> (MAG_BITS - 1), exp + 150, 0)
    overflow = field > 254
    bits = np.where(overflow, 0xFF << 23, (np.clip(field, 0, 254) << 23) | (mant & 0x7FFFFF))
    bits = np.where((high == 0) & (low == 0), 0, bits)
    return (bits | np.where(sign, 1 << 31, 0)).astype(np.uint32).view(np.float32)
