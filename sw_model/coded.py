"""Weights that a checkpoint holds quantised already (FP8, MXFP4): their codes are kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sw_model.formats import BLOCK, QuantisedMatrix, WeightFormat, pad_blocks, quantise_weights


@dataclass(frozen=True, kw_only=True, eq=False)
class CodedMatrix:
    """Weights as an already quantised checkpoint holds them: value = magnitude * 2**fmt.unit_exp * scale.

    magnitudes : signed integers [rows, columns]; scale : float64 [rows, blocks], a block of 32 each
    """

    fmt: WeightFormat
    magnitudes: np.ndarray
    scale: np.ndarray

    def to_float(self) -> np.ndarray:
        """Decoded weights, float64 [rows, columns]."""
        scale = np.repeat(self.scale, BLOCK, axis=1)[:, : self.magnitudes.shape[1]]
        return np.ldexp(self.magnitudes.astype(np.float64), self.fmt.unit_exp) * scale


def quantise_coded(
    coded: CodedMatrix, *, spread: int, floor: int | None = None, bias: np.ndarray | None = None
) -> tuple[QuantisedMatrix, int]:
    """Keep the codes of a quantised checkpoint; only its scales are rounded, to the nearest bfloat16.

    Returns the matrix and how many blocks lay outside ``spread`` (or under ``floor``) and were rounded anew.
    """
    scale = np.ldexp(coded.scale, coded.fmt.unit_exp)
    fraction, exponent = np.frexp(scale)
    nearest = np.ldexp(np.rint(fraction * 256), exponent - 8)
    used = np.abs(pad_blocks(coded.magnitudes)).max(axis=2) > 0
    # Scales that lie too low are lifted by whole octaves: most codes survive that too.
    top = np.where(used, exponent, -10000).max(axis=1, keepdims=True)
    nearest = np.ldexp(nearest, np.clip(top - spread - exponent, 0, 1000))
    q = quantise_weights(
        coded.to_float(), coded.fmt, spread=spread, floor=floor, bias=bias, ideal=np.where(used, nearest, 0.0)
    )
    given = np.ldexp(q.mant.astype(np.float64), q.shift + q.row_exp[:, None])[:, : scale.shape[1]]
    codes = q.codes[:, : scale.shape[1]]
    original = np.ldexp(np.rint(fraction * 256), exponent - 8)
    exact = codes * given[:, :, None] == pad_blocks(coded.magnitudes) * original[:, :, None]
    return q, int((used & ~exact.all(axis=2)).sum())
