"""What an accelerator is reached through: its ports as method calls, whatever is between."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

__all__ = ["Bus"]


class Bus(Protocol):
    """AXI ports: those of a simulated core (:class:`sim.verilator.Core`), or at the far end of a byte link
    (:class:`driver.link_bus.LinkBus`).

    Raises
    ------
    RuntimeError : from every method, when the hardware hangs or breaks the rules of a port
    ExpertileError : nobody answers
    """

    def write(self, address: int, value: int) -> int:
        """Write a register; returns the AXI response (0 OKAY, 2 SLVERR)."""

    def read(self, address: int) -> tuple[int, int]:
        """Read a register; returns its value and the response."""

    def send_weights(self, packets: Iterable[np.ndarray]) -> None:
        """Send weight packets, uint32 [beats, 4] each; they may still be on their way."""

    def finish(self) -> None:
        """Return when all that was sent has been taken."""

    def serve_pages(self, pages: Sequence[Sequence[np.ndarray]]) -> None:
        """From now on answer requests for page i with the packets ``pages[i]``; forget earlier ones."""

    def page_requests(self, start: int = 0) -> list[tuple[int, int]]:
        """Requests since :meth:`serve_pages`, (page, slot), from number ``start`` on."""

    def run(self, x: np.ndarray, user: np.ndarray | None = None) -> np.ndarray:
        """Tokens float32 [T, H] through the core; ``user`` is TUSER of each, 0 if None. Returns y."""

    def close(self) -> None:
        """Give the bus back."""
