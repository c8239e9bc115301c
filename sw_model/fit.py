"""A configuration for a layer: the simulation preset where it fits, else one made to measure."""

from __future__ import annotations

from collections.abc import Sequence

from sw_model.config import HardwareConfig, load_config
from sw_model.errors import ExpertileError
from sw_model.footprint import footprint, misfit
from sw_model.formats import BLOCK
from sw_model.moe import MoELayer
from sw_model.quantised import ExpertFormats

__all__ = ["fitting_config"]

TILES = 8  # of a configuration made to measure


def _blocks(elements: int, biased: bool) -> int:
    """Elements of whole blocks, with the block that biases ride on."""
    return (-(-elements // BLOCK) + biased) * BLOCK


def fitting_config(layer: MoELayer, formats: str | Sequence[ExpertFormats]) -> HardwareConfig:
    """Preset "base" if it holds ``layer``, else a configuration of the layer's own maxima, named "fitted".

    Raises
    ------
    ExpertileError : the layer is larger than any configuration can be; an unknown format
    """
    base = load_config("base")
    if misfit(layer, formats, base) is None:
        return base
    biased = layer.experts[0].biased
    needs = footprint(layer, formats, TILES)
    widest = max(layer.intermediate, layer.shared_intermediate)
    try:
        return HardwareConfig(
            name="fitted",
            tiles=TILES,
            words=max(2, needs.words),
            scales=-(-needs.scales // 4) * 4,
            max_hidden=_blocks(layer.hidden, biased or layer.router_bias is not None),
            max_intermediate=_blocks(widest, biased),
            max_experts=layer.n_experts,
            max_top_k=layer.rule.top_k,
            max_groups=layer.rule.groups,
            drain=4,
        )
    except ValueError as error:
        raise ExpertileError(f"no configuration can hold this layer: {error}") from None
