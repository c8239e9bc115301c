"""``expertile calibrate``: the three-level gate of a checkpoint, from text or from a layer's inputs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from expertile import options
from expertile.options import MODEL, ROOT, FormatName
from expertile.output import check_writable, console, write_file

__all__ = ["calibration_texts", "command"]


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="The gate goes here, as JSON.")],
    checkpoint: options.Checkpoint = MODEL,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text files, one a domain; may be repeated. The last quarter of each is held out.",
            show_default="built corpus (validation and test split), else the shipped excerpts",
        ),
    ] = None,
    activations: Annotated[
        Path | None, typer.Option(help="Inputs of one layer instead: .npy, float32, shape (tokens, hidden).")
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="The layer of --activations.", show_default="the first MoE layer")
    ] = None,
    target_experts: Annotated[float, typer.Option(help="Mean routed experts a token.")] = 1.2,
    format: options.Format = FormatName.int8,
    config: options.Config = "base",
    level1: Annotated[
        float, typer.Option(min=0, max=1, help="Share of tokens, the least dense, that lose a candidate.")
    ] = 0.01,
    level2: Annotated[
        float, typer.Option(min=0, max=1, help="Share of candidates, the quietest in their domain, that go.")
    ] = 0.005,
    cost_weight: Annotated[
        float, typer.Option("--lambda", min=0, max=100, help="Octaves that one mean expert's cycles weigh.")
    ] = 0.25,
    density: Annotated[
        Path | None, typer.Option(help="Trained density rows (safetensors), instead of fitted ones.")
    ] = None,
    max_bytes: Annotated[
        int, typer.Option(min=16, help="Bytes a domain to calibrate on; half as many are measured on.")
    ] = 4096,
) -> None:
    """Calibrate the gate, and print what it does on tokens that it was not calibrated on."""
    from dataclasses import replace

    from sw_model.calibration import Settings
    from sw_model.checkpoint import Checkpoint
    from sw_model.config import load_config
    from sw_model.errors import ExpertileError
    from sw_model.gate_file import dump
    from sw_model.model_gate import calibrate_activations, calibrate_text, measure, measure_activations

    check_writable(output)
    if activations is not None and (text or density):
        raise ExpertileError("--activations come alone: leave out --text and --density")
    if activations is None and layer is not None:
        raise ExpertileError("--layer says which layer --activations are of: text calibrates all layers")
    if format is FormatName.auto:
        raise ExpertileError("format 'auto': a gate is calibrated for one format; name it")
    hardware, model = load_config(config), Checkpoint.open(checkpoint)
    settings = Settings(target=target_experts, level1=level1, level2=level2, lam=cost_weight)
    with console(stderr=True).status("calibrating") as status:
        if activations is not None:
            from expertile.commands.layer import read_tokens

            n = model.moe_layers[0] if layer is None and model.moe_layers else layer or 0
            x = read_tokens(activations, model.moe_layer(n).hidden)
            cut = max(1, len(x) * 3 // 4)
            gate, layers = calibrate_activations(model, n, x[:cut], settings, hardware, format.value)
            figures = measure_activations(layers[n], n, x[cut:] if cut < len(x) else x, hardware)
        else:
            seen, held_out = calibration_texts(text, max_bytes)
            gate, layers = calibrate_text(
                model,
                seen,
                settings,
                hardware,
                format.value,
                total=max_bytes,
                density_rows=None if density is None else _rows(density, model),
                progress=lambda what: status.update(f"calibrating {what}"),
            )
            status.update("measuring on held-out text")
            figures = measure(model, gate, layers, held_out, hardware, total=max_bytes // 2)
    achieved = figures.as_dict() | {"format": format.value, "config": hardware.name}
    text_out = dump(replace(gate, achieved=achieved)).encode()
    write_file(output, lambda file: file.write(text_out))
    _show(achieved, target_experts)
    console().print(str(output), soft_wrap=True)


def calibration_texts(files: list[Path] | None, limit: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Texts by domain to calibrate on, and others to measure on."""
    from sw_model.evaluation import default_texts, documents, read_texts

    corpus = ROOT / "build" / "corpus"
    if not files and sorted((corpus / "valid").glob("*.txt")):
        seen = {path.stem: documents(path) for path in sorted((corpus / "valid").glob("*.txt"))}
        return seen, {path.stem: documents(path) for path in sorted((corpus / "test").glob("*.txt"))}
    texts = read_texts(files) if files else default_texts(ROOT)
    seen, held_out = {}, {}
    for name, parts in texts.items():
        whole = b"".join(parts)[: 2 * limit + 8]
        cut = max(2, len(whole) * 3 // 4)
        seen[name], held_out[name] = [whole[:cut]], [whole[cut:] if len(whole) - cut > 1 else whole]
    return seen, held_out


def _rows(path: Path, model: Any) -> Any:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from sw_model.errors import ExpertileError

    try:
        rows = load_file(path).get("density")
    except (OSError, SafetensorError) as error:
        raise ExpertileError(f"{path}: cannot be read as safetensors ({error})") from None
    want = (len(model.moe_layers), model.shape.hidden)
    if rows is None or rows.shape != want:
        raise ExpertileError(f"{path}: no tensor 'density' of shape {list(want)} in it")
    return rows


def _show(achieved: dict[str, Any], target: float) -> None:
    from rich.table import Table

    grid = Table(
        "layer", "mean experts", "P(empty)", "removed by level 1, 2, 3, cap", "SQNR against top-k, dB",
        title=f"held-out tokens: {achieved['tokens']:,}; target {target:g}",
    )  # fmt: skip
    for n, row in achieved["layers"].items():
        removed = ", ".join(str(count) for count in row["removed_by_level"].values())
        grid.add_row(
            n, f"{row['mean_experts']:.3f}", f"{row['p_empty']:.3%}", removed, f"{row['sqnr_db']:.1f}"
        )
    grid.add_section()
    grid.add_row("all", f"{achieved['mean_experts']:.3f}", f"{achieved['p_empty']:.3%}", "", "")
    console().print(grid)
    bits = achieved["bits_per_byte"]
    if bits["gated"]:
        grid = Table("domain", "gated", "top-k", title="bits per byte")
        for name, value in bits["gated"].items():
            grid.add_row(name, f"{value:.4f}", f"{bits['top_k'][name]:.4f}")
        grid.add_section()
        grid.add_row("mean", f"{bits['mean']['gated']:.4f}", f"{bits['mean']['top_k']:.4f}")
        console().print(grid)
