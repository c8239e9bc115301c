"""``expertile boards``: the boards, what each can hold, and how fast it was built."""

from pathlib import Path
from typing import Annotated

import typer

from expertile import options
from expertile.options import MODEL, FormatName
from expertile.output import check_writable, console, write_file, write_json

__all__ = ["command"]


def command(
    checkpoint: options.Checkpoint = MODEL,
    format: options.Format = FormatName.int4,
    json: options.Json = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the list here as a document.")] = None,
) -> None:
    """List boards: device, preset, capacity, speed of the last recorded build, and which model fits."""
    from rich.table import Table

    from expertile import board_list
    from sw_model.checkpoint import Checkpoint

    check_writable(json, markdown)
    source = Checkpoint.open(checkpoint)
    layer = source.moe_layer(source.moe_layers[0])
    found = board_list.rows(layer, format.value)
    model = f"`{checkpoint.resolve().name}` ({layer.n_experts} experts) at {format.value.upper()}"
    write_json(json, {"model": checkpoint.resolve().name, "format": format.value, "boards": found})
    if markdown is not None:
        write_file(markdown, lambda file: file.write(board_list.markdown(found, model).encode()))
    grid = Table(*board_list.BRIEF.values(), title=f"layer of {model}")
    for row in found:
        grid.add_row(*("-" if row[c] is None else str(row[c]) for c in board_list.BRIEF))
    console().print(grid)
