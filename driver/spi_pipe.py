"""The byte link over SPI, as a byte pipe."""

from __future__ import annotations

from typing import Protocol

from hw.host.frames import FLAG

__all__ = ["SpiBus", "SpiPipe"]


class SpiBus(Protocol):
    """An SPI controller with one device, mode 0, most significant bit first."""

    def transfer(self, data: bytes) -> bytes:
        """Select the device, clock bytes out and as many in, deselect it."""

    def now(self) -> float:
        """Seconds since some moment."""

    def close(self) -> None:
        """Give the bus back."""


class SpiPipe:
    """The byte link over SPI: while the host waits it clocks flags out, and flags that come are nothing.

    Parameters
    ----------
    bus : the controller; on Linux, an object around ``spidev.SpiDev`` whose ``transfer`` is its ``xfer3``
    """

    WAITING = bytes([FLAG] * 32)  # clocked out at once to look for an answer

    def __init__(self, bus: SpiBus) -> None:
        self._bus = bus
        self._came = b""

    def write(self, data: bytes) -> None:
        """See :class:`~driver.pipes.Pipe`."""
        self._came += self._bus.transfer(data)

    def read(self, seconds: float) -> bytes:
        """See :class:`~driver.pipes.Pipe`."""
        end = self._bus.now() + seconds
        while not self._came.strip(bytes([FLAG])) and self._bus.now() < end:
            self._came = self._bus.transfer(self.WAITING)
        came, self._came = self._came, b""
        return came

    def now(self) -> float:
        """See :class:`~driver.pipes.Pipe`."""
        return self._bus.now()

    def close(self) -> None:
        """See :class:`~driver.pipes.Pipe`."""
        self._bus.close()
