"""Quantiser: a float32 MoE layer to the integers that the macros hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sw_model.coded import CodedMatrix, quantise_coded
from sw_model.config import Feature, HardwareConfig
from sw_model.errors import ExpertileError
from sw_model.formats import (
    BLOCK,
    EXPERT_FORMATS,
    INT8,
    ROUTER_FORMAT,
    QuantisedMatrix,
    WeightFormat,
    quantise_weights,
)
from sw_model.gate import Q_MAX, Q_MIN, Gate
from sw_model.moe import Activation, Expert, MoELayer, RouterRule
from sw_model.scale_search import Importance, search_scales

#: Take the codes of a checkpoint that is quantised already.
NATIVE = "native"
#: INT8 of which the macros read the high nibble of each magnitude alone.
HIGH_NIBBLE = "int8-high"


@dataclass(frozen=True, kw_only=True)
class ExpertFormats:
    """Formats of one expert's two matrices, by name; gate and up share one."""

    gate_up: str
    down: str


@dataclass(frozen=True, kw_only=True)
class QuantisedExpert:
    """One expert: ``gate_up`` holds gate row i at row 2 i and up row i at 2 i + 1; ``down`` is [H, I]."""

    gate_up: QuantisedMatrix
    down: QuantisedMatrix

    @property
    def intermediate(self) -> int:
        return self.down.columns

    @property
    def formats(self) -> ExpertFormats:
        return ExpertFormats(gate_up=self.gate_up.fmt.name, down=self.down.fmt.name)

    def high(self) -> QuantisedExpert:
        """As it counts where of INT8 only high nibbles are read."""
        return QuantisedExpert(gate_up=self.gate_up.high(), down=self.down.high())


@dataclass(frozen=True, kw_only=True)
class QuantisedLayer:
    """What the compiler places and the golden model runs.

    ``router`` has the E expert rows (scaled by log2(e) under softmax scoring, which works in the log2 domain)
    and behind them, as far as the layer has them, the rows of the base expert's gate, of the density and of
    the domains. ``fallback`` is the gate's constant answer, as a matrix of a bias block alone. ``down_base``
    is the least row exponent of all down projections: the combine's LSB. ``high_nibble``: of experts' INT8
    weights the high nibble alone is read, in half the passes (:meth:`QuantisedMatrix.high`). ``requantised``
    counts blocks of a coded checkpoint whose codes could not be kept, ``scale_error`` is the largest relative
    rounding of its scales.
    """

    hidden: int
    router: QuantisedMatrix
    router_biased: bool
    selection_bias: np.ndarray | None
    rule: RouterRule
    activation: Activation
    limit: float
    experts: tuple[QuantisedExpert, ...]
    expert_biased: bool
    shared: QuantisedExpert | None
    shared_gated: bool
    gate: Gate | None
    fallback: QuantisedMatrix | None
    down_base: int
    high_nibble: bool = False
    requantised: int = 0
    scale_error: float = 0.0

    @property
    def n_experts(self) -> int:
        return len(self.experts)

    @property
    def intermediate(self) -> int:
        return self.experts[0].intermediate

    @property
    def shared_intermediate(self) -> int:
        """Width of the shared expert, 0 without one."""
        return self.shared.intermediate if self.shared is not None else 0

    @property
    def everyone(self) -> tuple[QuantisedExpert, ...]:
        """The routed experts, then the shared one if there is one."""
        return self.experts if self.shared is None else (*self.experts, self.shared)

    @property
    def x_biased(self) -> bool:
        """Whether tokens carry the block of constants that biases ride on."""
        return self.router_biased or self.expert_biased


def check_fits(layer: MoELayer | QuantisedLayer, config: HardwareConfig) -> None:
    """Raise :class:`ExpertileError` naming the first maximum of ``config`` that ``layer`` exceeds."""
    if isinstance(layer, MoELayer):
        expert_biased, x_biased = layer.experts[0].biased, _x_biased(layer)
    else:
        expert_biased, x_biased = layer.expert_biased, layer.x_biased
    for what, value, key in (
        ("hidden size", _padded(layer.hidden, x_biased), "max_hidden"),
        ("expert width", _padded(layer.intermediate, expert_biased), "max_intermediate"),
        ("base expert width", _padded(layer.shared_intermediate, expert_biased), "max_intermediate"),
        ("number of experts", layer.n_experts, "max_experts"),
        ("experts a token (top-k)", layer.rule.top_k, "max_top_k"),
        ("number of expert groups", layer.rule.groups, "max_groups"),
    ):
        if value > getattr(config, key):
            raise ExpertileError(
                f"config {config.name!r}: {what} {value} is over its {key} of {getattr(config, key)}; "
                f"use a configuration with {key} >= {value}"
            )
    check_features(layer, config)
    if layer.hidden < 2:
        raise ExpertileError(f"hidden size {layer.hidden}: at least 2 is needed")


def check_features(layer: MoELayer | QuantisedLayer, config: HardwareConfig) -> None:
    """Raise :class:`ExpertileError` naming a block that ``layer`` needs and ``config`` is made without."""
    if layer.activation is Activation.CLAMPED:
        config.require(Feature.CLAMP, "the clamped activation")
    if isinstance(layer, QuantisedLayer) and layer.gate is not None:
        config.require(Feature.GATE, "a layer with a gate")
    biased = layer.x_biased if isinstance(layer, QuantisedLayer) else _x_biased(layer)
    if biased and config.body == "micro":
        raise ExpertileError(
            f"config {config.name!r}: a design of body 'micro' computes no biases; use a configuration with "
            "another body"
        )


def _x_biased(layer: MoELayer) -> bool:
    return layer.experts[0].biased or layer.router_bias is not None


def _padded(elements: int, biased: bool) -> int:
    """``elements`` in whole blocks, with the block of constants if there are biases."""
    return (-(-elements // BLOCK) + biased) * BLOCK if biased else elements


def _interleave(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.stack([a, b], axis=1).reshape(-1, *a.shape[1:])


def check_gate(gate: Gate, layer: MoELayer, config: HardwareConfig) -> None:
    """Raise :class:`ExpertileError` where ``gate`` does not belong to ``layer`` or exceeds ``config``."""
    config.require(Feature.GATE, "a gate")
    domains = len(gate.domain_bias)
    shapes = {
        "domain_bias": (domains, layer.n_experts),
        "cost": (layer.n_experts,),
        "miss": (layer.n_experts,),
        "density_row": (layer.hidden,),
        "domain_rows": (domains, layer.hidden),
        "fallback": (layer.hidden,),
    }
    for name, shape in shapes.items():
        value = getattr(gate, name)
        if value is not None and value.shape != shape:
            raise ExpertileError(
                f"gate: {name} has shape {list(value.shape)}, this layer needs {list(shape)}"
            )
    levels = (*gate.tau, gate.phi, gate.psi, gate.info, gate.entropy, gate.density, gate.lam)
    tables = np.concatenate([gate.domain_bias.ravel(), gate.cost, gate.miss, np.array(levels)])
    if tables.min() < Q_MIN or tables.max() > Q_MAX or not 0 <= gate.cap <= 255:
        raise ExpertileError("gate: a number is beyond Q7.8 (-128 to 128), or the cap beyond 255")
    if len(gate.tau) != layer.rule.top_k:
        raise ExpertileError(f"gate: {len(gate.tau)} thresholds tau, this layer needs {layer.rule.top_k}")
    if domains > config.max_domains:
        raise ExpertileError(
            f"config {config.name!r}: {domains} domains are over its max_domains of {config.max_domains}; "
            f"use a "
            f"configuration with max_domains >= {domains}"
        )
    if layer.shared is None and gate.fallback is None:
        raise ExpertileError("gate: this layer has no base expert, so the gate needs a fallback vector")


def _fallback(
    gate: Gate | None, layer: MoELayer, config: HardwareConfig, floor: int | None = None
) -> QuantisedMatrix | None:
    if gate is None or gate.fallback is None or layer.shared is not None:
        return None
    nothing = np.zeros((layer.hidden, 0))
    return quantise_weights(nothing, INT8, spread=config.weight_spread, floor=floor, bias=gate.fallback)


class _Quantiser:
    """One expert's matrices at a time, counting what a coded checkpoint loses."""

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        self.requantised = 0
        self.scale_error = 0.0

    def matrix(
        self,
        w: np.ndarray,
        fmt: WeightFormat,
        bias: np.ndarray | None,
        coded: CodedMatrix | None,
        importance: np.ndarray | None,
        floor: int | None = None,
    ) -> QuantisedMatrix:
        if coded is not None and coded.fmt is fmt:
            q, lost = quantise_coded(coded, spread=self.config.spread(fmt), floor=floor, bias=bias)
            self.requantised += lost
            fraction = np.frexp(coded.scale)[0]
            error = np.abs(np.rint(fraction * 256) / 256 / np.where(fraction > 0, fraction, 1) - 1)
            self.scale_error = max(self.scale_error, float(error[fraction > 0].max(initial=0)))
            return q
        ideal = search_scales(w, fmt, importance)
        return quantise_weights(w, fmt, spread=self.config.spread(fmt), floor=floor, bias=bias, ideal=ideal)

    def gate_up(self, e: Expert, fmt: WeightFormat, importance: np.ndarray | None) -> QuantisedMatrix:
        bias = coded = None
        if e.gate_bias is not None and e.up_bias is not None:
            bias = _interleave(e.gate_bias, e.up_bias)
        if "gate" in e.coded and "up" in e.coded:
            gate, up = e.coded["gate"], e.coded["up"]
            coded = CodedMatrix(
                fmt=gate.fmt,
                magnitudes=_interleave(gate.magnitudes, up.magnitudes),
                scale=_interleave(gate.scale, up.scale),
            )
        return self.matrix(_interleave(e.gate, e.up), fmt, bias, coded, importance)

    def down(
        self, e: Expert, fmt: WeightFormat, importance: np.ndarray | None, floor: int | None = None
    ) -> QuantisedMatrix:
        return self.matrix(e.down, fmt, e.down_bias, e.coded.get("down"), importance, floor)


def formats_of(layer: MoELayer, fmt: str) -> tuple[ExpertFormats, ...]:
    """The same format for every matrix, or each checkpoint's own (``native``); ``int8-high`` is int8.

    Raises :class:`ExpertileError` for an unknown format, or ``native`` on weights that are not quantised.
    """
    if fmt == NATIVE:
        if not all({"gate", "up", "down"} <= set(e.coded) for e in layer.experts):
            raise ExpertileError("format 'native': the checkpoint is not quantised; choose a format by name")
        return tuple(
            ExpertFormats(
                gate_up=e.coded["gate"].fmt.name if "gate" in e.coded else "int8",
                down=e.coded["down"].fmt.name if "down" in e.coded else "int8",
            )
            for e in layer.everyone
        )
    if fmt == HIGH_NIBBLE:
        fmt = INT8.name
    if fmt not in EXPERT_FORMATS:
        known = ", ".join((*EXPERT_FORMATS, HIGH_NIBBLE, NATIVE))
        raise ExpertileError(f"format {fmt!r}: unknown; choose one of {known}")
    return (ExpertFormats(gate_up=fmt, down=fmt),) * len(layer.everyone)


def check_formats(formats: Sequence[ExpertFormats], config: HardwareConfig, high: bool = False) -> None:
    """Raise :class:`ExpertileError` naming the first format that the macros of ``config`` do not multiply.

    ``high`` : the high nibbles of INT8 are to be read alone.
    """
    if high and config.whole_weights:
        raise ExpertileError(
            f"config {config.name!r}: macros of body {config.body!r} read whole weights; use int8 or int4, "
            "or a configuration with another body"
        )
    known = [fmt.name for fmt in config.formats]
    for f in formats:
        for name in (f.gate_up, f.down):
            if name in EXPERT_FORMATS and name not in known:
                raise ExpertileError(
                    f"config {config.name!r}: macros of body {config.body!r} do not multiply {name}; use a "
                    f"format of {', '.join(known)}, or a configuration with another body"
                )


def quantise(
    layer: MoELayer,
    fmt: str | Sequence[ExpertFormats],
    config: HardwareConfig,
    importance: Sequence[Importance] | None = None,
    gate: Gate | None = None,
) -> QuantisedLayer:
    """Quantise ``layer``; the router is always INT16.

    Parameters
    ----------
    fmt : a format for all ("int8", "int8-high", "int4", "fp8", "mxfp4"), "native", or the formats of every
        expert (the shared one last)
    gate : the three-level gate; None: the checkpoint's own routing
    importance : for every expert, how much its columns matter (from calibration); None: all the same

    Raises
    ------
    ExpertileError : unknown format, or one that ``config`` does not multiply; a shape over its maxima;
        non-finite weights
    """
    check_fits(layer, config)
    formats = formats_of(layer, fmt) if isinstance(fmt, str) else tuple(fmt)
    if len(formats) != len(layer.everyone):
        raise ExpertileError(f"{len(formats)} formats for {len(layer.everyone)} experts")
    check_formats(formats, config, high=fmt == HIGH_NIBBLE)
    matters = importance or (Importance(),) * len(formats)

    factor = math.log2(math.e) if layer.rule.scoring == "softmax" else 1.0
    rows = layer.router.astype(np.float64) * factor
    bias = None if layer.router_bias is None else layer.router_bias.astype(np.float64) * factor
    more = [layer.shared_gate[None]] if layer.shared_gate is not None else []
    if gate is not None:
        check_gate(gate, layer, config)
        more += [gate.density_row[None]] if gate.density_row is not None else []
        more += [gate.domain_rows] if gate.domain_rows is not None else []
    rows = np.concatenate([rows, *(r.astype(np.float64) for r in more)])
    bias = None if bias is None else np.pad(bias, (0, len(rows) - len(bias)))
    work = _Quantiser(config)
    jobs = list(zip(layer.everyone, formats, matters, strict=True))
    try:
        router = quantise_weights(rows, ROUTER_FORMAT, spread=config.router_spread, bias=bias)
        gate_ups = [work.gate_up(e, EXPERT_FORMATS[f.gate_up], i.gate_up) for e, f, i in jobs]
        downs = [work.down(e, EXPERT_FORMATS[f.down], i.down) for e, f, i in jobs]
        fallback = _fallback(gate, layer, config)
        # One LSB serves the whole combine: lift the rows that lie too far below the layer's largest.
        all_downs = downs if fallback is None else [*downs, fallback]
        floor = int(max(d.row_exp.max() for d in all_downs)) - config.down_spread
        downs = [
            d if d.row_exp.min() >= floor else work.down(e, EXPERT_FORMATS[f.down], i.down, floor)
            for d, (e, f, i) in zip(downs, jobs, strict=True)
        ]
        if fallback is not None and fallback.row_exp.min() < floor:
            fallback = _fallback(gate, layer, config, floor)
    except ValueError as e:
        raise ExpertileError(f"quantiser: {e}") from None
    experts = [QuantisedExpert(gate_up=g, down=d) for g, d in zip(gate_ups, downs, strict=True)]
    return QuantisedLayer(
        hidden=layer.hidden,
        router=router,
        router_biased=layer.router_bias is not None,
        selection_bias=layer.selection_bias,
        rule=layer.rule,
        activation=layer.activation,
        limit=layer.limit,
        experts=tuple(experts[: layer.n_experts]),
        expert_biased=layer.experts[0].biased,
        shared=experts[-1] if layer.shared is not None else None,
        shared_gated=layer.shared_gate is not None,
        gate=gate,
        fallback=fallback,
        down_base=int(min(d.row_exp.min() for d in (downs if fallback is None else [*downs, fallback]))),
        high_nibble=fmt == HIGH_NIBBLE,
        requantised=work.requantised,
        scale_error=work.scale_error,
    )
