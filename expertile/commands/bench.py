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


def command(
    checkpoint: options.Checkpoint = MODEL,
    tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of the held-out text beside the checkpoint.")
    ] = 64,
    config: options.Config = "base",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for bench.json and bench.md.", show_default="build")
    ] = ROOT / "build",
) -> None:
    """Measure the checkpoint's first MoE layer on Verilated hardware, every result checked against golden."""
    from rich.table import Table

    from sim import bench

    rows = bench.run(config, tokens, checkpoint)
    bench.write(rows, output)
    grid = Table(*_COLUMNS.values(), title=f"configuration {rows[0]['config']}")
    for row in rows:
        cells = (row[name] for name in _COLUMNS)
        grid.add_row(*(f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells))
    console().print(grid)
    console().print(f"{output / 'bench.json'}, {output / 'bench.md'}", soft_wrap=True)
