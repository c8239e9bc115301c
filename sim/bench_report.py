"""What the bench measured as files, beside what place and route measured and what it was before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sim.tools import ROOT
from sw_model.config import load_config

__all__ = ["COLUMNS", "HISTORY", "join", "record", "regressions", "write"]

HISTORY = ROOT / "docs" / "bench-history.json"
TOLERANCE = 1.01  # of cycles and LUTs a multiplication; the cycles themselves are the same on every machine
_FPGA = ("fmax_mhz", "lut", "ff", "bram", "dsp")
COLUMNS = {
    "preset": "preset",
    "format": "format",
    "macs_per_cycle": "MACs/cycle",
    "utilisation_stream": "utilisation, stream",
    "utilisation_single": "single token",
    "cycles_per_token": "cycles/token",
    "cycles_per_token_single": "single token",
    "fmax_mhz": "Fmax, MHz",
    "lut": "LUT",
    "ff": "FF",
    "bram": "BRAM",
    "dsp": "DSP",
    "lut_per_mac": "LUT/MAC",
    "gmac_s": "GMAC/s",
}
#: What must not grow from one record to the next.
_COSTS = ("cycles_per_token", "cycles_per_token_single", "lut_per_mac")


def join(
    rows: list[dict[str, Any]], builds: Path = ROOT / "build", recorded: Path = ROOT / "docs" / "boards.json"
) -> list[dict[str, Any]]:
    """The rows with the FPGA figures of ``builds``/fpga*/report.json where that is of the same configuration,
    else of ``recorded`` (``expertile fpga --record``), else None in their place; GMAC/s are of nibble
    multiplications, at the Fmax of the array."""
    reports = json.loads(recorded.read_text()) if recorded.is_file() else []
    for path in sorted(builds.glob("fpga*/report.json")):
        try:
            reports.append(json.loads(path.read_text()))
        except ValueError:
            continue  # a report that is being written
    out = []
    for row in rows:
        config = load_config(row["preset"])
        same = [r for r in reports if r.get("config_hash") == config.hash]
        # Of several boards, the one that the preset is named after.
        same.sort(key=lambda report: report.get("board") == config.name)
        report = same[-1] if same else {}
        figures: dict[str, Any] = {name: report.get(name) for name in _FPGA}
        macs = row["macs_per_cycle"]
        figures["lut_per_mac"] = report["lut"] / macs if same else None
        figures["gmac_s"] = report["fmax_mhz"] * macs / 1000 if same else None
        out.append({**row, **figures})
    return out


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def write(
    rows: list[dict[str, Any]], folder: Path = ROOT / "build", gate: list[dict[str, Any]] | None = None
) -> None:
    """``bench.json`` (the rows) and ``bench.md`` in ``folder``; ``gate`` as ``bench-gate.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(rows, indent=2) + "\n")
    if gate is not None:
        (folder / "bench-gate.json").write_text(json.dumps(gate, indent=2) + "\n")
    lines = ["# Bench", "", f"| {' | '.join(COLUMNS.values())} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(_cell(row.get(c)) for c in COLUMNS)} |" for row in rows]
    (folder / "bench.md").write_text("\n".join(lines) + "\n")


def _last(history: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The latest record of each preset and format."""
    records = json.loads(history.read_text()) if history.is_file() else []
    return {(row["preset"], row["format"]): row for row in records}


def regressions(rows: list[dict[str, Any]], history: Path = HISTORY) -> list[str]:
    """One sentence for each figure that is worse than in the last record of the same preset and format."""
    last, found = _last(history), []
    for row in rows:
        before = last.get((row["preset"], row["format"]), {})
        if before.get("model") != row["model"] or before.get("tokens") != row["tokens"]:
            continue
        for name in _COSTS:
            was, now = before.get(name), row.get(name)
            if was and now and now > was * TOLERANCE:
                what = f"{row['preset']}, {row['format']}: {name}"
                found.append(f"{what} {now:.5g}, {now / was:.3f} times the {was:.5g} recorded")
    return found


def record(rows: list[dict[str, Any]], date: str, history: Path = HISTORY) -> None:
    """Append the rows to the history, less the speeds of this machine."""
    records = json.loads(history.read_text()) if history.is_file() else []
    for row in rows:
        kept = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        records.append({"date": date, **{k: v for k, v in kept.items() if not k.startswith("simulated_")}})
    history.write_text(json.dumps(records, indent=1) + "\n")
