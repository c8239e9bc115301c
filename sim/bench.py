"""How fast one MoE layer of the shipped model runs on generated hardware, and how fast that is simulated."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sim.engines import Engine, open_engine
from sim.tools import ROOT
from sw_model import golden
from sw_model.checkpoint import Checkpoint
from sw_model.config import HardwareConfig, load_config
from sw_model.decoder import layer_inputs
from sw_model.errors import ExpertileError
from sw_model.evaluation import read_texts
from sw_model.formats import BLOCK, EXPERT_FORMATS
from sw_model.gate import Q_MIN
from sw_model.gate_file import GateFile
from sw_model.quantised import quantise

__all__ = ["heldout_inputs", "heldout_texts", "run", "run_gate", "write"]

_FPGA = ("fmax_mhz", "lut", "ff", "bram", "dsp")
_COLUMNS = (
    "format",
    "pattern",
    "tokens",
    "cycles_per_token",
    "macs_per_cycle",
    "mac_utilisation",
    "simulated_tokens_per_s",
    "simulated_cycles_per_s",
)


def heldout_texts(checkpoint: Checkpoint, tokens: int) -> list[bytes]:
    """Beginnings of the excerpts in ``heldout/*.txt``, ``tokens`` bytes or more in all.

    Raises :class:`ExpertileError` if there are none beside the checkpoint.
    """
    files = sorted((Path(checkpoint.folder) / "heldout").glob("*.txt"))
    if not files:
        raise ExpertileError(f"{checkpoint.folder}: no heldout/*.txt beside the checkpoint")
    share = max(2, -(-tokens // len(files)))
    return [text for parts in read_texts(files, share).values() for text in parts]


def heldout_inputs(checkpoint: Checkpoint, tokens: int) -> dict[int, np.ndarray]:
    """Hidden states float32 [tokens, H] by MoE layer, spread over the excerpts in ``heldout/*.txt``.

    Raises
    ------
    ExpertileError : there are no excerpts beside the checkpoint, or too few bytes in them
    """
    inputs = {n: x[:tokens] for n, x in layer_inputs(checkpoint, heldout_texts(checkpoint, tokens)).items()}
    if any(len(x) < tokens for x in inputs.values()):
        raise ExpertileError(f"{checkpoint.folder}: heldout/*.txt give less than {tokens} tokens")
    return inputs


def _measure(engine: Engine, x: np.ndarray, pattern: str) -> dict[str, Any]:
    """Counters of ``x`` in one stream, or token by token with the core empty in between."""
    pieces = [x] if pattern == "stream" else np.split(x, len(x))
    expected = golden.run(engine.layer, x, engine.config)
    start, cycle = time.perf_counter(), engine.core.cycle
    results = [engine.run(piece) for piece in pieces]
    seconds, cycles = time.perf_counter() - start, engine.core.cycle - cycle
    y = np.concatenate([r.y for r in results])
    if not np.array_equal(y.view(np.uint32), expected.y.view(np.uint32)):
        raise RuntimeError("the hardware differs from the golden model")
    busy, passes = (sum(r.counters[name] for r in results) for name in ("BUSY_CYCLES", "NIBBLE_PASSES"))
    return {
        "config": engine.config.name,
        "format": engine.layer.experts[0].down.fmt.name,
        "pattern": pattern,
        "tokens": len(x),
        "cycles_per_token": busy / len(x),
        # Nibble products a cycle; a product of wider elements takes several.
        "nibble_macs_per_cycle": BLOCK * passes / busy,
        "macs_per_cycle": expected.stats.macs / busy,
        "peak_nibble_macs_per_cycle": BLOCK * engine.config.tiles,
        "mac_utilisation": passes / (engine.config.tiles * engine.config.array_clock * busy),
        "simulated_tokens_per_s": len(x) / seconds,
        "simulated_cycles_per_s": cycles / seconds,
    }


def run(preset: str, tokens: int = 64, checkpoint: Path = ROOT / "models" / "base") -> list[dict[str, Any]]:
    """One row for each format and pattern ("stream": back to back; "single": one token at a time).

    Every result is checked against the golden model.

    Raises
    ------
    ExpertileError : unknown preset, no checkpoint, or its first MoE layer fits the preset in no format
    RuntimeError : the hardware hangs or differs from the golden model
    """
    config = load_config(preset)
    model = Checkpoint.open(checkpoint)
    n = model.moe_layers[0]
    x = heldout_inputs(model, tokens)[n]
    layer, rows, refused = model.moe_layer(n), [], None
    for fmt in EXPERT_FORMATS:
        try:
            engine = open_engine("verilator", quantise(layer, fmt, config), config)
        except ExpertileError as error:  # a small preset may hold the layer at INT4 only
            refused = error
            continue
        with engine:
            rows += [_measure(engine, part, name) for part, name in ((x, "stream"), (x[:8], "single"))]
    if not rows and refused is not None:
        raise refused
    return rows


def run_gate(
    preset: str, gates: GateFile, tokens: int = 256, checkpoint: Path = ROOT / "models" / "base"
) -> list[dict[str, Any]]:
    """What the gate saves: a row for each MoE layer, the same tokens with it and without it, at INT4.

    Ratios are gated over ungated: cycles in all, array cycles and macro reads of routed experts; and of the
    gate with open thresholds, which removes nothing, over no gate: what its latency costs.

    Raises
    ------
    ExpertileError, RuntimeError : as :func:`run`; a layer that the gate was not calibrated for
    """
    config = load_config(preset)
    model = Checkpoint.open(checkpoint)
    start = [] if model.shape.bos is None else [model.shape.bos]
    ids = [b for text in heldout_texts(model, tokens) for b in (*start, *text)][:tokens]
    side = gates.side_band(ids)
    rows = []
    for n, x in heldout_inputs(model, tokens).items():
        gate = gates.gate(n)
        opened = replace(gate, tau=(Q_MIN,) * len(gate.tau), phi=Q_MIN, psi=Q_MIN, cap=255)
        counters = []
        for chosen in (None, gate, opened):
            layer = quantise(model.moe_layer(n), "int4", config, gate=chosen)
            expected = golden.run(layer, x, config, side)
            with open_engine("verilator", layer, config) as engine:
                result = engine.run(x, side)
            if not np.array_equal(result.y.view(np.uint32), expected.y.view(np.uint32)):
                raise RuntimeError("the hardware differs from the golden model")
            counters.append(result.counters)
        off, on, idle = counters
        rows.append(
            {
                "layer": n,
                "tokens": len(x),
                "experts_per_token": on["EXPERTS_USED"] / len(x),
                "empty": on["EMPTY_TOKENS"] / len(x),
                "cycles_per_token": on["BUSY_CYCLES"] / len(x),
                "ungated_cycles_per_token": off["BUSY_CYCLES"] / len(x),
                "cycles_ratio": on["BUSY_CYCLES"] / off["BUSY_CYCLES"],
                "routed_cycles_ratio": on["ROUTED_CYCLES"] / off["ROUTED_CYCLES"],
                "routed_reads_ratio": on["ROUTED_READS"] / off["ROUTED_READS"],
                "latency_ratio": idle["BUSY_CYCLES"] / off["BUSY_CYCLES"],
            }
        )
    return rows


def _fpga(config: HardwareConfig) -> dict[str, Any] | None:
    """Figures of the last place and route, where it was of this configuration."""
    path = ROOT / "build" / "fpga" / "report.json"
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    same = isinstance(report, dict) and report.get("config") in (config.name, None)
    return {name: report[name] for name in _FPGA if name in report} if same else None


def write(
    rows: list[dict[str, Any]], folder: Path = ROOT / "build", gate: list[dict[str, Any]] | None = None
) -> None:
    """``bench.json`` and ``bench.md`` in ``folder``; ``gate`` is what :func:`run_gate` gave."""
    config = load_config(rows[0]["config"])
    fpga = _fpga(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(
        json.dumps({"rows": rows, "gate": gate, "fpga": fpga}, indent=2) + "\n"
    )
    lines = [f"# Bench: configuration {config.name}", ""]
    lines += [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    for row in rows:
        cells = [f"{row[c]:.4g}" if isinstance(row[c], float) else str(row[c]) for c in _COLUMNS]
        lines.append(f"| {' | '.join(cells)} |")
    if fpga:
        lines += ["", "FPGA: " + ", ".join(f"{name} {value}" for name, value in fpga.items())]
    (folder / "bench.md").write_text("\n".join(lines) + "\n")
