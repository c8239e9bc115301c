"""``expertile bench``: speed and accuracy of every MoE layer of a checkpoint, on held-out text."""

from typing import Annotated

import typer

from expertile import options
from expertile.options import MODEL, EngineName, FormatName
from expertile.output import check_writable, console, write_json

__all__ = ["command"]


def command(
    checkpoint: options.Checkpoint = MODEL,
    tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of the held-out text beside the checkpoint.")
    ] = 256,
    engine: options.Engine = EngineName.verilator,
    config: options.Config = "base",
    json: options.Json = None,
) -> None:
    """Run every layer in every format on the hidden states of held-out text."""
    from rich.table import Table

    from expertile.commands.layer import measure
    from sim.stimulus import heldout, layer_inputs
    from sw_model.checkpoint import Checkpoint
    from sw_model.config import load_config

    check_writable(json)
    hardware = load_config(config)
    model = Checkpoint.open(checkpoint)
    inputs = layer_inputs(model, heldout(model), tokens)
    rows = []
    for n in model.moe_layers:
        layer = model.moe_layer(n)
        for fmt in FormatName:
            _, figures = measure(layer, f"layer {n}", inputs[n], engine, fmt, hardware)
            rows.append({"layer": n, **figures})
    write_json(json, {"checkpoint": str(checkpoint), "rows": rows})
    columns = {
        "layer": "layer",
        "format": "format",
        "sqnr_db": "SQNR, dB",
        "routing_agreement": "same experts",
        "experts_per_token": "experts",
        "cycles_per_token": "cycles",
        "mac_utilisation": "MACs busy",
    }
    title = f"{engine.value}, configuration {hardware.name}, {tokens} tokens a layer; figures a token"
    grid = Table(*columns.values(), title=title)
    for row in rows:
        cells = (row[name] for name in columns)
        grid.add_row(*("" if c is None else f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells))
    console().print(grid)
