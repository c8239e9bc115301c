"""How long weights and tokens take over each way to reach a board, in simulated time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from driver.accelerator import Driver
from driver.bus import Bus
from driver.link import Link
from driver.link_bus import LinkBus
from driver.spi_pipe import SpiPipe
from hw.boards.board import Board
from hw.boards.catalogue import BOARDS
from sim.board import open_board, open_spi
from sim.build import build_verilator, generated
from sim.verilator import Core
from sw_model import golden
from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError
from sw_model.image import Image
from sw_model.packets import BEAT_LIMBS, pieces
from sw_model.quantised import QuantisedLayer

__all__ = ["COLUMNS", "measure"]

COLUMNS = {
    "link": "link",
    "weights_kb_s": "weights (kB/s)",
    "download_s": "a layer (s)",
    "latency_us": "a token alone (us)",
    "per_token_us": "a token in a stream (us)",
    "tokens_s": "tokens a second",
}


def measure(
    board: Board, config: HardwareConfig, layer: QuantisedLayer, image: Image, x: np.ndarray, part: int
) -> Iterator[dict[str, Any]]:
    """A row a link: the core's own AXI ports, the UART at the board's baud rate, and SPI at an eighth of the
    clock if there is a board NAME_spi beside ``board``.

    The boards wake up with the layer; weights are sent over it again, as they are.

    Parameters
    ----------
    board : one with a UART; all links run at its clock
    x : tokens, float32 [T, H]
    part : bytes of weight packets that are timed; the time of a layer is that of its own number of bytes

    Raises
    ------
    RuntimeError : a result is not the golden model's
    """
    if board.spi or not len(x):
        raise ExpertileError("links are compared on a board with a UART, by one token or more")
    expected = golden.run(layer, x, config).y.view(np.uint32)
    packets = list(image.packets())
    ways = {"AXI": _axi, "UART": _uart}
    if f"{board.name}_spi" in BOARDS:
        ways["SPI"] = _spi
    for name, open_bus in ways.items():
        bus, now = open_bus(board, config, image)
        start = now()
        rate = _send(bus, packets, part) / (now() - start)
        Driver(bus).configure(image)
        start = now()
        first = bus.run(x[:1])
        alone = now() - start
        start = now()
        rest = bus.run(x)
        stream = (now() - start) / len(x)
        bus.close()
        for y, want in ((first, expected[:1]), (rest, expected)):
            if not np.array_equal(y.view(np.uint32), want):
                raise RuntimeError(f"{name}: results are not the golden model's")
        yield {
            "link": name,
            "weights_kb_s": rate / 1000,
            "download_s": sum(p.nbytes for p in packets) / rate,
            "latency_us": 1e6 * alone,
            "per_token_us": 1e6 * stream,
            "tokens_s": 1 / stream,
        }


def _send(bus: Bus, packets: list[np.ndarray], part: int) -> int:
    """The first packets, cut to ``part`` bytes; returns how many bytes they had."""
    chosen: list[np.ndarray] = []
    for packet in packets:
        if sum(p.nbytes for p in chosen) < part:
            chosen.append(pieces(packet, max(2, part // (4 * BEAT_LIMBS)))[0])
    bus.send_weights(chosen)
    bus.finish()
    return sum(p.nbytes for p in chosen)


def _axi(board: Board, config: HardwareConfig, image: Image) -> tuple[Bus, Callable[[], float]]:
    core = Core(build_verilator(generated(config, image)))
    return core, lambda: core.cycle / (board.clock_mhz * 1e6)


def _uart(board: Board, config: HardwareConfig, image: Image) -> tuple[Bus, Callable[[], float]]:
    line = open_board(board, config, image=image, baud=board.baud)
    return LinkBus(Link(line)), line.now


def _spi(board: Board, config: HardwareConfig, image: Image) -> tuple[Bus, Callable[[], float]]:
    line = open_spi(BOARDS[f"{board.name}_spi"], config, image=image)
    return LinkBus(Link(SpiPipe(line))), line.now
