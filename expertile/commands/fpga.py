"""``expertile fpga``: a bitstream for a board, and what it costs."""

from pathlib import Path
from typing import Annotated

import typer

from expertile import options
from expertile.options import MODEL, FormatName
from expertile.output import check_writable, console, table

__all__ = ["command"]


def command(
    board: options.BoardName,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the bitstream and report.json.")],
    config: options.BoardConfig = None,
    standalone: options.Standalone = False,
    layer: options.BakedLayer = None,
    checkpoint: options.Checkpoint = MODEL,
    format: options.Format = FormatName.int4,
    gate: options.Gate = None,
    record: Annotated[bool, typer.Option(help="Keep the figures in docs/boards.json.")] = False,
) -> None:
    """Synthesise, place and route, and pack a bitstream."""
    from expertile import board_list
    from expertile.standalone import baked
    from hw.boards import flow
    from sw_model.config import load_config
    from sw_model.errors import ExpertileError

    target = flow.find(board)
    if output.exists() and not output.is_dir():
        raise ExpertileError(f"{output}: is a file: name a folder")
    if standalone or layer is not None:
        hardware, image = baked(checkpoint, layer, format.value, config, target.preset, gate)
    else:
        hardware, image = load_config(config or target.preset), None
    if record:
        check_writable(board_list.RECORDS)
    output.mkdir(parents=True, exist_ok=True)
    with console(stderr=True).status("starting") as status:
        report = flow.build(board, hardware, output, status.update, image)
    if record:
        board_list.record(report)
    figures = {k: v for k, v in report.items() if not isinstance(v, dict | list)}
    table(f"{board}, configuration {hardware.name}", figures)
    console().print(f"bitstream and report: {output}", soft_wrap=True)
