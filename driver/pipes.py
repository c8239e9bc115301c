"""Byte pipes to a device."""

from __future__ import annotations

import re
import time
from typing import Protocol

import serial

from hw.host.frames import FLAG
from sw_model.errors import ExpertileError

__all__ = ["BAUD", "Pipe", "PortPipe", "SpiBus", "SpiPipe"]

BAUD = 1_500_000


class Pipe(Protocol):
    """Bytes in both directions, and a clock to measure answers by."""

    def write(self, data: bytes) -> None:
        """Send bytes; may return before they have left."""

    def read(self, seconds: float) -> bytes:
        """What has come, as soon as anything has; nothing after ``seconds``."""

    def now(self) -> float:
        """Seconds since some moment."""

    def close(self) -> None:
        """Give the port back."""


class PortPipe:
    """A serial port by its name (/dev/ttyUSB0, COM3), or a simulation's behind a TCP socket (sim://HOST:PORT).

    8 data bits, no parity, 1 stop bit, no handshake.

    Raises
    ------
    ExpertileError : there is no such port, or it is gone
    """

    def __init__(self, port: str, baud: int = BAUD) -> None:
        self._name = port
        try:
            url = re.sub("^sim://", "socket://", port)
            self._port = serial.serial_for_url(url, baudrate=baud, timeout=0)
        except (serial.SerialException, ValueError, OSError) as error:
            raise self._error("cannot be opened", error) from None
        try:
            self._port.set_low_latency_mode(True)  # USB adapters hold bytes back for 16 ms otherwise
        except (AttributeError, NotImplementedError, ValueError, OSError):
            pass  # sockets, pseudo-terminals and other systems have no such mode

    def _error(self, what: str, error: Exception) -> ExpertileError:
        return ExpertileError(f"port {self._name}: {what} ({error}); name a serial port or sim://HOST:PORT")

    def write(self, data: bytes) -> None:
        """See :class:`Pipe`."""
        try:
            self._port.write(data)
        except (serial.SerialException, OSError) as error:
            raise self._error("takes no more", error) from None

    def read(self, seconds: float) -> bytes:
        """See :class:`Pipe`."""
        try:
            self._port.timeout = seconds
            data = self._port.read(1)
            self._port.timeout = 0
            while data and (more := self._port.read(4096)):
                data += more
            return data
        except (serial.SerialException, OSError) as error:
            raise self._error("is gone", error) from None

    def now(self) -> float:
        """See :class:`Pipe`."""
        return time.monotonic()

    def close(self) -> None:
        """See :class:`Pipe`."""
        self._port.close()


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
        """See :class:`Pipe`."""
        self._came += self._bus.transfer(data)

    def read(self, seconds: float) -> bytes:
        """See :class:`Pipe`."""
        end = self._bus.now() + seconds
        while not self._came.strip(bytes([FLAG])) and self._bus.now() < end:
            self._came = self._bus.transfer(self.WAITING)
        came, self._came = self._came, b""
        return came

    def now(self) -> float:
        """See :class:`Pipe`."""
        return self._bus.now()

    def close(self) -> None:
        """See :class:`Pipe`."""
        self._bus.close()
