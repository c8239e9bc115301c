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
    config: Annotated[
        str,
        typer.Option(
            help="Hardware configuration: a preset's name, a TOML file, or auto: base, or one that fits."
        ),
    ] = "auto",
    bits: Annotated[
        float | None, typer.Option(help="Format auto: most stored bits a weight, scales included.")
    ] = None,
    sqnr: Annotated[
        float | None, typer.Option(help="Format auto: least SQNR of the layer's output, in dB.")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Tokens (.npy like --input) that the quantiser's scales and formats are chosen on."
        ),
    ] = None,
    gate: options.Gate = None,
    stalls: options.Stalls = 0.0,
    seed: options.Seed = 0,
    json: options.Json = None,
) -> None:
    """Run one MoE layer. RTL engines must equal the golden model bit for bit, else exit code 1."""
    from sw_model.auto_format import choose_formats, importance_of
    from sw_model.checkpoint import Checkpoint
    from sw_model.config import load_config
    from sw_model.errors import ExpertileError
    from sw_model.fit import fitting_config
    from sw_model.gate_file import load

    check_writable(output, json)
    if format is not FormatName.auto and (bits is not None or sqnr is not None):
        raise ExpertileError("--bits and --sqnr are budgets of --format auto: add it, or leave them out")
    given = None if config == "auto" else load_config(config)
    admission = None if gate is None else load(gate).gate(layer)
    moe = Checkpoint.open(checkpoint).moe_layer(layer)
    x = read_tokens(input, moe.hidden)
    seen = None if calibration is None else read_tokens(calibration, moe.hidden)
    formats: Any = format.value
    chosen = {}
    if format is FormatName.auto:
        hardware = given if given is not None else fitting_config(moe, FormatName.int8.value)
        seen = x if seen is None else seen
        picked = choose_formats(moe, seen, hardware, most_bits=bits, least_sqnr_db=sqnr)
        formats = picked.formats
        chosen = {"bits_per_weight": picked.bits, "formats": [vars(f) for f in formats]}
    hardware = given if given is not None else fitting_config(moe, formats)
    importance = importance_of(moe, seen) if seen is not None else None
    y, figures = measure(
        moe,
        f"layer {layer}",
        x,
        engine,
        formats,
        hardware,
        importance=importance,
        gate=admission,
        stalls=stalls,
        seed=seed,
    )
    write_npy(output, y)
    write_json(json, {"layer": layer, **figures, **chosen})
    shown = {f"expert {e}": f"{f['gate_up']}, {f['down']}" for e, f in enumerate(chosen.get("formats", []))}
    table(f"layer {layer} of {checkpoint}", {**figures, **shown, "output": output})


def measure(
    moe: Any, name: str, x: Any, engine: EngineName, formats: Any, config: Any, **options: Any
) -> Any:
    """Run ``moe`` on ``x``: the output, and its figures against the float64 reference."""
    import numpy as np

    from expertile.engines import LayerEngine
    from sw_model import reference

    runner = LayerEngine(moe, name, engine, formats, config, **options)
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
        "format": "float64" if is_float else formats if isinstance(formats, str) else "auto",
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
