"""What the hardware does for a token, counted exactly from shapes, formats and routes.

Counts are of work, not of a way to do it: they hold for any number of tiles and any topology, and words that
only fill up a tile are not in them. The hardware's counters of the same names must equal them.

    word_reads      macro words that hold a part of a matrix row, read        rows * blocks * words
    nibble_passes   such words multiplied, 32 products of a nibble each       rows * blocks * nibbles
    block_sums      blocks of a row finished, each with one scale read, one activation block at the row's
                    multipliers and one update of the row's sum               rows * blocks
    macs            products of elements                                      rows * blocks * 32

each twice for the router's nibbles, sums and words, whose activations come as high and low bytes. Where the
high nibble alone is read of INT8, it has a word and a nibble.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from sw_model.formats import BLOCK, INT4, INT8, INT16, QuantisedMatrix, WeightFormat
from sw_model.quantised import QuantisedExpert, QuantisedLayer

__all__ = ["X_BYTES", "Counts", "of_shape", "weight_words", "work"]

X_BYTES = 3  # bytes kept of an element of x: INT8, and INT16 for the router


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Sums over some tokens, or int64 arrays [T], one entry a token.

    word_reads, nibble_passes, block_sums, macs : see the module
    routed_reads, routed_sums : word_reads and block_sums for routed experts
    act_writes : blocks of 32 bytes written to activation buffers (x three: INT8, high and low byte; h one)
    router_rows : logits worked out; activations : elements of h; combine_rows : rows added up to y
    experts_used : routed experts run; tokens : 1 a token
    """

    tokens: np.ndarray
    experts_used: np.ndarray
    macs: np.ndarray
    word_reads: np.ndarray
    routed_reads: np.ndarray
    routed_sums: np.ndarray
    nibble_passes: np.ndarray
    block_sums: np.ndarray
    act_writes: np.ndarray
    router_rows: np.ndarray
    activations: np.ndarray
    combine_rows: np.ndarray

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Counts)})

    def total(self) -> Counts:
        """Sums over the tokens."""
        return Counts(**{f.name: np.asarray(getattr(self, f.name).sum()) for f in fields(Counts)})

    def figures(self) -> dict[str, int]:
        """Sums over the tokens by name."""
        return {f.name: int(getattr(self, f.name).sum()) for f in fields(Counts)}


_NAMES = tuple(f.name for f in fields(Counts))


def _cells(cells: int, fmt: WeightFormat, sets: int = 1) -> dict[str, int]:
    """Blocks of rows of a matrix, each read and multiplied ``sets`` times."""
    return {
        "macs": cells * BLOCK,
        "word_reads": sets * cells * fmt.words,
        "nibble_passes": sets * cells * fmt.macs,
        "block_sums": sets * cells,
    }


def _matrix(m: QuantisedMatrix, sets: int = 1, high: bool = False) -> dict[str, int]:
    return _cells(m.rows * m.blocks, INT4 if high and m.fmt is INT8 else m.fmt, sets)


def _vector(*parts: dict[str, int]) -> np.ndarray:
    return np.array([sum(part.get(name, 0) for part in parts) for name in _NAMES], dtype=np.int64)


def _expert(expert: QuantisedExpert, high: bool) -> np.ndarray:
    rows = {
        "act_writes": expert.down.blocks,
        "activations": expert.intermediate,
        "combine_rows": expert.down.rows,
    }
    return _vector(_matrix(expert.gate_up, high=high), _matrix(expert.down, high=high), rows)


def work(
    layer: QuantisedLayer, experts: np.ndarray, kept: np.ndarray, high: np.ndarray | None = None
) -> Counts:
    """The work of every token.

    Parameters
    ----------
    experts : int [T, k], the candidates; kept : bool [T, k], those that run
    high : bool [T], of INT8 the high nibble alone is read; None: as the layer says

    Returns
    -------
    Counts of int64 arrays [T]
    """
    if high is None:
        high = np.full(len(experts), layer.high_nibble)
    x_blocks = -(-layer.hidden // BLOCK) + layer.x_biased
    head = {"tokens": 1, "act_writes": X_BYTES * x_blocks, "router_rows": layer.router.rows}
    rows = np.repeat(_vector(_matrix(layer.router, sets=2), head)[None], len(experts), axis=0)
    if layer.fallback is not None:
        alone = _vector(_matrix(layer.fallback), {"act_writes": 1, "combine_rows": layer.fallback.rows})
        rows += np.where(kept.any(axis=1), 0, 1)[:, None] * alone
    for reading in np.unique(high).tolist():
        mine = high == reading
        if layer.shared is not None:
            rows[mine] += _expert(layer.shared, reading)
        costs = np.stack([_expert(e, reading) for e in layer.experts])
        costs[:, _NAMES.index("experts_used")] = 1
        for routed, of in (("routed_reads", "word_reads"), ("routed_sums", "block_sums")):
            costs[:, _NAMES.index(routed)] = costs[:, _NAMES.index(of)]
        rows[mine] += (costs[experts[mine]] * kept[mine][:, :, None]).sum(axis=1)
    return Counts(**dict(zip(_NAMES, rows.T, strict=True)))


def of_shape(
    hidden: int, width: int, experts: int, used: float, fmt: WeightFormat, shared: int = 0
) -> dict[str, float]:
    """A token's mean work by name, from the shape of a layer without biases alone.

    hidden, width, shared : multiples of 32, of the tokens and of a routed and the shared expert (0: none)
    used : routed experts a token
    """
    x_blocks, rows = hidden // BLOCK, experts + (shared > 0)

    def expert(wide: int) -> np.ndarray:
        cells = (2 * wide * hidden + hidden * wide) // BLOCK
        return _vector(
            _cells(cells, fmt), {"act_writes": wide // BLOCK, "activations": wide, "combine_rows": hidden}
        )

    head = {"tokens": 1, "act_writes": X_BYTES * x_blocks, "router_rows": rows}
    total = _vector(_cells(rows * x_blocks, INT16, sets=2), head) + used * expert(width)
    total = total + (expert(shared) if shared else 0)
    one = dict(zip(_NAMES, expert(width), strict=True))
    found = dict(zip(_NAMES, total.tolist(), strict=True))
    routed = {"routed_reads": used * one["word_reads"], "routed_sums": used * one["block_sums"]}
    return found | {"experts_used": used} | {k: float(v) for k, v in routed.items()}


def weight_words(layer: QuantisedLayer | QuantisedExpert) -> tuple[int, int]:
    """Macro words and scale entries that hold the rows of a layer or an expert: what loading it writes."""
    if isinstance(layer, QuantisedExpert):
        matrices = [layer.gate_up, layer.down]
    else:
        matrices = [layer.router, *(m for e in layer.everyone for m in (e.gate_up, e.down))]
        matrices += [] if layer.fallback is None else [layer.fallback]
    return sum(m.rows * m.blocks * m.fmt.words for m in matrices), sum(m.rows * m.blocks for m in matrices)
