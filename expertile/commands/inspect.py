"""``expertile inspect``: what a checkpoint is, what its layers take, and which hardware holds them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from expertile import options
from expertile.options import MODEL
from expertile.output import check_writable, console, table, write_json

__all__ = ["command", "describe"]


def command(
    folder: Annotated[
        Path,
        typer.Argument(metavar="[DIR]", help="Checkpoint folder.", show_default="the shipped model"),
    ] = MODEL,
    json: options.Json = None,
) -> None:
    """Describe a checkpoint from its headers; no weight is read."""
    check_writable(json)
    report = describe(folder)
    write_json(json, report)
    _show(report)


def describe(folder: Path) -> dict[str, Any]:
    """Everything that is known without reading weights; layers that are alike are told of once.

    Raises
    ------
    ExpertileError
        A bad checkpoint, or a layer whose rule is not supported.
    """
    from sw_model.checkpoint import Checkpoint
    from sw_model.config import load_config, presets
    from sw_model.errors import ExpertileError

    checkpoint = Checkpoint.open(folder)
    configs = [load_config(name) for name in presets()]
    kinds: list[dict[str, Any]] = []
    for n in checkpoint.moe_layers:
        figures = _layer(checkpoint.outline(n), configs)
        like = next((kind for kind in kinds if kind | {"layers": None} == figures), None)
        if like is None:
            kinds.append(figures | {"layers": [n]})
        else:
            like["layers"].append(n)
    refused = None
    try:
        _ = checkpoint.shape
    except ExpertileError as error:
        refused = str(error)
    return {
        "checkpoint": str(folder),
        "family": checkpoint.family,
        "layers": checkpoint.n_layers,
        "moe_layers": checkpoint.moe_layers,
        "text": refused is None,
        "text_refused": refused,
        "kinds": kinds,
    }


def _layer(outline: Any, configs: list[Any]) -> dict[str, Any]:
    from sw_model.footprint import footprint, misfit
    from sw_model.formats import EXPERT_FORMATS

    layer, rule = outline.layer, outline.layer.rule
    misfits = {c.name: {fmt: misfit(layer, fmt, c) for fmt in EXPERT_FORMATS} for c in configs}
    return {
        "layers": None,
        "hidden": layer.hidden,
        "experts": layer.n_experts,
        "expert_width": layer.intermediate,
        "experts_per_token": rule.top_k,
        "groups": rule.groups,
        "groups_per_token": rule.top_groups,
        "scoring": rule.scoring,
        "selection_bias": layer.selection_bias is not None,
        "renormalise": rule.renormalise,
        "router_scale": rule.scale,
        "shared_width": layer.shared_intermediate,
        "shared_gated": layer.shared_gate is not None,
        "biases": layer.experts[0].biased,
        "activation": layer.activation.value,
        "stored": outline.stored.most_common(1)[0][0],
        "weights": outline.stored.total(),
        "bytes": {fmt: footprint(layer, fmt).bytes for fmt in EXPERT_FORMATS},
        "fits": {name: [fmt for fmt, why in by.items() if why is None] for name, by in misfits.items()},
        "misfits": {name: next((why for why in by.values() if why), None) for name, by in misfits.items()},
    }


def _show(report: dict[str, Any]) -> None:
    from sw_model.checkpoint import ranges

    rows = {
        "family": report["family"],
        "layers": report["layers"],
        "MoE layers": ranges(report["moe_layers"]) or "none",
        "text": "yes" if report["text"] else report["text_refused"],
    }
    table(str(report["checkpoint"]), rows)
    for kind in report["kinds"]:
        console().print()
        table(f"MoE layers {ranges(kind['layers'])}", _rows(kind))


def _rows(kind: dict[str, Any]) -> dict[str, Any]:
    groups = f", from {kind['groups_per_token']} of {kind['groups']} groups" if kind["groups"] > 1 else ""
    weights = [
        kind["scoring"],
        "biased choice" if kind["selection_bias"] else "",
        "renormalised" if kind["renormalise"] else "",
        f"times {kind['router_scale']:g}" if kind["router_scale"] != 1 else "",
    ]
    shared = f"{kind['shared_width']} wide, {'gated' if kind['shared_gated'] else 'ungated'}"
    return {
        "hidden": kind["hidden"],
        "experts": f"{kind['experts']}, {kind['expert_width']} wide",
        "experts a token": f"{kind['experts_per_token']}{groups}",
        "shared expert": shared if kind["shared_width"] else "none",
        "router": ", ".join(filter(None, weights)),
        "activation": kind["activation"] + (", biases" if kind["biases"] else ""),
        "weights": f"{kind['weights']:,}, stored as {kind['stored']}",
        **{f"bytes in {fmt}": size for fmt, size in kind["bytes"].items()},
        **{f"on {name}": ", ".join(fits) or kind["misfits"][name] for name, fits in kind["fits"].items()},
    }
