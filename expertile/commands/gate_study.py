"""``expertile gate-study``: what the gate costs in quality, and what each of its levels is worth."""

from pathlib import Path
from typing import Annotated, Any

import typer

from expertile import options
from expertile.options import MODEL, FormatName
from expertile.output import console, write_file, write_json

__all__ = ["command"]

TARGETS = (0.4, 0.8, 1.0, 1.2, 1.4, 1.6, 2.0)


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for gate-study.json and .png.")],
    checkpoint: options.Checkpoint = MODEL,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="Text files, one a domain.", show_default="as for expertile calibrate"),
    ] = None,
    target_experts: Annotated[float, typer.Option(help="Mean experts at which levels are compared.")] = 1.2,
    format: options.Format = FormatName.int8,
    config: options.Config = "base",
    max_bytes: Annotated[
        int, typer.Option(min=16, help="Bytes a domain to calibrate on, and as many to measure on.")
    ] = 1024,
) -> None:
    """Measure bits per byte against mean experts, with levels off in turn. Minutes, by the golden model."""
    from expertile.commands.calibrate import calibration_texts
    from sw_model.calibration import Settings
    from sw_model.checkpoint import Checkpoint
    from sw_model.config import load_config
    from sw_model.gate_study import ABLATIONS, Study, Variant, mutual_information
    from sw_model.model_gate import calibrate_text

    output.mkdir(parents=True, exist_ok=True)
    hardware, model = load_config(config), Checkpoint.open(checkpoint)
    seen, held_out = calibration_texts(text, 2 * max_bytes)
    with console(stderr=True).status("calibrating") as status:
        settings = Settings(target=target_experts)
        gate, layers = calibrate_text(model, seen, settings, hardware, format.value, total=max_bytes)
        study = Study(model, gate, layers, seen, held_out, hardware, total=max_bytes)
        status.update("all candidates")
        base = study.run(None)

        def row(outcome: Any) -> dict[str, float]:
            worse, error = study.difference(outcome, base)
            return {
                "mean_experts": sum(outcome.mean_experts.values()) / len(layers),
                "p_empty": sum(outcome.p_empty.values()) / len(layers),
                "bits_per_byte": study.bits_per_byte(outcome.cost),
                "over_top_k": worse,
                "error": error,
            }

        report: dict[str, Any] = {"tokens": len(study.token_domain), "top_k": row(base)}
        status.update("first choice")
        report["first"] = row(study.first())
        top_k = next(iter(layers.values())).rule.top_k
        report["curve"] = []
        for target in (t for t in TARGETS if t <= top_k):
            status.update(f"target {target}")
            report["curve"].append({"target": target, **row(study.run(Variant(name=""), target))})
        report["ablation"] = {}
        for variant in ABLATIONS:
            status.update(variant.name)
            outcome = study.run(variant, target_experts)
            report["ablation"][variant.name] = row(outcome)
            if variant is ABLATIONS[0]:
                report["layers"] = {
                    str(n): {
                        "mean_experts": outcome.mean_experts[n],
                        "p_empty": outcome.p_empty[n],
                        "domain_right": float((outcome.domain[n] == study.token_domain).mean()),
                        "mutual_information": mutual_information(
                            outcome.kept[n], study.token_domain, layer.n_experts
                        ),
                    }
                    for n, layer in layers.items()
                }
    write_json(output / "gate-study.json", report)
    _show(report)
    from expertile.pictures import curve

    write_file(output / "gate-study.png", lambda file: curve(report, file))
    console().print(f"{output / 'gate-study.json'}, {output / 'gate-study.png'}", soft_wrap=True)


def _show(report: dict[str, Any]) -> None:
    from rich.table import Table

    grid = Table(
        "variant", "mean experts", "P(empty)", "bits per byte", "over top-k",
        title=f"{report['tokens']:,} held-out tokens",
    )  # fmt: skip
    rows = {"top-k": report["top_k"], "first choice alone": report["first"]}
    rows |= {f"target {row['target']}": row for row in report["curve"]} | report["ablation"]
    for name, row in rows.items():
        grid.add_row(
            name, f"{row['mean_experts']:.3f}", f"{row['p_empty']:.2%}", f"{row['bits_per_byte']:.4f}",
            f"{row['over_top_k']:+.4f} ± {row['error']:.4f}",
        )  # fmt: skip
    console().print(grid)
    grid = Table("layer", "mean experts", "P(empty)", "domain right", "I(expert; domain), bits")
    for n, row in report["layers"].items():
        grid.add_row(
            n, f"{row['mean_experts']:.3f}", f"{row['p_empty']:.2%}", f"{row['domain_right']:.1%}",
            f"{row['mutual_information']:.3f}",
        )  # fmt: skip
    console().print(grid)
