"""The core with hollow tiles: all of its control, streams and vector units, but tiles that give zeros.

When something happens in the core depends on shapes, formats and routes, not on what is multiplied; tiles
have no handshake. So cycles of large arrays can be counted where multiplying would take hours to simulate. A
router without weights gives all experts one logit, and the first ``top_k`` are taken.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from driver.accelerator import Driver
from sim.build import build_verilator, generated
from sim.verilator import Core, watchdog
from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError
from sw_model.image import Image

__all__ = ["HollowCore", "hollow"]

_TILE = re.compile(r"^(module expertile_tile\(.*?\);\n)(.*?)^endmodule$", re.MULTILINE | re.DOTALL)
_PORT = re.compile(r"^  (?:input|output) .*;\n", re.MULTILINE)


def hollow(verilog: str) -> str:
    """``verilog`` with tiles whose sums are zero."""

    def emptied(found: re.Match[str]) -> str:
        ports = "".join(_PORT.findall(found[2]))
        outputs = re.findall(r"output (?:\[.*?\] )?(\S+) ?;", ports)
        return found[1] + ports + "".join(f"  assign {name} = 0;\n" for name in outputs) + "endmodule"

    text, count = _TILE.subn(emptied, verilog)
    if count != 1:
        raise RuntimeError(f"{count} modules of tiles to empty, not one")
    return text


class HollowCore:
    """A Verilated core with hollow tiles.

    Raises
    ------
    ExpertileError : a tool is missing, or body "lut"
    """

    def __init__(self, config: HardwareConfig) -> None:
        if config.body == "lut":
            raise ExpertileError(
                f"config {config.name!r}: its body 'lut' has one topology: name a config of another body"
            )
        self._core = Core(build_verilator(hollow(generated(config)), blocks=False), watchdog=watchdog(config))
        self._driver = Driver(self._core)

    def cycles(self, image: Image, x: np.ndarray) -> dict[str, int]:
        """Counters after tokens ``x`` [T, H] float32, back to back; nothing is loaded into the tiles."""
        self._driver.load(replace(image, words=image.words[:0], scales=image.scales[:0]))
        self._driver.run(x)
        return self._driver.counters()

    def close(self) -> None:
        self._core.close()
