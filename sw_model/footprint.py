"""What a layer takes on hardware, from its shapes alone: nothing is quantised, no weight is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError
from sw_model.formats import BLOCK, EXPERT_FORMATS, ROUTER_FORMAT, SCALE_BITS, WeightFormat
from sw_model.moe import MoELayer
from sw_model.quantised import HIGH_NIBBLE, ExpertFormats, check_fits, check_formats, formats_of
from sw_model.topology import choose_split, entries

__all__ = ["Footprint", "footprint", "misfit"]


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """words : macro words a tile, of 32 lanes x 4 bits; scales : scale entries a tile, of 20 bits"""

    words: int
    scales: int

    @property
    def bytes(self) -> int:
        """Bytes of one tile's words and scales."""
        return -(-(self.words * BLOCK * 4 + self.scales * SCALE_BITS) // 8)


def _matrices(
    layer: MoELayer, formats: Sequence[ExpertFormats]
) -> Iterator[tuple[int, int, bool, WeightFormat]]:
    """Rows, columns, whether a bias rides along, and format of every matrix that is placed."""
    gates = layer.shared_gate is not None
    yield layer.n_experts + gates, layer.hidden, layer.router_bias is not None, ROUTER_FORMAT
    for expert, names in zip(layer.everyone, formats, strict=True):
        yield 2 * expert.intermediate, layer.hidden, expert.biased, EXPERT_FORMATS[names.gate_up]
        yield layer.hidden, expert.intermediate, expert.biased, EXPERT_FORMATS[names.down]


def footprint(
    layer: MoELayer,
    fmt: str | Sequence[ExpertFormats],
    tiles: int = 1,
    columns: int = 1,
    split: int | None = None,
) -> Footprint:
    """What each of ``tiles`` tiles in ``columns`` holds; with one tile, the layer without padding of rows.

    ``split``: of all matrices, as :attr:`HardwareConfig.split` has it.

    Raises :class:`ExpertileError` for an unknown format.
    """
    words = scales = 0
    formats = formats_of(layer, fmt) if isinstance(fmt, str) else fmt
    for rows, elements, biased, stored in _matrices(layer, formats):
        blocks = -(-elements // BLOCK) + biased
        chosen = choose_split(rows, blocks, tiles, columns) if split is None else split
        share = entries(rows, blocks, tiles, chosen)
        words += share * stored.words
        scales += share
    return Footprint(words=words, scales=scales)


def misfit(layer: MoELayer, fmt: str | Sequence[ExpertFormats], config: HardwareConfig) -> str | None:
    """Why ``config`` cannot hold ``layer`` in format ``fmt``; None if it can."""
    try:
        check_fits(layer, config)
        formats = formats_of(layer, fmt) if isinstance(fmt, str) else fmt
        check_formats(formats, config, high=fmt == HIGH_NIBBLE)
    except ExpertileError as error:
        return str(error)
    needs = footprint(layer, fmt, config.tiles, config.columns, config.split)
    for what, need, have in (("words", needs.words, config.words), ("scales", needs.scales, config.scales)):
        if need > have:
            return f"config {config.name!r}: {need} macro {what} a tile are needed, {have} are there"
    return None
