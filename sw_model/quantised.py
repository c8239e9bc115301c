"""Quantiser: a float32 MoE layer to the integers that the macros hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError
from sw_model.formats import EXPERT_FORMATS, ROUTER_FORMAT, QuantisedMatrix, WeightFormat, quantise_weights
from sw_model.moe import Expert, MoELayer


@dataclass(frozen=True, kw_only=True)
class QuantisedExpert:
    """One expert: ``gate_up`` holds gate row i at row 2 i and up row i at 2 i + 1; ``down`` is [H, I]."""

    gate_up: QuantisedMatrix
    down: QuantisedMatrix

    @property
    def intermediate(self) -> int:
        return self.down.columns


@dataclass(frozen=True, kw_only=True)
class QuantisedLayer:
    """What the compiler places and the golden model runs.

    ``router`` has the E expert rows scaled by log2(e) (the gate works in the log2 domain) and, where the base
    expert is gated, one more row for its gate. ``down_base`` is the least row exponent of all down
    projections: the combine's LSB.
    """

    fmt: WeightFormat
    hidden: int
    router: QuantisedMatrix
    experts: tuple[QuantisedExpert, ...]
    shared: QuantisedExpert | None
    shared_gated: bool
    top_k: int
    renormalise: bool
    down_base: int

    @property
    def n_experts(self) -> int:
        return len(self.experts)

    @property
    def intermediate(self) -> int:
        return self.experts[0].intermediate

    @property
    def slots(self) -> int:
        """Expert results that a token combines."""
        return self.top_k + (self.shared is not None)


def check_fits(layer: MoELayer, config: HardwareConfig) -> None:
    """Raise :class:`ExpertileError` naming the first maximum of ``config`` that ``layer`` exceeds."""
    shared = layer.shared_intermediate if layer.shared is not None else 0
    for what, value, key in (
        ("hidden size", layer.hidden, "max_hidden"),
        ("expert width", layer.intermediate, "max_intermediate"),
        ("base expert width", shared, "max_intermediate"),
        ("number of experts", layer.n_experts, "max_experts"),
        ("experts a token (top-k)", layer.top_k, "max_top_k"),
    ):
        if value > getattr(config, key):
            raise ExpertileError(
                f"config {config.name!r}: {what} {value} is over its {key} of {getattr(config, key)}; "
                f"use a configuration with {key} >= {value}"
            )


def _interleave(e: Expert) -> np.ndarray:
    return np.stack([e.gate, e.up], axis=1).reshape(-1, e.gate.shape[1])


def quantise(layer: MoELayer, fmt: str, config: HardwareConfig) -> QuantisedLayer:
    """Quantise ``layer`` to ``fmt`` ("int8" or "int4"); the router is always INT16.

    Raises
    ------
    ExpertileError : unknown format, a shape over the configured maxima, non-finite weights
    """
    if fmt not in EXPERT_FORMATS:
        raise ExpertileError(f"format {fmt!r}: unknown; choose one of {', '.join(EXPERT_FORMATS)}")
    check_fits(layer, config)
    wf = EXPERT_FORMATS[fmt]
    rows = layer.router.astype(np.float64) * math.log2(math.e)
    gated = layer.shared_gate is not None
    if layer.shared_gate is not None:
        rows = np.concatenate([rows, layer.shared_gate.astype(np.float64)[None]])
    everyone = [*layer.experts, *([layer.shared] if layer.shared is not None else [])]
    spread = config.weight_spread
    try:
        router = quantise_weights(rows, ROUTER_FORMAT, spread=config.router_spread)
        gate_ups = [quantise_weights(_interleave(e), wf, spread=spread) for e in everyone]
        downs = [quantise_weights(e.down, wf, spread=spread) for e in everyone]
        # One LSB serves the whole combine: lift the rows that lie too far below the layer's largest.
        floor = int(max(d.row_exp.max() for d in downs)) - config.down_spread
        downs = [
            d if d.row_exp.min() >= floor else quantise_weights(e.down, wf, spread=spread, floor=floor)
            for d, e in zip(downs, everyone, strict=True)
        ]
    except ValueError as e:
        raise ExpertileError(f"quantiser: {e}") from None
    experts = [QuantisedExpert(gate_up=g, down=d) for g, d in zip(gate_ups, downs, strict=True)]
    return QuantisedLayer(
        fmt=wf,
        hidden=layer.hidden,
        router=router,
        experts=tuple(experts[: layer.n_experts]),
        shared=experts[-1] if layer.shared is not None else None,
        shared_gated=gated,
        top_k=layer.top_k,
        renormalise=layer.renormalise,
        down_base=int(min(d.row_exp.min() for d in downs)),
    )
