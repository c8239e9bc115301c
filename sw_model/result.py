"""What a run of the golden model gives."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np

from sw_model.energy.counts import Counts
from sw_model.energy.meter import Setting
from sw_model.gate import Decisions

__all__ = ["REMOVED", "Result", "Stats", "stats"]

REMOVED = ("REMOVED_DENSITY", "REMOVED_DOMAIN", "REMOVED_COST", "REMOVED_CAP")  # by the gate's levels


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What the work was. ``macs`` counts products of elements; nibble passes (32 products of a nibble) and
    macro word reads are what the hardware counts, and so are the gate's removals."""

    tokens: int
    experts_used: int
    macs: int
    nibble_passes: int
    word_reads: int
    routed_reads: int
    removed: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Result:
    """y [T, H] float32; experts [T, k], best first; weights [T, k], ``PROB_FRACTION`` bits of fraction;
    decisions of the three-level gate, None without one (then all candidates are used); ``work``: what it
    took, an entry a token; ``high``: bool [T], of INT8 weights the high nibble alone was read; ``settings``:
    what each token ran under, if there is a governor."""

    y: np.ndarray
    experts: np.ndarray
    weights: np.ndarray
    decisions: Decisions | None
    stats: Stats = field(repr=False)
    work: Counts = field(repr=False)
    high: np.ndarray = field(repr=False)
    settings: tuple[Setting, ...] = ()


def stats(done: Counts, kept: np.ndarray, decisions: Decisions | None) -> Stats:
    """From the work of each token, the candidates bool [T, k] that ran, and the gate's decisions."""
    sums = done.figures()
    removals = np.zeros(0, dtype=np.int64) if decisions is None else decisions.removed.ravel()
    counts = np.bincount(removals, minlength=len(REMOVED) + 1)
    removed = {name: int(n) for name, n in zip(REMOVED, counts[1:], strict=True)}
    removed["EMPTY_TOKENS"] = int((~kept.any(axis=1)).sum())
    return Stats(**{f.name: sums[f.name] for f in fields(Stats) if f.name in sums}, removed=removed)
