"""``expertile serve``: a simulated board behind a serial port, for any host software."""

import signal
import threading
from contextlib import closing
from typing import Annotated

import typer

from expertile import options
from expertile.options import MODEL, FormatName
from expertile.output import console

__all__ = ["command"]


def command(
    board: options.BoardName = "ulx3s_85f",
    config: options.BoardConfig = None,
    standalone: options.Standalone = False,
    layer: options.BakedLayer = None,
    checkpoint: options.Checkpoint = MODEL,
    format: options.Format = FormatName.int4,
    gate: options.Gate = None,
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
    from expertile.standalone import baked
    from hw.boards import flow
    from sim.board import open_board
    from sim.server import Listener, Terminal, serve
    from sw_model.config import load_config

    target = flow.find(board)
    if standalone or layer is not None:
        hardware, image = baked(checkpoint, layer, format.value, config, target.preset, gate)
    else:
        hardware, image = load_config(config or target.preset), None
    with closing(Terminal() if tcp is None else Listener(tcp)) as door:
        line = open_board(target, hardware, image=image, baud=baud, seed=seed)
        console().print(f"{board}, configuration {hardware.name}: {door.name}", soft_wrap=True)
        # Also where a shell started this in the background, which lets SIGINT be ignored.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        try:
            serve(line, door, threading.Event())
        except KeyboardInterrupt:
            console().print("switched off")
