"""``expertile generate``: text from a byte-level checkpoint, MoE layers on the chosen engine."""

from typing import Annotated, Any

import typer
from rich.table import Table

from driver.pipes import BAUD
from expertile import options
from expertile.options import MODEL, EngineName, FormatName
from expertile.output import check_writable, console, table, write_json
from sw_model.errors import ExpertileError

__all__ = ["Temperature", "command"]

Temperature = Annotated[float, typer.Option(min=0, max=10, help="0 takes the likeliest byte.")]


def command(
    prompt: Annotated[str, typer.Option(help="The text to go on from.")],
    tokens: Annotated[int, typer.Option(min=1, help="Bytes to generate.")] = 200,
    checkpoint: options.Checkpoint = MODEL,
    engine: options.Engine = EngineName.golden,
    format: options.Format = FormatName.int8,
    config: options.Config = "base",
    gate: options.Gate = None,
    energy_budget: Annotated[
        float | None, typer.Option(min=0.001, help="nJ a token, kept by each layer's governor; with --gate.")
    ] = None,
    budget_from: Annotated[
        int | None, typer.Option(min=0, help="Token that the budget begins with.", show_default="the middle")
    ] = None,
    technology: Annotated[str, typer.Option(help="Set of the energy table for the budget.")] = "cacti22",
    port: Annotated[
        list[str] | None,
        typer.Option(
            help="A device that runs MoE layers, as many as its configuration holds: /dev/ttyUSB0, "
            "sim://HOST:PORT, or LAYER=... for that one. Repeat for more. Other layers stay on golden."
        ),
    ] = None,
    baud: options.Baud = BAUD,
    temperature: Temperature = 0.7,
    stalls: options.Stalls = 0.0,
    seed: options.Seed = 0,
    json: options.Json = None,
) -> None:
    """Generate text. What simulated hardware or a device computes is checked against the golden model."""
    from expertile.governed import GovernedDecoder
    from expertile.text import model_on, stream
    from sw_model.config import load_config
    from sw_model.energy.estimate import estimate
    from sw_model.energy.model import Conditions
    from sw_model.energy.table import technology as named
    from sw_model.gate_file import load

    check_writable(json)
    hardware = load_config(config)
    admission = None if gate is None else load(gate)
    budget = None
    if energy_budget is not None:
        begin = tokens // 2 if budget_from is None else budget_from
        if begin >= tokens:
            raise ExpertileError(f"--budget-from {begin}: the text has {tokens} tokens; give less")
        tech, conditions, whole = named(technology), Conditions(shared=hardware.tiles), energy_budget
        budget = (
            lambda layers: estimate(tech, conditions, whole / layers),
            begin,
        )
    if port and engine is not EngineName.golden:
        raise ExpertileError(f"--port runs beside the golden engine: leave out --engine {engine.value}")
    running = model_on(
        checkpoint,
        engine,
        format,
        hardware,
        gate=admission,
        budget=budget,
        ports=port or (),
        baud=baud,
        stalls=stalls,
        seed=seed,
    )
    governed, modes = None, []
    with running as (decoder, moe):
        figures = stream(decoder, moe, prompt, tokens, temperature=temperature, seed=seed)
        if isinstance(decoder, GovernedDecoder):
            governed = decoder.figures()
            with model_on(checkpoint, EngineName.golden, format, hardware, gate=admission) as (free, _):
                modes = decoder.modes(free)
            figures |= {
                "technology": technology,
                "governor": governed | {"modes": modes, "trace": decoder.trace},
            }
    is_float = engine is EngineName.reference
    figures |= {
        "engine": engine.value,
        "format": "float64" if is_float else format.value,
        "config": None if is_float else hardware.name,
    }
    write_json(json, figures)
    table("", {k: v for k, v in figures.items() if k not in ("prompt", "text", "governor")})
    if governed is not None:
        table("energy", governed)
    if modes:
        _show(modes)


def _show(modes: list[dict[str, Any]]) -> None:
    """Energy and quality by mode."""
    grid = Table(*(key.replace("_", " ") for key in modes[0]), title="governor's modes")
    for row in modes:
        grid.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    console().print(grid)
