"""``expertile demo``: the shipped model speaks, its MoE layers on the Verilated hardware."""

from typing import Annotated

import typer

from expertile import options
from expertile.commands.generate import Temperature
from expertile.options import MODEL, ROOT, EngineName, FormatName
from expertile.output import check_writable, console, table, write_json

__all__ = ["command"]


def command(
    prompt: Annotated[
        str, typer.Option(help="The text to go on from.")
    ] = "The President of the United States",
    tokens: Annotated[int, typer.Option(min=1, help="Bytes to generate.")] = 48,
    format: options.Format = FormatName.int8,
    config: options.Config = "base",
    temperature: Temperature = 0.5,
    seed: options.Seed = 0,
    json: options.Json = None,
) -> None:
    """Generate a short text on Verilated RTL, each layer call checked against the golden model."""
    from expertile.commands.verilog import write_verilog
    from expertile.text import model_on, stream
    from sw_model.config import load_config

    check_writable(json)
    hardware = load_config(config)
    path = ROOT / "build" / "verilog" / "expertile.v"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_verilog(hardware, path)
    with model_on(MODEL, EngineName.verilator, format, hardware) as (decoder, moe):
        console().print(f"MoE layers on Verilated RTL ({hardware.tiles} tiles, {format.value}):\n")
        figures = stream(decoder, moe, prompt, tokens, temperature=temperature, seed=seed)
    figures |= {"engine": "verilator", "format": format.value, "config": hardware.name, "verilog": str(path)}
    write_json(json, figures)
    table(
        "",
        {
            "layer calls": f"{figures['layer_calls']}, each equal to the golden model bit for bit",
            "experts a token and layer": figures["experts_per_token"],
            "cycles a token and layer": figures["cycles_per_token"],
            f"cycles a token, {moe.layers} layers": figures["cycles_per_token"] * moe.layers,
            "MAC utilisation": f"{figures['mac_utilisation']:.1%}",
            "seconds": figures["seconds"],
            "Verilog": path,
        },
    )
