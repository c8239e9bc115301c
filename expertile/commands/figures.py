"""``expertile figures``: the claims, computed, as a page."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from expertile import options
from expertile.options import MODEL, ROOT
from expertile.output import check_writable, console, write_file

__all__ = ["command"]


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Markdown file to write.")],
    config: options.Config = "base",
    gpu: Annotated[
        Path,
        typer.Option(help="What sw_model.training.gpu_layer measured.", show_default="docs/gpu-layer.json"),
    ] = ROOT / "docs" / "gpu-layer.json",
    bench: Annotated[
        Path,
        typer.Option(
            help="What `expertile bench` measured; may be missing.", show_default="build/bench.json"
        ),
    ] = ROOT / "build" / "bench.json",
    mhz: Annotated[float, typer.Option(min=1, help="Clock of the FPGA board.")] = 48.0,
    max_bytes: Annotated[int, typer.Option(min=2, help="Bytes a domain.")] = 256,
) -> None:
    """Compute the claims that are made for such accelerators: each with formula, conditions and verdict."""
    from expertile.figures import page
    from expertile.options import FormatName
    from expertile.text import layer_work
    from sw_model.config import load_config
    from sw_model.energy.model import Conditions, energy, total
    from sw_model.energy.report import report
    from sw_model.energy.table import technologies
    from sw_model.evaluation import default_texts
    from sw_model.gate_file import load

    check_writable(output)
    hardware = load_config(config)
    conditions, texts = Conditions(shared=hardware.tiles), default_texts(ROOT, max_bytes)
    measured, told = [], {}
    for gate in (None, load(MODEL / "gate.json")):
        with console(stderr=True).status("running the text" + (" with the gate" if gate else "")):
            work, bits = layer_work(MODEL, texts, FormatName.int4, hardware, gate, max_bytes)
        tokens, layers = int(work.tokens), _moe_layers()
        parts = energy(work, technologies()["cacti22"], "cim", conditions)
        measured.append(
            {
                "experts": int(work.experts_used) / tokens / layers,
                "bits": bits,
                "nj": total(parts, compute=True) / tokens / 1e3,
            }
        )
        told = told or {name: report(work, tech, conditions) for name, tech in technologies().items()}
    cycles = _cycles(_read(bench), hardware.name)
    text = page(told, *measured, _routed_share(), _read(gpu), cycles, mhz)
    write_file(output, lambda file: file.write(text.encode()))
    console().print(f"{output}", soft_wrap=True)


def _moe_layers() -> int:
    from sw_model.checkpoint import Checkpoint

    return len(Checkpoint.open(MODEL).moe_layers)


def _routed_share() -> float:
    """Share of the shipped model's parameters that are in routed experts."""
    from math import prod

    from safetensors import safe_open

    with safe_open(MODEL / "model.safetensors", framework="numpy") as file:
        sizes = {name: prod(file.get_slice(name).get_shape()) for name in file.keys()}
    return sum(n for name, n in sizes.items() if ".experts." in name) / sum(sizes.values())


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def _cycles(bench: Any, config: str) -> dict[str, float]:
    """Cycles a token of INT4 by pattern, where the bench was of this configuration."""
    for row in bench or []:
        if row["format"] == "int4" and row["preset"] == config:
            return {"stream": row["cycles_per_token"], "single": row["cycles_per_token_single"]}
    return {}
