"""Runs cocotb testbenches on generated Verilog, in Icarus or Verilator; only results files are believed."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sim.build import TOP, cached, key
from sim.memory import PageMemory
from sim.tools import BUILD, ROOT, icarus, icarus_version, sim_environment, verilator, verilator_version
from sw_model.gate import SideBand
from sw_model.image import Image, resident_packet

__all__ = ["JOB", "SIMULATORS", "LayerJob", "build", "run", "run_layer"]

SIMULATORS = ("icarus", "verilator")

JOB = "EXPERTILE_SIM_JOB"
"""Environment variable that names a testbench's input file; it writes ``result.npz`` beside it."""

# The generated text is Verilog-2005. Read as SystemVerilog, initial values come before every process starts,
# and `always @*` blocks that wait for a change at time 0 would stay X.
_ICARUS_ARGS = ["-g2005"]
_VERILATOR_ARGS = ["-O3", "--x-initial", "unique", "--no-timing", "-Wno-lint", "-Wno-style", "-Wno-fatal"]


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """``os.environ`` with changes: cocotb's runner looks for its tools there."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _runner(simulator: str) -> Any:
    from cocotb_tools.runner import get_runner

    if simulator not in SIMULATORS:
        raise ValueError(f"simulator must be one of {', '.join(SIMULATORS)}, not {simulator!r}")
    runner = get_runner(simulator)
    runner.log.setLevel(logging.CRITICAL)  # what went wrong is raised
    return runner


def build(simulator: str, verilog: str, top: str = TOP) -> Path:
    """Folder with ``verilog`` built for cocotb, from the cache where it is there.

    Raises
    ------
    ExpertileError : the simulator is not installed
    RuntimeError : it does not take the Verilog
    """
    if simulator == "icarus":
        icarus()
        version, product, env, arguments = icarus_version(), "sim.vvp", {}, _ICARUS_ARGS
    else:
        verilator()
        version, product, env, arguments = verilator_version(), top, sim_environment(), _VERILATOR_ARGS

    def work(folder: Path) -> None:
        source = folder / f"{top}.v"
        source.write_text(verilog)
        with _environment(env):
            _runner(simulator).build(
                sources=[source],
                hdl_toplevel=top,
                build_dir=folder,
                timescale=("1ns", "1ps"),
                always=True,
                build_args=arguments,
                log_file=folder / "build.log",
            )

    name = f"cocotb-{simulator}-" + key(verilog, top, version, *arguments)
    return cached(name, product, f"building for {simulator} (cocotb)", work).parent


def run(
    simulator: str,
    folder: Path,
    module: str,
    *,
    work: Path,
    env: Mapping[str, str],
    top: str = TOP,
    seed: int = 0,
) -> None:
    """Run the tests of ``module`` in ``work`` on a :func:`build`.

    Raises
    ------
    RuntimeError : a test failed, none ran, or the simulator crashed; the message holds the end of the log
    """
    from cocotb_tools.check_results import get_results

    log, results = work / "sim.log", work / "results.xml"
    plusargs = ["+verilator+rand+reset+2", f"+verilator+seed+{seed % (1 << 31) + 1}"]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        with _environment({"PYTHONPATH": path}):
            _runner(simulator).test(
                test_module=module,
                hdl_toplevel=top,
                hdl_toplevel_lang="verilog",
                build_dir=folder,
                test_dir=work,
                results_xml=str(results),
                log_file=log,
                seed=seed,
                extra_env=dict(env),
                plusargs=plusargs if simulator == "verilator" else [],
            )
    except (RuntimeError, SystemExit):
        pass  # the exit code says too much or too little; the results file decides
    count, failures = get_results(results) if results.exists() else (0, 0)
    if not count or failures:
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        verdict = f"{failures} of {count} tests failed" if count else "no test ran to its end"
        raise RuntimeError(f"{simulator}: {module}: {verdict}\n" + "\n".join(lines[-40:]))


@dataclass(frozen=True, kw_only=True)
class LayerJob:
    """What :mod:`sim.cocotb_layer` is to do.

    x float32 [T, H]; side and resident, the gate's, or None; expected y (the shape of x) or None;
    ``reset_at``: cycles after the start of a first, abandoned run at which reset is asserted, or None;
    ``watchdog``: most cycles that one token may take; ``memory`` answers requests for pages; ``strays``:
    lengths of packets that are no tokens, sent before, between and after the tokens in turn; ``traffic``:
    access registers at random meanwhile; ``array_clock``: as in the configuration.
    """

    image: Image
    x: np.ndarray
    side: SideBand | None = None
    resident: np.ndarray | None = None
    memory: PageMemory = field(default_factory=PageMemory)
    expected: np.ndarray | None = None
    stalls: float = 0.0
    seed: int = 0
    reset_at: int | None = None
    strays: tuple[int, ...] = ()
    traffic: bool = False
    watchdog: int = 200_000
    array_clock: int = 1


def run_layer(simulator: str, folder: Path, job: LayerJob) -> tuple[np.ndarray, dict[str, int]]:
    """Load a layer over the ports and run its tokens, all through the bus models; returns y and the counters.

    Raises
    ------
    RuntimeError : the testbench failed
    """
    packets = list(job.image.packets())
    if job.resident is not None:
        packets.append(resident_packet(job.resident))
    options = {
        "registers": job.image.registers,
        "stalls": job.stalls,
        "seed": job.seed,
        "watchdog": job.watchdog,
        "reset_at": job.reset_at,
        "page_latency": job.memory.latency,
        "page_bandwidth": job.memory.bandwidth,
        "strays": job.strays,
        "traffic": job.traffic,
        "array_clock": job.array_clock,
    }
    pages = [list(job.image.pages.packets(e)) for e in range(len(job.image.page_sizes))]
    arrays = {
        "beats": np.concatenate(packets),
        "lengths": np.array([len(p) for p in packets]),
        "page_beats": np.concatenate([np.zeros((0, 4), np.uint32), *(p for page in pages for p in page)]),
        "page_lengths": np.array([[len(p) for p in page] for page in pages], dtype=np.int64),
        "x": np.ascontiguousarray(job.x).view(np.uint32),
        "user": (SideBand.empty(len(job.x)) if job.side is None else job.side).pack(),
        "options": np.array(json.dumps(options)),
    }
    if job.expected is not None:
        arrays["expected"] = np.ascontiguousarray(job.expected).view(np.uint32)
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".run-", dir=BUILD) as scratch:
        work = Path(scratch)
        np.savez(work / "job.npz", **arrays)
        run(simulator, folder, "sim.cocotb_layer", work=work, env={JOB: str(work / "job.npz")}, seed=job.seed)
        with np.load(work / "result.npz") as result:
            return result["y"].view(np.float32), json.loads(str(result["counters"]))
