"""``expertile layer``: one MoE layer on any engine, tokens in from a file, tokens out to a file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from expertile import options
from expertile.options import MODEL, EngineName, FormatName
from expertile.output import check_writable, table, write_json, write_npy

__all__ = ["command", "measure", "read_tokens"]


def command(
    input: Annotated[Path, typer.Option(help="Tokens: .npy, float32, shape (tokens, hidden).")],
    output: Annotated[
        Path, typer.Option(help="The block's output goes here: .npy, float32, the same shape.")
    ],
    layer: Annotated[int, typer.Option(help="Number of the layer, from 0.")],
    checkpoint: options.Checkpoint = MODEL,
    format: options.Format = FormatName.int8,
    engine: options.Engine = EngineName.golden,
    config: options.Config = "base",
    stalls: options.Stalls = 0.0,
    seed: options.Seed = 0,
    json: options.Json = None,
) -> None:
    """Run one MoE layer. RTL engines must equal the golden model bit for bit, else exit code 1."""
    from sw_model.checkpoint import Checkpoint
    from sw_model.config import load_config

    check_writable(output, json)
    hardware = load_config(config)
    moe = Checkpoint.open(checkpoint).moe_layer(layer)
    x = read_tokens(input, moe.hidden)
    y, figures = measure(moe, f"layer {layer}", x, engine, format, hardware, stalls=stalls, seed=seed)
    write_npy(output, y)
    write_json(json, {"layer": layer, **figures})
    table(f"layer {layer} of {checkpoint}", {**figures, "output": output})


def measure(
    moe: Any, name: str, x: Any, engine: EngineName, fmt: FormatName, config: Any, **stalls: Any
) -> Any:
    """Run ``moe`` on ``x``: the output, and its figures against the float64 reference."""
    import numpy as np

    from expertile.engines import LayerEngine
    from sw_model import reference

    runner = LayerEngine(moe, name, engine, fmt, config, **stalls)
    try:
        result = runner.run(x)
    finally:
        runner.close()
    exact = reference.run(moe, x)
    noise = float(np.sum((exact.y - result.y) ** 2))
    signal = float(np.sum(exact.y**2))
    same = np.sort(result.experts, axis=1) == np.sort(exact.experts, axis=1)
    is_float = engine is EngineName.reference
    return result.y, {
        "engine": engine.value,
        "format": "float64" if is_float else fmt.value,
        "config": None if is_float else config.name,
        "tokens": len(x),
        **result.tally.figures(),
        "sqnr_db": 10 * float(np.log10(signal / noise)) if signal and noise else None,
        "routing_agreement": float(same.all(axis=1).mean()),
    }


def read_tokens(path: Path, hidden: int) -> Any:
    """x float32 [T, hidden] from a .npy file; its header is believed only as far as the file is long.

    Raises
    ------
    ExpertileError
        No such file, not .npy, another dtype or shape, no tokens, NaN or infinity.
    """
    import numpy as np

    from sw_model.errors import ExpertileError
    from sw_model.golden import check_input

    if not path.is_file():
        raise ExpertileError(f"{path}: no such file: --input takes a .npy of float32 [tokens, {hidden}]")
    try:
        mapped = np.lib.format.open_memmap(path, mode="r")  # never unpickles, allocates nothing
    except OSError as error:
        raise ExpertileError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a hostile header raises whatever Python's own parser raises
        raise ExpertileError(f"{path}: no whole .npy file ({' '.join(str(error).split())[:90]})") from error
    try:
        if mapped.dtype == np.float32 and mapped.ndim == 2 and not len(mapped):
            raise ExpertileError(f"no tokens: float32 [tokens, {hidden}] with one token or more is needed")
        check_input(mapped, hidden)
    except ExpertileError as error:
        raise ExpertileError(f"{path}: {error}") from None
    return np.array(mapped, order="C")
