"""``expertile fpga``: a bitstream for a board, and what it costs."""

from pathlib import Path
from typing import Annotated

import typer

from expertile import options
from expertile.options import MODEL, FormatName
from expertile.output import console, table

__all__ = ["command"]


def command(
    board: Annotated[str, typer.Option(help="Name of the board, as ulx3s_85f.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the bitstream and report.json.")],
    config: Annotated[
        str | None, typer.Option(help="Hardware configuration.", show_default="the board's own")
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Bake this MoE layer's weights in; else they are loaded at run time.")
    ] = None,
    checkpoint: options.Checkpoint = MODEL,
    format: options.Format = FormatName.int4,
    record: Annotated[bool, typer.Option(help="Keep the figures in docs/boards.json.")] = False,
) -> None:
    """Synthesise, place and route, and pack a bitstream."""
    from expertile import board_list
    from hw.boards import flow
    from sw_model.checkpoint import Checkpoint
    from sw_model.compiler import compile
    from sw_model.config import load_config
    from sw_model.errors import ExpertileError
    from sw_model.quantised import quantise

    target = flow.find(board)
    if output.exists() and not output.is_dir():
        raise ExpertileError(f"{output}: is a file: name a folder")
    hardware = load_config(config or target.preset)
    image = None
    if layer is not None:
        image = compile(
            quantise(Checkpoint.open(checkpoint).moe_layer(layer), format.value, hardware), hardware
        )
    output.mkdir(parents=True, exist_ok=True)
    with console(stderr=True).status("starting") as status:
        report = flow.build(board, hardware, output, status.update, image)
    if record:
        board_list.record(report)
    figures = {k: v for k, v in report.items() if not isinstance(v, dict | list)}
    table(f"{board}, configuration {hardware.name}", figures)
    console().print(f"bitstream and report: {output}", soft_wrap=True)
