"""``expertile energy``: what the counted work of a token costs, by component and technology."""

from pathlib import Path
from typing import Annotated, Any

import typer

from expertile import options
from expertile.options import MODEL, ROOT, FormatName
from expertile.output import check_writable, console, write_file, write_json

__all__ = ["command"]

_NAMES = {"cim": "in the macros", "sram": "on-chip SRAM", "dram": "DRAM"}


def command(
    checkpoint: options.Checkpoint = MODEL,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Text files.", show_default="built corpus, else the shipped excerpts"),
    ] = None,
    format: options.Format = FormatName.int4,
    config: options.Config = "base",
    gate: options.Gate = None,
    max_bytes: Annotated[int, typer.Option(min=2, help="Bytes a domain.")] = 128,
    technology: Annotated[
        list[str] | None,
        typer.Option(help="Sets of the energy table; may be repeated.", show_default="all, one by one"),
    ] = None,
    hit_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of routed experts' weights that are on chip.")
    ] = 1.0,
    macro: Annotated[
        str | None, typer.Option(help="Memory that a context is read from, as 8KB.", show_default="the set's")
    ] = None,
    sums: Annotated[
        str, typer.Option(help="Where a row's running sum lives: tile, buffer or on chip.")
    ] = "tile",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the pictures.")] = None,
    json: options.Json = None,
) -> None:
    """Energy a token of all MoE layers: weights in the macros, in on-chip SRAM, in DRAM."""
    from expertile import energy_pictures
    from expertile.text import layer_work
    from sw_model.config import load_config
    from sw_model.energy.model import Conditions
    from sw_model.energy.report import report
    from sw_model.energy.table import technologies
    from sw_model.energy.table import technology as named
    from sw_model.evaluation import default_texts, read_texts
    from sw_model.gate_file import load

    check_writable(json)
    hardware = load_config(config)
    sets = [named(name) for name in technology or technologies()]
    conditions = Conditions(hit_rate=hit_rate, macro=macro, sums=sums, shared=hardware.tiles)
    texts = read_texts(text, max_bytes) if text else default_texts(ROOT, max_bytes)
    with console(stderr=True).status("running the text"):
        work, _ = layer_work(
            checkpoint, texts, format, hardware, None if gate is None else load(gate), max_bytes
        )
    told = {tech.name: report(work, tech, conditions) for tech in sets}
    for name, figures in told.items():
        _table(name, figures)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        for name, figures in told.items():
            write_file(output / f"energy-{name}.png", lambda f, t=figures: energy_pictures.bars(t, f))
            write_file(output / f"sweep-{name}.png", lambda f, t=figures: energy_pictures.sweeps(t, f))
    tokens = int(work.tokens)
    write_json(
        json,
        {
            "checkpoint": checkpoint.name,
            "format": format.value,
            "config": hardware.name,
            "tokens": tokens,
            "counts_per_token": {k: v / tokens for k, v in work.figures().items()},
            "technologies": told,
        },
    )


def _table(name: str, figures: dict[str, Any]) -> None:
    from rich.table import Table

    grid = Table(
        "nJ a token, weights", *_NAMES.values(), title=f"{name}: {figures['title']}", title_justify="left"
    )
    systems = [figures["systems"][s] for s in _NAMES]
    for part in systems[0]["parts"]:
        grid.add_row(part, *(f"{s['parts'][part]:,.2f}" for s in systems))
        if part == "misses":
            grid.add_section()
            grid.add_row("memory accesses", *(f"{s['memory']:,.2f}" for s in systems))
            grid.add_section()
    grid.add_section()
    grid.add_row("all", *(f"{s['all']:,.2f}" for s in systems))
    for key, label in (("memory", "memory accesses saved"), ("all", "all saved")):
        saved = [figures["saved"][s][key] for s in ("sram", "dram")]
        grid.add_row(label, "", *(f"{100 * s:.1f} %" for s in saved))
    console().print(grid)
