"""A whole board in simulation, reached by its serial line or its SPI."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hw.boards.board import Board
from hw.boards.flow import top_verilog
from hw.host.spi import LEAST_DIVISOR as LEAST_SPI_DIVISOR
from hw.host.uart import LEAST_DIVISOR
from sim.build import build_serial, build_spi, generated
from sim.serial_line import SerialLine
from sim.spi_line import SpiLine
from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError
from sw_model.image import Image

__all__ = ["open_board", "open_spi"]

_PINS = Path(__file__).with_name("board_pins.v")


def open_board(
    board: Board,
    config: HardwareConfig,
    *,
    image: Image | None = None,
    baud: int | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> SerialLine:
    """The serial line of ``board`` with an accelerator of ``config``, just configured.

    Parameters
    ----------
    image : weights that are in the bitstream; None: no weights
    baud : of the line, by the clock that the board has; None: the fastest that its receiver takes
    noise, seed : see :class:`sim.serial_line.SerialLine`

    Raises
    ------
    ExpertileError : a tool is missing, or the board has no such line
    """
    if board.spi:
        raise ExpertileError(f"board {board.name!r} has no serial line, but SPI")
    fastest = round(board.clock_mhz * 1e6 / LEAST_DIVISOR)
    target = replace(board, baud=min(baud or fastest, fastest))
    library = build_serial(_pins(target, config, image))
    divisor = round(board.clock_mhz * 1e6 / target.baud)
    return SerialLine(library, divisor=divisor, clock_mhz=board.clock_mhz, noise=noise, seed=seed)


def open_spi(board: Board, config: HardwareConfig, *, image: Image | None = None, seed: int = 0) -> SpiLine:
    """The SPI of ``board``, as fast as it can be clocked; the rest as :func:`open_board`."""
    if not board.spi:
        raise ExpertileError(f"board {board.name!r} has no SPI, but a serial line")
    library = build_spi(_pins(board, config, image))
    return SpiLine(library, divisor=LEAST_SPI_DIVISOR, clock_mhz=board.clock_mhz, seed=seed)


def _pins(board: Board, config: HardwareConfig, image: Image | None) -> str:
    """Verilog of the board with its host's pins alone."""
    pins: dict[str, object] = {}
    if board.leds:
        inverted = sum(board.inverted(f"led[{i}]") << i for i in range(board.leds))
        pins |= {"LAMPS": board.leds, "INVERTED": f"{board.leds}'d{inverted}"}
    if board.button:
        pins["RELEASED"] = f"1'b{board.inverted('button_reset'):d}"
    defines = [f"`define {name} {value}" for name, value in pins.items()]
    if board.spi:
        defines.append("`define SPI")
    return "\n".join([generated(config, image), top_verilog(board, config), *defines, _PINS.read_text()])
