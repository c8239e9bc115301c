"""Sparse attention: which keys a query looks at.

At level 0 a query sees all keys before it and its own. At a higher level it sees

    the first ``sinks`` keys, the last ``window`` ones, and of the blocks of ``block`` keys that lie wholly
    before the window the ``top`` ones whose mean key has the largest product with the query

each head for itself; ties go to the earlier block. A level may change between any two tokens: all keys and
values are kept, only fewer are read.

References: sinks and window, Xiao et al., StreamingLLM (2309.17453); blocks by a summary of their keys, Tang
et al., Quest (2406.10774), Lu et al., MoBA (2502.13189).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["LEVELS", "Sparse", "visible"]


@dataclass(frozen=True, kw_only=True)
class Sparse:
    """Numbers of keys, and of blocks (``top``)."""

    window: int
    sinks: int
    block: int
    top: int


#: By level; None: all keys.
LEVELS: tuple[Sparse | None, ...] = (
    None,
    Sparse(window=128, sinks=4, block=32, top=4),
    Sparse(window=64, sinks=4, block=32, top=2),
    Sparse(window=32, sinks=4, block=32, top=1),
)


def visible(q: np.ndarray, keys: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys that each query sees, and the vectors read for it.

    Parameters
    ----------
    q : [G, g, T, d], queries of the last T positions: g heads for each of G heads of keys
    keys : [G, S, d], of all positions

    Returns
    -------
    bool [G, g, T, S]; int64 [T], over all heads: a key and a value for each key seen, and a mean key for each
    block that was in question
    """
    sparse = LEVELS[level]
    groups, heads, tokens, _ = q.shape
    seen = keys.shape[1]
    position = np.arange(seen - tokens, seen)[:, None]  # of the queries
    key = np.arange(seen)[None]
    causal = key <= position
    if sparse is None:
        mask = np.broadcast_to(causal, (groups, heads, tokens, seen))
        return mask, 2 * groups * heads * causal.sum(axis=1)
    near = causal & ((key > position - sparse.window) | (key < sparse.sinks))
    mask = np.broadcast_to(near, (groups, heads, tokens, seen)).copy()
    blocks = seen // sparse.block
    ends = (np.arange(blocks) + 1)[None] * sparse.block - 1
    possible = ends <= position - sparse.window  # [T, blocks]
    if blocks:
        whole = keys[:, : blocks * sparse.block].reshape(groups, blocks, sparse.block, -1)
        score = np.einsum("ghtd,gbd->ghtb", q, whole.mean(axis=2))
        score = np.where(possible, score, -np.inf)
        best = np.argsort(-score, axis=-1, kind="stable")[..., : sparse.top]
        chosen = np.zeros(score.shape, dtype=bool)
        np.put_along_axis(chosen, best, True, axis=-1)
        mask[..., : blocks * sparse.block] |= np.repeat(chosen & possible, sparse.block, axis=-1)
    reads = 2 * mask.sum(axis=(0, 1, 3)) + groups * heads * possible.sum(axis=1)
    return mask, reads
