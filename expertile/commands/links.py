"""``expertile links``: how long weights and tokens take over each way to reach a board."""

from typing import Annotated

import typer

from expertile import options
from expertile.options import MODEL, FormatName
from expertile.output import check_writable, console, write_json

__all__ = ["command"]


def command(
    board: options.BoardName = "orangecrab_85f",
    config: options.BoardConfig = None,
    checkpoint: options.Checkpoint = MODEL,
    layer: Annotated[
        int | None, typer.Option(help="The MoE layer.", show_default="the checkpoint's first")
    ] = None,
    format: options.Format = FormatName.int4,
    tokens: Annotated[int, typer.Option(min=1, help="Random tokens in the stream.")] = 8,
    part: Annotated[
        int, typer.Option(min=1, help="KiB of weights to time; a layer is scaled from them.")
    ] = 16,
    seed: options.Seed = 0,
    json: options.Json = None,
) -> None:
    """Time weights and tokens over AXI, UART and SPI, in simulated time; every result is checked."""
    import numpy as np
    from rich.table import Table

    from expertile.standalone import resident
    from hw.boards import flow
    from sim import link_speed
    from sw_model.checkpoint import Checkpoint
    from sw_model.config import load_config
    from sw_model.quantised import quantise

    check_writable(json)
    target = flow.find(board)
    hardware = load_config(config or target.preset)
    source = Checkpoint.open(checkpoint)
    number = source.moe_layers[0] if layer is None else layer
    quantised = quantise(source.moe_layer(number), format.value, hardware)
    image = resident([quantised], [number], hardware)
    x = np.random.default_rng(seed).standard_normal((tokens, quantised.hidden)).astype(np.float32)
    rows = []
    with console(stderr=True).status("building the board") as status:
        for row in link_speed.measure(target, hardware, quantised, image, x, part * 1024):
            rows.append(row)
            status.update(f"{row['link']} done")
    size = sum(packet.nbytes for packet in image.packets())
    facts = {"board": board, "config": hardware.name, "clock_mhz": target.clock_mhz, "baud": target.baud}
    write_json(json, {**facts, "layer": number, "layer_bytes": size, "tokens": tokens, "links": rows})
    grid = Table(
        *link_speed.COLUMNS.values(),
        title=f"{board}, {hardware.name}, {target.clock_mhz:g} MHz; layer {number}: {size / 1000:.0f} kB",
    )
    for row in rows:
        grid.add_row(*(f"{v:.4g}" if isinstance(v, float) else v for v in row.values()))
    console().print(grid)
