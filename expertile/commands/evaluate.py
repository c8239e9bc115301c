"""``expertile eval``: held-out bits per byte, by domain, on any engine."""

from pathlib import Path
from typing import Annotated

import typer

from expertile import options
from expertile.options import MODEL, ROOT, EngineName, FormatName
from expertile.output import check_writable, console, write_json

__all__ = ["command"]


def command(
    checkpoint: options.Checkpoint = MODEL,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text files; may be repeated.", show_default="built corpus, else the shipped excerpts"
        ),
    ] = None,
    engine: options.Engine = EngineName.golden,
    format: options.Format = FormatName.int8,
    config: options.Config = "base",
    gate: options.Gate = None,
    attention: options.Attention = 0,
    context: Annotated[
        int, typer.Option(min=0, help="Window, in bytes; 0: all that the model has, 1024 at most.")
    ] = 0,
    stride: Annotated[
        int, typer.Option(min=0, help="Bytes that a window advances; 0: half the context.")
    ] = 0,
    max_bytes: Annotated[int, typer.Option(min=0, help="Bytes a domain; 0: all.")] = 16384,
    json: options.Json = None,
) -> None:
    """Measure bits per byte, by domain or by file. Each byte is predicted once."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    from expertile.text import model_on
    from sw_model.config import load_config
    from sw_model.evaluation import default_texts, evaluate, read_texts
    from sw_model.gate_file import load

    check_writable(json)
    hardware = load_config(config)
    limit = max_bytes or None
    texts = read_texts(text, limit) if text else default_texts(ROOT, limit)
    admission = None if gate is None else load(gate)
    with model_on(checkpoint, engine, format, hardware, gate=admission) as (decoder, moe):
        decoder.sparse_attention = attention
        context = context or min(1024, decoder.shape.positions)
        stride = stride or max(1, context // 2)
        screen = console(stderr=True)
        bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(),
            console=screen,
            transient=True,
            disable=not screen.is_terminal,
        )
        with bars:
            task = bars.add_task("", total=sum(len(part) for parts in texts.values() for part in parts))

            def show(domain: str, count: int) -> None:
                bars.update(task, description=domain, advance=count)

            scores = evaluate(decoder, texts, context=context, stride=stride, progress=show)
    mean = sum(score.bits_per_byte for score in scores.values()) / len(scores)
    is_float, figures = engine is EngineName.reference, moe.tally.figures()
    write_json(
        json,
        {
            "engine": engine.value,
            "format": "float64" if is_float else format.value,
            "config": None if is_float else hardware.name,
            "attention": attention,
            "context": context,
            "stride": stride,
            "bits_per_byte": {name: score.bits_per_byte for name, score in scores.items()},
            "bytes": {name: score.count for name, score in scores.items()},
            "mean_bits_per_byte": mean,
            **{k: figures[k] for k in ("mean_experts", "p_empty", "removed_by_level")},
        },
    )
    what = engine.value if is_float else f"{engine.value} {format.value}"
    what += f", attention {attention}" if attention else ""
    grid = Table("domain", "bytes", "bits per byte", title=f"{what}, context {context}, stride {stride}")
    for name, score in scores.items():
        grid.add_row(name, f"{score.count:,}", f"{score.bits_per_byte:.4f}")
    grid.add_section()
    grid.add_row("mean", f"{sum(score.count for score in scores.values()):,}", f"{mean:.4f}")
    console().print(grid)
    if admission is not None:
        console().print(
            f"gated: {figures['mean_experts']:.3f} experts a token and layer, "
            f"none for {figures['p_empty']:.2%}; removed {figures['removed_by_level']}"
        )
