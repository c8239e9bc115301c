"""A whole board in simulation, reached by its serial line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hw.boards.board import Board
from hw.boards.flow import top_verilog
from hw.host.uart import LEAST_DIVISOR
from sim.build import build_serial, generated
from sim.serial_line import SerialLine
from sw_model.config import HardwareConfig

__all__ = ["open_board"]

_PINS = Path(__file__).with_name("board_pins.v")


def open_board(
    board: Board, config: HardwareConfig, *, baud: int | None = None, noise: float = 0.0, seed: int = 0
) -> SerialLine:
    """The serial line of ``board`` with an accelerator of ``config``, just configured; no weights.

    Parameters
    ----------
    baud : of the line, by the clock that the board has; None: the fastest that its receiver takes
    noise, seed : see :class:`sim.serial_line.SerialLine`

    Raises
    ------
    ExpertileError : a tool is missing
    """
    fastest = round(board.clock_mhz * 1e6 / LEAST_DIVISOR)
    target = replace(board, baud=min(baud or fastest, fastest))
    inverted = sum(board.inverted(f"led[{i}]") << i for i in range(board.leds))
    pins = {
        "LAMPS": board.leds,
        "INVERTED": f"{board.leds}'d{inverted}",
        "RELEASED": f"1'b{board.inverted('button_reset'):d}",
    }
    defines = [f"`define {name} {value}" for name, value in pins.items()]
    parts = [generated(config), top_verilog(target, config), *defines, _PINS.read_text()]
    library = build_serial("\n".join(parts))
    divisor = round(board.clock_mhz * 1e6 / target.baud)
    return SerialLine(library, divisor=divisor, clock_mhz=board.clock_mhz, noise=noise, seed=seed)
