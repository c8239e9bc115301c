"""``expertile fpga``: a bitstream for a board, and what it costs."""

from pathlib import Path
from typing import Annotated

import typer

from expertile.output import console, table

__all__ = ["command"]


def command(
    board: Annotated[str, typer.Option(help="Name of the board, as ulx3s_85f.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the bitstream and report.json.")],
    config: Annotated[
        str | None, typer.Option(help="Hardware configuration.", show_default="the board's own")
    ] = None,
) -> None:
    """Synthesise, place and route, and pack a bitstream."""
    from hw.boards import flow
    from sw_model.config import load_config
    from sw_model.errors import ExpertileError

    if board not in flow.BOARDS:
        raise ExpertileError(
            f"board {board!r}: no such board; choose one of {', '.join(sorted(flow.BOARDS))}"
        )
    hardware = load_config(config or board)
    if output.exists() and not output.is_dir():
        raise ExpertileError(f"{output}: is a file: name a folder")
    output.mkdir(parents=True, exist_ok=True)
    with console(stderr=True).status("starting") as status:
        report = flow.build(board, hardware, output, status.update)
    table(
        f"{board}, configuration {hardware.name}",
        {k: v for k, v in report.items() if not isinstance(v, dict)},
    )
    console().print(f"bitstream and report: {output}", soft_wrap=True)
