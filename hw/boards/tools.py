"""How the tools are started: Yosys in a process of its own, and those of the wheels or native ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError

__all__ = ["Progress", "Tool", "run_tool", "run_yosys"]

# Runs Yosys in a process of its own: a crash or a huge netlist does not touch ours.
_YOSYS = """
import json, sys
import pyosys.libyosys as yosys
design = yosys.Design()
for command in json.loads(sys.argv[1]):
    yosys.run_pass(command, design)
"""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Tool:
    """A program: its name, and what Python runs to be it, with its arguments in ``sys.argv[1:]``.

    The environment variable of its name (``NEXTPNR_ECP5`` of nextpnr-ecp5: Amaranth's names) gives a native
    program to start instead.
    """

    name: str
    wheel: str

    @property
    def variable(self) -> str:
        return self.name.upper().replace("-", "_")

    @property
    def command(self) -> list[str]:
        """How it is started.

        Raises
        ------
        ExpertileError : there is no such program
        """
        if not (native := os.environ.get(self.variable)):
            return [sys.executable, "-c", self.wheel]
        if not (found := shutil.which(native)):
            raise ExpertileError(
                f"{self.variable}={native}: no such program; unset it to use the wheel's {self.name}"
            )
        return [str(Path(found).absolute())]


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


def _last_error(log: Path, code: int) -> str:
    errors = [line for line in log.read_text(errors="replace").splitlines() if "ERROR" in line]
    return errors[-1] if errors else f"exit code {code}"


def run_tool(tool: Tool, work: Path, arguments: list[str], config: HardwareConfig, look: Progress) -> None:
    """Run ``tool`` in the folder ``work``; those of the wheel see that folder alone, and what is below it.

    Raises
    ------
    ExpertileError : it finds an error in the design
    RuntimeError : it crashed
    """
    error, tail = "", deque(maxlen=8)
    with subprocess.Popen(
        [*tool.command, *arguments],
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
        raise ExpertileError(f"config {config.name!r}: {tool.name}: {error}; use a smaller configuration")
    if code:  # it crashed: no fault of the user's
        raise RuntimeError(f"{tool.name}: exit code {code}: {' | '.join(tail)}")
