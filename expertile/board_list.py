"""Boards with what was measured on them: the record of builds, and the list that is made from it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from expertile.options import ROOT
from hw.boards.catalogue import BOARDS
from sw_model.compiler import paging
from sw_model.config import HardwareConfig, load_config, presets
from sw_model.errors import ExpertileError
from sw_model.moe import MoELayer
from sw_model.quantised import quantise

__all__ = ["BRIEF", "COLUMNS", "RECORDS", "markdown", "record", "rows"]

RECORDS = ROOT / "docs" / "boards.json"

#: Of a build's report, what does not change from run to run.
_KEPT = (
    *("fmax_mhz", "clock_mhz", "core_fmax_mhz", "core_clock_mhz", "timing_met"),
    *("lut", "ff", "bram", "dsp", "utilisation_percent"),
)

COLUMNS = {
    "title": "board",
    "device": "device",
    "preset": "preset",
    "macs_per_cycle": "MACs a cycle (nibbles)",
    "weights_kib": "weights on chip (KiB)",
    "experts_on_chip": "experts on chip",
    "layer": "a layer of the model",
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
    "macs_per_cycle": "MACs",
    "experts_on_chip": "experts",
    "layer": "layer",
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
    path.write_text(json.dumps(sorted([*others, kept], key=_name), indent=1) + "\n")


def _name(row: dict[str, Any]) -> tuple[str, str]:
    return row["board"], row["config"]


def rows(layer: MoELayer, fmt: str, records: Path = RECORDS) -> list[dict[str, Any]]:
    """Every board with its preset, and with other presets that were built for it.

    ``layer``, ``fmt`` : the layer that should fit, and the format of its experts
    ``records`` : what :func:`record` wrote. Figures of a configuration that has changed since are left out
    """
    known = _load(records)
    pairs = [(board.name, board.preset) for board in BOARDS.values()]
    pairs += [p for p in map(_name, known) if p not in pairs and p[0] in BOARDS and p[1] in presets()]
    configs = {preset: load_config(preset) for _, preset in pairs}
    fits = {preset: _fit(layer, fmt, config) for preset, config in configs.items()}
    return [_row(board, configs[preset], fits[preset], known) for board, preset in pairs]


def _row(
    board: str, config: HardwareConfig, fit: tuple[int, str], known: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    target = BOARDS[board]
    built: dict[str, Any] = next(
        (r for r in known if _name(r) == (board, config.name) and r["config_hash"] == config.hash), {}
    )
    percent = built.get("utilisation_percent", {})
    return {
        "board": board,
        "title": target.title,
        "device": f"{target.part}, speed {target.speed}",
        "preset": config.name,
        "macs_per_cycle": config.macs_per_cycle,
        "weights_kib": config.tiles * config.words * 16 // 1024,
        "experts_on_chip": fit[0],
        "layer": fit[1],
        "clock_mhz": built.get("clock_mhz", target.clock_mhz * config.array_clock),
        **{name: built.get(name) for name in _KEPT if name not in ("clock_mhz", "utilisation_percent")},
        **{f"{name}_percent": percent.get(name) for name in ("lut", "bram", "dsp")},
    }


def _fit(layer: MoELayer, fmt: str, config: HardwareConfig) -> tuple[int, str]:
    """Routed experts of ``layer`` that are on chip at once, and whether that is all of them."""
    try:
        slots = paging(quantise(layer, fmt, config), config)["PAGE_SLOTS"]
    except ExpertileError:
        return 0, "no"
    return (slots, "paged") if slots else (layer.n_experts, "whole")


def markdown(table: list[dict[str, Any]], model: str) -> str:
    """The list as a document."""
    lines = [
        "# Boards",
        "",
        "<!-- Written by `make boards` from docs/boards.json, which `expertile fpga --record` keeps. -->",
        "",
        f"A layer of {model}: whether its experts are all on chip (whole), or some",
        "are sent when they are needed (paged), or it does not run. Figures are of place and route; none:",
        "not built.",
        "",
        "| " + " | ".join(COLUMNS.values()) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    for row in table:
        lines.append("| " + " | ".join("" if row[c] is None else str(row[c]) for c in COLUMNS) + " |")
    return "\n".join(lines) + "\n"
