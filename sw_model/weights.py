"""Stored tensors as weights: floats of three widths, FP8 in tiles of 128 x 128, MXFP4 in blocks of 32.

    FP8      w[r, c] = e4m3(code[r, c]) * scale_inv[r // 128, c // 128]         the last tiles may be cut
    MXFP4    w[r, c] = e2m1(nibble[r, c]) * 2**(scales[r, c // 32] - 127)       low nibble: even column

Sources: OCP OFP8 and Microscaling Formats (MX) Specification 1.0; the tiling is that of DeepSeek-V3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from sw_model.coded import CodedMatrix
from sw_model.errors import ExpertileError
from sw_model.families import Matrix
from sw_model.formats import BLOCK, FP8, MXFP4, WeightFormat
from sw_model.storage import Entry, Store

__all__ = ["Outline", "Weights"]

T = TypeVar("T", bound=np.generic)

TILE = 128
_FLOATS = ("F32", "F16", "BF16")
_MATRICES = (*_FLOATS, "F8_E4M3")
_E4M3_NAN = 0x7F
_E8M0_BIAS, _E8M0_NAN = 127, 255
_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": FP8.name, "U8": MXFP4.name}


def _signed(fmt: WeightFormat, bits: int, kind: type[T]) -> np.ndarray:
    """Signed magnitude of every code of ``bits`` bits, its sign on top."""
    magnitude = fmt.decode(np.arange(1 << (bits - 1)))
    return np.concatenate([magnitude, -magnitude]).astype(kind)


_E4M3 = _signed(FP8, 8, np.int32)
_E2M1 = _signed(MXFP4, 4, np.int8)


class Weights:
    """The reader that families are given: see :class:`sw_model.families.Tensors`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a tensor ``name``."""
        return name in self._store

    def floats(self, name: str, shape: tuple[int, ...], part: int | None = None) -> np.ndarray:
        """A tensor of floats as float32, or index ``part`` of its first axis; ``shape`` is that of it all."""
        entry = self._store.entry(name)
        entry.need(shape, _FLOATS)
        return self._floats(entry, part)

    def matrix(self, name: str, shape: tuple[int, int]) -> Matrix:
        """Weights [out, in], floats or FP8."""
        entry = self._store.entry(name)
        entry.need(shape, _MATRICES)
        if entry.dtype != "F8_E4M3":
            return Matrix(value=self._floats(entry, None))
        rows, columns = shape
        scale = self._store.entry(f"{name}_scale_inv")
        scale.need((-(-rows // TILE), -(-columns // TILE)), _FLOATS)
        return self._coded(entry, lambda: self._fp8(entry, scale), FP8, shape)

    def mxfp4(self, stem: str, shape: tuple[int, int, int], part: int) -> Matrix:
        """Matrix ``part`` [out, in] of ``stem_blocks`` and ``stem_scales``, stacked as ``shape``."""
        n, rows, columns = shape
        entry, scales = self._store.entry(f"{stem}_blocks"), self._store.entry(f"{stem}_scales")
        if columns % BLOCK:
            raise ExpertileError(f"{entry.path}: {stem}: MXFP4 needs columns in blocks of 32, not {columns}")
        entry.need((n, rows, columns // BLOCK, BLOCK // 2), ("U8",))
        scales.need((n, rows, columns // BLOCK), ("U8",))
        return self._coded(entry, lambda: self._mxfp4(entry, scales, part), MXFP4, (rows, columns))

    def _floats(self, entry: Entry, part: int | None) -> np.ndarray:
        raw = self._store.read(entry, part)
        if entry.dtype == "BF16":
            value = (raw.astype(np.uint32) << 16).view(np.float32)
        else:
            value = raw.astype(np.float32, copy=False)
        if not np.isfinite(value).all():
            raise entry.damaged("NaN or infinity")
        return value

    def _coded(
        self, entry: Entry, read: Callable[[], CodedMatrix], fmt: WeightFormat, shape: tuple[int, int]
    ) -> Matrix:
        coded = read()
        scale = np.repeat(coded.scale.astype(np.float32), BLOCK, axis=1)[:, : shape[1]]
        value = np.ldexp(coded.magnitudes.astype(np.float32), fmt.unit_exp)  # exact
        with np.errstate(over="ignore"):
            value *= scale  # the one rounding of FP8; MXFP4 has none
        if not np.isfinite(value).all():
            raise entry.damaged("weights beyond float32")
        return Matrix(value=value, coded=coded)

    def _fp8(self, entry: Entry, scale_entry: Entry) -> CodedMatrix:
        code = self._store.read(entry)
        if ((code & _E4M3_NAN) == _E4M3_NAN).any():
            raise entry.damaged("NaN")
        scale = self._floats(scale_entry, None).astype(np.float64)
        if not (scale > 0).all():
            raise scale_entry.damaged("a scale that is not positive")
        rows, columns = code.shape
        blocks = np.repeat(scale, TILE // BLOCK, axis=1)[:, : -(-columns // BLOCK)]
        return CodedMatrix(fmt=FP8, magnitudes=_E4M3[code], scale=np.repeat(blocks, TILE, axis=0)[:rows])

    def _mxfp4(self, entry: Entry, scale_entry: Entry, part: int) -> CodedMatrix:
        pairs, scale = self._store.read(entry, part), self._store.read(scale_entry, part)
        if (scale == _E8M0_NAN).any():
            raise scale_entry.damaged("a scale that is NaN")
        nibbles = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(len(pairs), -1)
        exponent = scale.astype(np.int32) - _E8M0_BIAS
        return CodedMatrix(fmt=MXFP4, magnitudes=_E2M1[nibbles], scale=np.ldexp(1.0, exponent))


class Outline(Weights):
    """The same checks of names, shapes and dtypes on headers alone: every weight comes out as 0, unread.

    Attributes
    ----------
    stored : Counter
        Elements seen so far by how they are stored ("float32", "float16", "bfloat16", "fp8", "mxfp4").
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.stored: Counter[str] = Counter()

    def _floats(self, entry: Entry, part: int | None) -> np.ndarray:
        value = np.broadcast_to(np.float32(0), entry.shape if part is None else entry.shape[1:])
        self.stored[_NAMES[entry.dtype]] += value.size
        return value

    def _coded(
        self, entry: Entry, read: Callable[[], CodedMatrix], fmt: WeightFormat, shape: tuple[int, int]
    ) -> Matrix:
        rows, columns = shape
        self.stored[_NAMES[entry.dtype]] += rows * columns
        coded = CodedMatrix(
            fmt=fmt,
            magnitudes=np.broadcast_to(np.int8(0), shape),
            scale=np.broadcast_to(np.float64(1), (rows, -(-columns // BLOCK))),
        )
        return Matrix(value=np.broadcast_to(np.float32(0), shape), coded=coded)
