"""How fast the MoE layers of the shipped model run on generated hardware, and how fast that is simulated."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
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
from sw_model.footprint import misfit
from sw_model.formats import BLOCK, EXPERT_FORMATS
from sw_model.gate import Q_MIN
from sw_model.gate_file import GateFile
from sw_model.moe import Expert, MoELayer, RouterRule
from sw_model.quantised import HIGH_NIBBLE, quantise

__all__ = ["heldout_inputs", "heldout_texts", "run", "run_gate", "workload"]


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


@dataclass
class _Sums:
    """Counters of one format and pattern, over all layers."""

    tokens: int = 0
    busy: int = 0
    passes: int = 0
    seconds: float = 0.0
    cycles: int = 0

    def add(self, engine: Engine, x: np.ndarray, *, stream: bool) -> None:
        """Run ``x`` in one stream, or token by token with the core empty in between."""
        pieces = [x] if stream else np.split(x, len(x))
        expected = golden.run(engine.layer, x, engine.config)
        start, cycle = time.perf_counter(), engine.core.cycle
        results = [engine.run(piece) for piece in pieces]
        self.seconds += time.perf_counter() - start
        self.cycles += engine.core.cycle - cycle
        y = np.concatenate([r.y for r in results])
        if not np.array_equal(y.view(np.uint32), expected.y.view(np.uint32)):
            raise RuntimeError("the hardware differs from the golden model")
        self.tokens += len(x)
        self.busy += sum(r.counters["BUSY_CYCLES"] for r in results)
        self.passes += sum(r.counters["NIBBLE_PASSES"] for r in results)


def _stand_in(config: HardwareConfig, experts: int, tokens: int) -> tuple[MoELayer, np.ndarray]:
    """A random layer as wide as the maxima, for configurations that the shipped model is too large for."""
    rng = np.random.default_rng(1)
    hidden, widest = config.max_hidden, config.max_intermediate

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * columns**-0.5).astype(np.float32)

    def expert(width: int) -> Expert:
        return Expert(gate=matrix(width, hidden), up=matrix(width, hidden), down=matrix(hidden, width))

    layer = MoELayer(
        router=4 * matrix(experts, hidden),
        rule=RouterRule(top_k=min(2, config.max_top_k, experts), renormalise=True),
        experts=tuple(expert(-(-widest // 2 // BLOCK) * BLOCK) for _ in range(experts)),
        shared=expert(widest),
        shared_gate=matrix(1, hidden)[0],
    )
    return layer, rng.standard_normal((tokens, hidden)).astype(np.float32)


def workload(preset: HardwareConfig, tokens: int, checkpoint: Path) -> tuple[str, list]:
    """What runs: its name, and (layer, tokens) of every MoE layer.

    Raises
    ------
    ExpertileError : not even a layer with one expert fits
    """
    model = Checkpoint.open(checkpoint)
    layers = [(model.moe_layer(n), x) for n, x in heldout_inputs(model, tokens).items()]
    if any(misfit(layers[0][0], fmt, preset) is None for fmt in EXPERT_FORMATS):
        return checkpoint.name, layers
    random = (_stand_in(preset, experts, tokens) for experts in range(preset.max_experts, 0, -1))
    found = next((work for work in random if misfit(work[0], "int4", preset) is None), None)
    if found is None:
        raise ExpertileError(
            f"config {preset.name!r}: its memory does not hold one expert as large as its maxima; "
            "use more words and scales, or smaller maxima"
        )
    return "random", [found]


def run(preset: str, tokens: int = 64, checkpoint: Path = ROOT / "models" / "base") -> list[dict[str, Any]]:
    """One row a format, over all MoE layers: tokens back to back ("stream"), and one at a time ("single").

    Utilisation is the share of the array's multipliers times cycles that multiply an element of a matrix;
    ``macs_per_cycle`` what they could in a cycle of the array, which may be shorter than those of the core
    that are counted. Every result is checked against the golden model. A configuration that
    cannot hold the model in any format runs a random layer of its own maxima, with as many experts as fit.

    Raises
    ------
    ExpertileError : unknown preset, no checkpoint
    RuntimeError : the hardware hangs or differs from the golden model
    """
    config = load_config(preset)
    name, work = workload(config, tokens, checkpoint)
    rows = []
    for fmt in (*EXPERT_FORMATS, HIGH_NIBBLE):
        if misfit(work[0][0], fmt, config) is not None:  # a small preset may hold the layer at INT4 only
            continue
        stream, single = _Sums(), _Sums()
        most = config.macs_per_cycle * config.array_clock  # in a cycle of the core
        for layer, x in work:
            with open_engine("verilator", quantise(layer, fmt, config), config) as engine:
                stream.add(engine, x, stream=True)
                single.add(engine, x[:8], stream=False)
        rows.append(
            {
                "preset": config.name,
                "format": fmt,
                "model": name,
                "layers": len(work),
                "tokens": tokens,
                "macs_per_cycle": config.macs_per_cycle,
                "cycles_per_token": stream.busy / stream.tokens,
                "cycles_per_token_single": single.busy / single.tokens,
                "utilisation_stream": BLOCK * stream.passes / (most * stream.busy),
                "utilisation_single": BLOCK * single.passes / (most * single.busy),
                "simulated_tokens_per_s": stream.tokens / stream.seconds,
                "simulated_cycles_per_s": stream.cycles / stream.seconds,
            }
        )
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
