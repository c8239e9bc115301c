"""``expertile bench``: how fast MoE layers run on the hardware, and how fast that is simulated."""

from pathlib import Path
from typing import Annotated, Any

import typer

from expertile import options
from expertile.options import MODEL, ROOT
from expertile.output import console

__all__ = ["command"]

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
    mix: Annotated[
        bool,
        typer.Option(
            help="Instead: layers of very different shape on one array, each topology against the compiler's."
        ),
    ] = False,
    record: Annotated[bool, typer.Option(help="Add the figures to docs/bench-history.json.")] = False,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for bench.json and bench.md.", show_default="build")
    ] = ROOT / "build",
) -> None:
    """Measure the checkpoint's MoE layers on Verilated hardware, every result checked against golden.

    Figures that are worse than the last ones recorded are an error.
    """
    from datetime import date

    from sim import bench, bench_report
    from sw_model.errors import ExpertileError
    from sw_model.gate_file import load

    if mix and (gate is not None or record):
        raise ExpertileError("--mix measures layers of its own: leave out --gate and --record")
    if mix:
        _mix(config, output)
        return

    gates = None if gate is None else load(gate)
    rows = bench_report.join(bench.run(config, tokens, checkpoint))
    saved = None if gates is None else bench.run_gate(config, gates, 4 * tokens, checkpoint)
    bench_report.write(rows, output, saved)
    _show(rows, bench_report.COLUMNS, f"{rows[0]['layers']} layers of {rows[0]['model']}")
    if saved:
        _show(saved, _GATE_COLUMNS, "the gate: ratios to the same tokens without it")
    console().print(f"{output / 'bench.json'}, {output / 'bench.md'}", soft_wrap=True)
    if record:
        bench_report.record(rows, date.today().isoformat())
    elif worse := bench_report.regressions(rows):
        raise ExpertileError(f"{'; '.join(worse)}; --record if that is meant")


def _mix(config: str, output: Path) -> None:
    from rich.table import Table

    from expertile.output import write_json
    from sim.mix import FORMATS, MIX, measure
    from sw_model.config import load_config

    hardware, rows = load_config(config), []
    output.mkdir(parents=True, exist_ok=True)
    for fmt in FORMATS:
        found = measure(hardware, fmt)
        rows += found
        grid = Table("tiles a row", *(p.name for p in MIX), "cycles", "of the array", title=fmt)
        for row in found:
            name = "chosen" if row["split"] is None else str(1 << row["split"])
            cells = (*row["parts"].values(), row["cycles"], row["array_cycles"])
            grid.add_row(name, *(f"{c:,}" for c in cells))
        grid.add_section()
        ratios = (found[-1][f"{name}_ratio"] for name in ("cycles", "array_cycles"))
        grid.add_row("best fixed / chosen", *("" for _ in MIX), *(f"{r:.3f}" for r in ratios))
        console().print(grid)
    write_json(output / "bench-mix.json", rows)
    console().print(str(output / "bench-mix.json"), soft_wrap=True)


def _show(rows: list[dict[str, Any]], columns: dict[str, str], title: str) -> None:
    from rich.table import Table

    shown = {name: head for name, head in columns.items() if any(row.get(name) is not None for row in rows)}
    grid = Table(*shown.values(), title=title)
    for row in rows:
        cells = (row[name] for name in shown)
        grid.add_row(*(f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells))
    console().print(grid)
