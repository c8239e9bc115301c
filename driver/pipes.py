"""Byte pipes to a device."""

from __future__ import annotations

import re
import time
from typing import Protocol

import serial

from sw_model.errors import ExpertileError

__all__ = ["BAUD", "Pipe", "PortPipe"]

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
