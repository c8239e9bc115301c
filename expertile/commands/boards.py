"""``expertile boards``: the boards, what each can hold, and how fast it was built."""

from pathlib import Path
from typing import Annotated

import typer

from expertile import options
from expertile.options import ROOT, FormatName
from expertile.output import check_writable, console, write_file, write_json

__all__ = ["command"]

MODELS = ROOT / "models"


def command(
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of a model that should fit; repeat for more.", show_default="those shipped"
        ),
    ] = None,
    format: options.Format = FormatName.int4,
    json: options.Json = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the list here as a document.")] = None,
) -> None:
    """List boards: device, preset, capacity, speed of the last recorded build, and which models fit."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from expertile import board_list
    from sw_model.checkpoint import Checkpoint
    from sw_model.errors import ExpertileError

    check_writable(json, markdown)
    if format in (FormatName.auto, FormatName.native):
        raise ExpertileError(
            f"--format {format.value}: name one format for all: boards are told what it takes"
        )
    layers = {}
    for folder in checkpoint or sorted(path.parent for path in MODELS.glob("*/config.json")):
        if (name := folder.resolve().name) in layers:
            raise ExpertileError(f"{folder}: another model is called {name!r} too: rename its folder")
        source = Checkpoint.open(folder)
        layers[name] = source.moe_layer(source.moe_layers[0])
    found = board_list.rows(layers, format.value)
    write_json(json, {"format": format.value, "boards": found})
    if markdown is not None:
        text = board_list.markdown(found, format.value)
        write_file(markdown, lambda file: file.write(text.encode()))
    grid = Table(title=f"layers at {format.value.upper()}", box=SIMPLE_HEAD, padding=0, collapse_padding=True)
    for head in (*board_list.BRIEF.values(), *layers):
        grid.add_column(head, no_wrap=True)
    for row in found:
        grid.add_row(*board_list.cells(row, board_list.BRIEF, "-"))
    console().print(grid)
