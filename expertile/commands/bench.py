"""``expertile bench``: how fast a MoE layer runs on the hardware, and how fast that is simulated."""

from pathlib import Path
from typing import Annotated

import typer

from expertile import options
from expertile.options import MODEL, ROOT
from expertile.output import console

__all__ = ["command"]

_COLUMNS = {
    "format": "format",
    "pattern": "tokens come",
    "tokens": "tokens",
    "cycles_per_token": "cycles a token",
    "macs_per_cycle": "MACs a cycle",
    "mac_utilisation": "utilisation",
    "simulated_tokens_per_s": "simulated tokens/s",
}
_GATE_COLUMNS = {
    "layer": "layer",
    "experts_per_token": "experts a token",
    "empty": "empty",
    "cycles_per_token": "cycles a token",
    "cycles_ratio": "cycles",
    "routed_cycles_ratio": "routed cycles",
    "routed_reads_ratio": "routed reads",
    "latency_ratio": "cycles, nothing removed",
}


def command(
    checkpoint: options.Checkpoint = MODEL,
    tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of the held-out text beside the checkpoint.")
    ] = 64,
    config: options.Config = "base",
    gate: Annotated[
        Path | None, typer.Option(help="Also measure what this gate.json saves, layer by layer.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for bench.json and bench.md.", show_default="build")
    ] = ROOT / "build",
) -> None:
    """Measure the checkpoint's first MoE layer on Verilated hardware, every result checked against golden."""
    from rich.table import Table

    from sim import bench
    from sw_model.gate_file import load

    gates = None if gate is None else load(gate)
    rows = bench.run(config, tokens, checkpoint)
    saved = None if gates is None else bench.run_gate(config, gates, 4 * tokens, checkpoint)
    bench.write(rows, output, saved)
    grid = Table(*_COLUMNS.values(), title=f"configuration {rows[0]['config']}")
    for row in rows:
        cells = (row[name] for name in _COLUMNS)
        grid.add_row(*(f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells))
    console().print(grid)
    if saved:
        grid = Table(*_GATE_COLUMNS.values(), title="the gate: ratios to the same tokens without it")
        for row in saved:
            cells = (row[name] for name in _GATE_COLUMNS)
            grid.add_row(*(f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells))
        console().print(grid)
    console().print(f"{output / 'bench.json'}, {output / 'bench.md'}", soft_wrap=True)
