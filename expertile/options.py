"""Options that several commands share: one name, one meaning, one help text."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "ROOT",
    "Attention",
    "BakedLayer",
    "Baud",
    "BoardConfig",
    "BoardName",
    "Checkpoint",
    "Config",
    "Engine",
    "EngineName",
    "Format",
    "Gate",
    "Json",
    "Seed",
    "Stalls",
    "Standalone",
]

ROOT = Path(__file__).resolve().parent.parent
"""The checkout: the shipped model and build/ are found from here, whatever the current folder."""


class EngineName(StrEnum):
    """What computes the MoE layers."""

    reference = "reference"
    golden = "golden"
    verilator = "verilator"
    icarus = "icarus"

    @property
    def is_rtl(self) -> bool:
        """Simulated Verilog, which must equal the golden model bit for bit."""
        return self in (EngineName.verilator, EngineName.icarus)


class FormatName(StrEnum):
    """How expert weights are stored."""

    int8 = "int8"
    int8_high = "int8-high"
    int4 = "int4"
    fp8 = "fp8"
    mxfp4 = "mxfp4"
    native = "native"
    auto = "auto"


Checkpoint = Annotated[
    Path,
    typer.Option(
        help="Hugging Face folder: config.json and model.safetensors.", show_default="the shipped model"
    ),
]
Config = Annotated[str, typer.Option(help="Hardware configuration: a preset's name or a TOML file.")]
Engine = Annotated[
    EngineName,
    typer.Option(
        help="reference: float64; golden: the integer model; verilator, icarus: the Verilog, simulated."
    ),
]
Format = Annotated[
    FormatName,
    typer.Option(
        help="Format of the expert weights; int8-high: int8, of which the high nibble is read; native: the "
        "checkpoint's own; auto (layer only): a format a matrix, by measurement under --bits or --sqnr."
    ),
]
Gate = Annotated[Path | None, typer.Option(help="Three-level gate, as `expertile calibrate` writes it.")]
Attention = Annotated[
    int, typer.Option(min=0, max=3, help="Level of sparse attention: 0 reads all keys, 3 the fewest.")
]
Baud = Annotated[int, typer.Option(min=300, help="Bits a second of the serial line.")]
BoardName = Annotated[str, typer.Option(help="Name of the board, as `expertile boards` lists them.")]
BoardConfig = Annotated[
    str | None,
    typer.Option(
        help="Hardware configuration.",
        show_default="the board's own preset; "
        "for several layers in the bitstream, the preset like it that holds them",
    ),
]
Standalone = Annotated[
    bool,
    typer.Option(help="Weights in the bitstream: all of the checkpoint's MoE layers, or that of --layer."),
]
BakedLayer = Annotated[
    int | None, typer.Option(help="This MoE layer's weights alone in the bitstream.", show_default="none")
]
Json = Annotated[Path | None, typer.Option(help="Write the figures here as JSON.")]
Stalls = Annotated[
    float, typer.Option(min=0, max=0.95, help="RTL engines: probability that a stream stalls in a cycle.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]

MODEL = ROOT / "models" / "base"
