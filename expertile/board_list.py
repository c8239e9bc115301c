"""Boards with what was measured on them: the record of builds, and the list that is made from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from expertile.options import ROOT
from expertile.output import write_file
from hw.boards.catalogue import BOARDS
from sw_model.compiler import paging
from sw_model.config import HardwareConfig, load_config, presets
from sw_model.errors import ExpertileError
from sw_model.moe import MoELayer
from sw_model.quantised import quantise

__all__ = ["BRIEF", "COLUMNS", "RECORDS", "cells", "markdown", "record", "rows"]

RECORDS = ROOT / "docs" / "boards.json"

#: Of a build's report, what does not change from run to run.
_KEPT = ("fmax_mhz", "clock_mhz", "timing_met", "lut", "ff", "bram", "dsp", "utilisation_percent")

COLUMNS = {
    "title": "board",
    "device": "device",
    "preset": "preset",
    "macs_per_cycle": "MACs a cycle (nibbles)",
    "weights_kib": "weights on chip (KiB)",
    "clock_mhz": "clock (MHz)",
    "fmax_mhz": "Fmax (MHz)",
    "lut_percent": "LUT (%)",
    "bram_percent": "block RAM (%)",
    "dsp_percent": "DSP (%)",
}

#: What a terminal has room for.
BRIEF = {
    "board": "board",
    "preset": "preset",
    "weights_kib": "KiB",
    "macs_per_cycle": "MAC",
    "clock_mhz": "MHz",
    "fmax_mhz": "Fmax",
}


def _load(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.is_file() else []


def record(report: dict[str, Any], path: Path = RECORDS) -> None:
    """Keep the report of a build in place of an earlier one of the same board and configuration."""
    name = (report["board"], report["config"])
    others = [r for r in _load(path) if (r["board"], r["config"]) != name]
    kept = {k: report[k] for k in ("board", "config", "config_hash", *_KEPT)}
    text = json.dumps(sorted([*others, kept], key=_name), indent=1) + "\n"
    write_file(path, lambda file: file.write(text.encode()))


def _name(row: dict[str, Any]) -> tuple[str, str]:
    return row["board"], row["config"]


def rows(layers: Mapping[str, MoELayer], fmt: str, records: Path = RECORDS) -> list[dict[str, Any]]:
    """Every board with its preset, and with other presets that were built for it.

    ``layers``, ``fmt`` : layers that should fit, by the models' names, and the format of their experts. Field
        "fits" says of each: whole, paged (with the experts that are on chip at once), or no
    ``records`` : what :func:`record` wrote. Figures of a configuration that has changed since are left out
    """
    known = _load(records)
    pairs = [(board.name, board.preset) for board in BOARDS.values()]
    current = {name: load_config(name).hash for name in presets()}
    more = [_name(r) for r in known if r["board"] in BOARDS and current.get(r["config"]) == r["config_hash"]]
    pairs += [pair for pair in more if pair not in pairs]
    configs = {preset: load_config(preset) for _, preset in pairs}
    fits = {
        preset: {name: _fit(layer, fmt, config) for name, layer in layers.items()}
        for preset, config in configs.items()
    }
    return [_row(board, configs[preset], fits[preset], known) for board, preset in pairs]


def _row(
    board: str, config: HardwareConfig, fits: dict[str, str], known: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    target = BOARDS[board]
    built: dict[str, Any] = next(
        (r for r in known if _name(r) == (board, config.name) and r["config_hash"] == config.hash), {}
    )
    percent = built.get("utilisation_percent", {})
    return {
        "board": board,
        "title": target.title,
        "device": f"{target.part}, speed {target.speed}" if target.speed else target.part,
        "preset": config.name,
        "macs_per_cycle": config.macs_per_cycle,
        "weights_kib": config.tiles * config.words * 16 // 1024,
        "fits": fits,
        "clock_mhz": built.get("clock_mhz", target.clock_mhz * config.array_clock),
        **{name: built.get(name) for name in _KEPT if name not in ("clock_mhz", "utilisation_percent")},
        **{f"{name}_percent": percent.get(name) for name in ("lut", "bram", "dsp")},
    }


def _fit(layer: MoELayer, fmt: str, config: HardwareConfig) -> str:
    """Whether all of ``layer`` is on chip at once, or how many of its routed experts."""
    try:
        slots = paging(quantise(layer, fmt, config), config)["PAGE_SLOTS"]
    except ExpertileError:
        return "no"
    return f"paged, {slots}/{layer.n_experts}" if slots else "whole"


def cells(row: dict[str, Any], columns: Mapping[str, str], empty: str) -> list[str]:
    """A row as texts: ``columns``, then whether each model fits."""
    found = [*(row[c] for c in columns), *row["fits"].values()]
    return [empty if value is None else str(value) for value in found]


def markdown(table: list[dict[str, Any]], fmt: str) -> str:
    """The list as a document."""
    heads = [*COLUMNS.values(), *(f"a layer of `{name}`" for name in table[0]["fits"])]
    lines = [
        "# Boards",
        "",
        "<!-- Written by `make boards` from docs/boards.json, which `expertile fpga --record` keeps. -->",
        "",
        f"A layer of each model at {fmt.upper()}: whether its experts are all on chip (whole), or so many",
        "and the others are sent when needed (paged), or it does not run. Figures: place and route; none:",
        "not built.",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
        *("| " + " | ".join(cells(row, COLUMNS, "")) + " |" for row in table),
    ]
    return "\n".join(lines) + "\n"
