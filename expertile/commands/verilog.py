"""``expertile verilog``: the accelerator as one Verilog file, and a JSON that describes it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from expertile import options
from expertile.output import check_writable, console, write_file, write_json
from sw_model.errors import ExpertileError

__all__ = ["command", "write_verilog"]


def command(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The Verilog file; a .json appears beside it.")
    ],
    config: options.Config = "base",
) -> None:
    """Write the Verilog of a configuration: the same bytes on every run and machine."""
    from sw_model.config import load_config

    description = write_verilog(load_config(config), output)
    console().print(f"{output}: {output.stat().st_size:,} bytes", soft_wrap=True)
    console().print(f"{description}: ports, parameters, registers", soft_wrap=True)


def write_verilog(config: Any, path: Path) -> Path:
    """Write ``path`` and the JSON beside it; returns the latter's path."""
    from hw import verilog

    description = path.with_suffix(".json")
    if description == path:
        raise ExpertileError(
            f"{path}: the description takes that name: give the Verilog another ending, as .v"
        )
    check_writable(path, description)
    with console(stderr=True).status(f"generating Verilog ({config.name})"):
        text = verilog.generate(config)
    write_file(path, lambda file: file.write(text.encode()))
    write_json(description, verilog.describe(config))
    return description
