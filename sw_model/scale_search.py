"""Scale search: per block, the scale that loses least on the activations that the block will meet.

    minimise over s   sum_i  m_i * (w_i - s * round(w_i / s))**2,       m_i = mean of x_i**2

Candidates are fractions of the scale that fits the block's largest weight. With unknown activations m = 1.
Weights that then overflow the format saturate, which is what makes the others finer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sw_model.formats import WeightFormat, pad_blocks

FRACTIONS = np.linspace(0.6, 1.0, 17)[::-1]


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Mean squares of what an expert's matrices multiply: x for gate_up [H], h for down [I]; None: all 1."""

    gate_up: np.ndarray | None = None
    down: np.ndarray | None = None


def search_scales(w: np.ndarray, fmt: WeightFormat, importance: np.ndarray | None = None) -> np.ndarray:
    """Best scale of every block, float64 [rows, blocks], for weights [rows, columns].

    Raises ``ValueError`` on non-finite weights.
    """
    blocks = pad_blocks(np.asarray(w, dtype=np.float64))
    if not np.isfinite(blocks).all():
        raise ValueError("weights must be finite")
    matters = np.ones(w.shape[1]) if importance is None else importance
    weight = pad_blocks(matters.astype(np.float64))[None]
    largest = np.abs(blocks).max(axis=2) / fmt.max_magnitude
    best = largest.copy()
    least = np.full(largest.shape, np.inf)
    for fraction in FRACTIONS:
        scale = np.where(largest > 0, largest * fraction, 1.0)[:, :, None]
        error = ((blocks - scale * fmt.round(blocks / scale)) ** 2 * weight).sum(axis=2)
        better = error < least
        least = np.where(better, error, least)
        best = np.where(better, largest * fraction, best)
    return best
