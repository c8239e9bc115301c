"""``expertile serve``: a simulated board behind a serial port, for any host software."""

import threading
from contextlib import closing
from typing import Annotated

import typer

from expertile import options
from expertile.output import console

__all__ = ["command"]


def command(
    board: Annotated[str, typer.Option(help="Name of the board.")] = "ulx3s_85f",
    config: Annotated[
        str | None, typer.Option(help="Hardware configuration.", show_default="the board's own")
    ] = None,
    tcp: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="TCP port of the loopback interface; 0: any that is free.",
            show_default="a pseudo-terminal",
        ),
    ] = None,
    baud: Annotated[
        int | None,
        typer.Option(min=300, help="Bits a simulated second.", show_default="the fastest the UART takes"),
    ] = None,
    seed: options.Seed = 0,
) -> None:
    """Simulate a board, pins and all, until interrupted; hosts come and go as with a real one."""
    from hw.boards import flow
    from sim.board import open_board
    from sim.server import Listener, Terminal, serve
    from sw_model.config import load_config

    target = flow.find(board)
    hardware = load_config(config or target.preset)
    with closing(Terminal() if tcp is None else Listener(tcp)) as door:
        line = open_board(target, hardware, baud=baud, seed=seed)
        console().print(f"{board}, configuration {hardware.name}: {door.name}", soft_wrap=True)
        try:
            serve(line, door, threading.Event())
        except KeyboardInterrupt:
            console().print("switched off")
