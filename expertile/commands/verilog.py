"""``expertile verilog``: the accelerator as one Verilog file, and files that describe it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from expertile import options
from expertile.output import check_writable, console, write_file, write_json
from sw_model.errors import ExpertileError

__all__ = ["command", "write_verilog"]


def command(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The Verilog file; a .json, .h and .svd appear beside it."),
    ],
    config: options.Config = "base",
    ip_xact: Annotated[
        bool, typer.Option(help="Also write component.xml: the folder is a block for Vivado's IP catalogue.")
    ] = False,
) -> None:
    """Write the Verilog of a configuration: the same bytes on every run and machine."""
    from hw.ip_xact import component
    from sw_model.config import load_config

    check_writable(output)
    hardware, ip = load_config(config), output.parent / "component.xml"
    if ip_xact:
        if output == ip:
            raise ExpertileError(f"{output}: the component takes that name: give the Verilog another, as x.v")
        check_writable(ip)
    description, header, svd = write_verilog(hardware, output)
    console().print(f"{output}: {output.stat().st_size:,} bytes", soft_wrap=True)
    console().print(f"{description}: ports, parameters, registers", soft_wrap=True)
    console().print(f"{header}, {svd}: the registers in C and as CMSIS-SVD", soft_wrap=True)
    if ip_xact:
        write_file(ip, lambda file: file.write(component(hardware, output.name).encode()))
        console().print(f"{ip}: IP-XACT", soft_wrap=True)


def write_verilog(config: Any, path: Path) -> tuple[Path, Path, Path]:
    """Write ``path`` and, beside it, JSON, C header and SVD; returns the paths of these three."""
    from hw import verilog
    from hw.host.register_files import c_header, svd

    beside = (path.with_suffix(".json"), path.with_suffix(".h"), path.with_suffix(".svd"))
    if path in beside:
        raise ExpertileError(f"{path}: a description takes that name: give the Verilog another ending, as .v")
    check_writable(path, *beside)
    with console(stderr=True).status(f"generating Verilog ({config.name})"):
        text = verilog.generate(config)
    write_file(path, lambda file: file.write(text.encode()))
    write_json(beside[0], verilog.describe(config))
    write_file(beside[1], lambda file: file.write(c_header().encode()))
    write_file(beside[2], lambda file: file.write(svd().encode()))
    return beside
