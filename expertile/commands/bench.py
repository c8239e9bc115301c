"""``expertile bench``: speed and accuracy of every MoE layer of a checkpoint, on held-out text."""

from typing import Annotated

import typer

from expertile import options
from expertile.options import MODEL, ROOT, EngineName, FormatName
from expertile.output import check_writable, console, write_json

__all__ = ["command"]


def command(
    checkpoint: options.Checkpoint = MODEL,
    tokens: Annotated[int, typer.Option(min=1, help="Bytes of held-out text.")] = 256,
    engine: options.Engine = EngineName.verilator,
    config: options.Config = "base",
    json: options.Json = None,
) -> None:
    """Run every layer in every format on the hidden states of held-out text."""
    from rich.table import Table

    from expertile.commands.layer import measure
    from sw_model.checkpoint import Checkpoint
    from sw_model.config import load_config
    from sw_model.decoder import layer_inputs
    from sw_model.evaluation import default_texts

    check_writable(json)
    hardware = load_config(config)
    model = Checkpoint.open(checkpoint)
    texts = default_texts(ROOT, tokens)
    each = max(1, tokens // len(texts))
    inputs = layer_inputs(model, [parts[0][:each] for parts in texts.values()])
    rows = []
    for n in model.moe_layers:
        layer = model.moe_layer(n)
        for fmt in FormatName:
            _, figures = measure(layer, f"layer {n}", inputs[n], engine, fmt, hardware)
            rows.append({"layer": n, **figures})
    write_json(json, {"checkpoint": str(checkpoint), "rows": rows})
    columns = (
        "layer",
        "format",
        "tokens",
        "sqnr_db",
        "routing_agreement",
        "cycles_per_token",
        "mac_utilisation",
    )
    grid = Table(*columns, title=f"{engine.value}, configuration {hardware.name}")
    for row in rows:
        grid.add_row(
            *(
                "" if row[c] is None else f"{row[c]:.4g}" if isinstance(row[c], float) else str(row[c])
                for c in columns
            )
        )
    console().print(grid)
