"""From a configuration to a bitstream: Amaranth, Yosys, nextpnr and a packer, all from Python wheels."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amaranth.back import verilog as amaranth_verilog

from hw import verilog
from hw.boards.board import Board
from hw.boards.catalogue import BOARDS
from hw.boards.family import TOP, resources
from hw.boards.serial_top import SerialTop
from hw.boards.tools import Progress, run_tool, run_yosys
from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError
from sw_model.image import Image

__all__ = ["SOURCES", "TOP", "build", "find", "synthesise", "top_verilog", "write_verilog"]

_NEAR = 0.5  # MHz by which nextpnr may round a clock's constraint
SOURCES = (f"{verilog.MODULE}.v", f"{TOP}.v")
SEED = 1  # of the placer: the same bitstream every time


def find(board: str) -> Board:
    """A board by name.

    Raises
    ------
    ExpertileError : there is none of that name; says which there are
    """
    if board not in BOARDS:
        raise ExpertileError(f"board {board!r}: no such board; choose one of {', '.join(sorted(BOARDS))}")
    return BOARDS[board]


def build(
    board: str,
    config: HardwareConfig,
    out_dir: Path,
    progress: Progress = lambda _: None,
    image: Image | None = None,
) -> dict[str, Any]:
    """Bitstream and report of ``config`` on ``board``.

    Parameters
    ----------
    board : a name of :data:`hw.boards.catalogue.BOARDS`
    config : what the accelerator can hold
    out_dir : gets BOARD.bit, report.json, expertile_top.v (with an image also expertile_top.N.hex, the
        contents of its memories), board_top.v, board_top.lpf (or the family's names for bitstream and
        constraints), yosys.log and nextpnr.log, all at once when everything has succeeded; what else is in
        it stays
    progress : told what is being done, a few words
    image : weights baked into the block RAM

    Returns
    -------
    The report: board, config, config_hash, fmax_mhz, clock_mhz (of the array), core_fmax_mhz, core_clock_mhz,
    timing_met, lut, ff, bram, dsp (what the device holds), macs_per_cycle, gmac_s, lut_per_mac, seconds,
    seconds_by_step, utilisation_percent, critical_paths.

    Raises
    ------
    ExpertileError : unknown board, a design that is too big for it, has too many clocks, or finds no place or
        route
    """
    target = find(board)
    family = target.family
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}

    @contextmanager
    def step(name: str, doing: str) -> Iterator[None]:
        progress(doing)
        start = time.monotonic()
        yield
        seconds[name] = round(time.monotonic() - start, 1)

    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".build-") as folder:
        work = Path(folder)
        with step("verilog", "generating Verilog"):
            write_verilog(target, config, image, work)
        with step("synthesis", "synthesising (Yosys)"):
            cells = synthesise(work, SOURCES, TOP, target)
        _check_size(target, config, cells)
        with step("place_and_route", "placing (nextpnr)"):
            netlist = json.loads((work / f"{TOP}.json").read_text())
            family.improve(netlist, target)
            (work / f"{TOP}.json").write_text(json.dumps(netlist))
            _place_and_route(target, config, work, progress)
        with step("bitstream", "packing the bitstream"):
            run_tool(family.packer, work, family.pack(target), config, lambda _: None)
        report = _report(target, config, cells, json.loads((work / "nextpnr.json").read_text()), seconds)
        (work / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        for name in (f"{TOP}.json", f"{TOP}.{family.routed}", "nextpnr.json"):
            (work / name).unlink()
        # The report last: where it stands, the rest does.
        for file in sorted(work.iterdir(), key=lambda f: f.name == "report.json"):
            os.replace(file, out_dir / file.name)
    return report


def synthesise(work: Path, sources: Sequence[str], top: str, board: Board) -> dict[str, int]:
    """Yosys for ``board`` on Verilog files in ``work``: writes ``top``.json and yosys.log there.

    Returns the number of cells of each type of the flattened netlist.

    Raises
    ------
    RuntimeError : Yosys failed
    """
    commands = [
        *(f"read_verilog {name}" for name in sources),
        *board.family.synthesis(board, top),
        "opt_clean -purge",
        f"write_json {top}.json",
        "tee -o stat.json stat -json",
    ]
    run_yosys(commands, work, "yosys.log")
    stat = json.loads((work / "stat.json").read_text())
    (work / "stat.json").unlink()
    return {name: n for name, n in stat["design"]["num_cells_by_type"].items() if not name.startswith("$")}


def write_verilog(board: Board, config: HardwareConfig, image: Image | None, work: Path) -> None:
    """The accelerator's own Verilog, the board's top around it (:data:`SOURCES`), and the pin constraints;
    contents of memories in files beside them, if there is an image."""
    text, contents = verilog.generate(config, image), {}
    if image is not None:
        text, contents = verilog.contents_apart(text)
    for name, file in ({f"{verilog.MODULE}.v": text} | contents).items():
        (work / name).write_text(file)
    (work / f"{TOP}.v").write_text(top_verilog(board, config))
    (work / f"{TOP}.{board.family.constraints}").write_text(board.family.pins(board))


def top_verilog(board: Board, config: HardwareConfig) -> str:
    """The board's top alone: the accelerator is an instance in it.

    Raises
    ------
    ExpertileError : the array has a clock of its own, and the board's PLL makes one clock alone
    """
    if config.array_clock > 1 and board.family.clocks < 2:
        raise ExpertileError(
            f"config {config.name!r}: its array has a clock of its own, and the PLL of {board.name} makes "
            "one clock; use a configuration with array_clock = 1"
        )
    os.environ["AMARANTH_USE_YOSYS"] = "builtin"  # one Yosys, whatever the machine has
    top = SerialTop(config, board)
    ports = [getattr(top, name) for name in top.signature.members]
    return verilog.name_elements(
        amaranth_verilog.convert(top, name=TOP, ports=ports, emit_src=False, strip_internal_attrs=True)
    )


def _check_size(board: Board, config: HardwareConfig, cells: dict[str, int]) -> None:
    """Block RAM, multipliers and flip-flops are known before placement; LUTs only after packing."""
    mend = {"bram": "fewer words or scales", "dsp": "fewer tiles", "ff": "fewer tiles"}
    for resource, need in resources(board.family.synthesised, cells).items():
        if need > (have := board.capacity[resource]):
            raise ExpertileError(
                f"config {config.name!r}: needs {need} {resource} of the {have} on {board.name}; "
                f"use a configuration with {mend[resource]}"
            )


def _place_and_route(board: Board, config: HardwareConfig, work: Path, progress: Progress) -> None:
    arguments = [
        *board.family.device(board),
        "--json", f"{TOP}.json",
        *board.family.files,
        "--report", "nextpnr.json",
        "--log", "nextpnr.log",
        "--seed", str(SEED),
        *board.family.effort(config),
        # A clock that is missed is reported, not refused: the user sees by how much.
        "--timing-allow-fail",
    ]  # fmt: skip

    def look(line: str) -> None:
        if "at iteration #" in line and "heap" not in line:
            progress("placing (nextpnr)")
        elif wires := re.match(r"Info:\s+iter=\d+ .*overused=(\d+)", line):
            progress(f"routing (nextpnr), {int(wires[1]):,} wires that two nets want")
        elif arcs := re.match(r"Info:\s+\d+ \|.*\|\s*(\d+)\s*\|", line):
            progress(f"routing (nextpnr), {int(arcs[1]):,} arcs to go")

    run_tool(board.family.nextpnr, work, arguments, config, look)


def _report(
    board: Board,
    config: HardwareConfig,
    cells: dict[str, int],
    placed: dict[str, Any],
    seconds: dict[str, float],
) -> dict[str, Any]:
    clocks = {
        "": board.clock_mhz * config.array_clock,  # of the array
        "core_": board.clock_mhz,
    }
    # Nets are named as it comes; what a clock is constrained to tells which it is.
    fmax = {
        name: min(c["achieved"] for c in placed["fmax"].values() if abs(c["constraint"] - mhz) < _NEAR)
        for name, mhz in clocks.items()
    }
    used = {name: element["used"] for name, element in placed["utilization"].items()}
    family = board.family
    found = resources(family.synthesised, cells) | resources(family.placed, used)
    counts = {name: found[name] for name in board.capacity}
    return {
        "board": board.name,
        "config": config.name,
        "config_hash": config.hash,
        **{f"{name}fmax_mhz": round(mhz, 2) for name, mhz in fmax.items()},
        **{f"{name}clock_mhz": mhz for name, mhz in clocks.items()},
        "timing_met": all(fmax[name] >= mhz for name, mhz in clocks.items()),
        **counts,
        "macs_per_cycle": config.macs_per_cycle,
        "gmac_s": round(config.macs_per_cycle * fmax[""] / 1000, 2),
        "lut_per_mac": round(counts["lut"] / config.macs_per_cycle, 2),
        "seconds": round(sum(seconds.values()), 1),
        "seconds_by_step": seconds,
        "utilisation_percent": {n: round(100 * v / board.capacity[n], 1) for n, v in counts.items()},
        "critical_paths": _critical_paths(placed),
    }


def _critical_paths(placed: dict[str, Any]) -> list[dict[str, Any]]:
    """The slowest path between each two clocks that paths lead between, and of each clock, slowest first:
    {from, to, ns, hops: {kind, ns, from, to}}."""
    paths = []
    for path in placed["critical_paths"]:
        hops = [
            {
                "kind": hop["type"],
                "ns": round(hop["delay"], 2),
                **{end: f"{hop[end]['cell']}.{hop[end]['port']}" for end in ("from", "to") if end in hop},
            }
            for hop in path["path"]
        ]
        ns = round(sum(hop["delay"] for hop in path["path"]), 2)
        paths.append({"from": path["from"], "to": path["to"], "ns": ns, "hops": hops})
    return sorted(paths, key=lambda path: -path["ns"])
