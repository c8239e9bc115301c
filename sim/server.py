"""A simulated serial line offered to other programs: a pseudo-terminal, or a TCP socket of this machine."""

from __future__ import annotations

import os
import select
import socket
import threading
import tty
from typing import Protocol

from sim.serial_line import SerialLine
from sw_model.errors import ExpertileError

__all__ = ["Listener", "Terminal", "serve"]

_CHUNK = 4096
_SLICE = 4096  # cycles between looks at the host
_QUIET = (
    1 << 18
)  # cycles without a byte after which simulated time stands still: longer than any answer takes
_POLL = 0.1  # seconds between looks at ``stop``


class Door(Protocol):
    """Where a host comes in; ``name`` is what it opens."""

    name: str

    def fileno(self) -> int:
        """To wait for the host's bytes with."""

    def read(self) -> bytes:
        """What there is, without waiting."""

    def write(self, data: bytes) -> None:
        """To the host; lost if nobody reads, as on a real line."""


class Terminal:
    """A pseudo-terminal; ``name`` is its device."""

    def __init__(self) -> None:
        # The far side stays open here too, so that hosts can come and go.
        self._ours, self._theirs = os.openpty()
        tty.setraw(self._theirs)
        os.set_blocking(self._ours, False)
        self.name = os.ttyname(self._theirs)

    def fileno(self) -> int:
        """See :class:`Door`."""
        return self._ours

    def read(self) -> bytes:
        """See :class:`Door`."""
        try:
            return os.read(self._ours, _CHUNK)
        except BlockingIOError:
            return b""

    def write(self, data: bytes) -> None:
        """See :class:`Door`."""
        try:
            os.write(self._ours, data)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Remove it."""
        os.close(self._ours)
        os.close(self._theirs)


class Listener:
    """A TCP port of the loopback interface, for one host at a time; ``name`` is sim://HOST:PORT.

    Raises
    ------
    ExpertileError : the port is taken
    """

    HOST = "127.0.0.1"

    def __init__(self, port: int = 0) -> None:
        try:
            self._server = socket.create_server((self.HOST, port))
        except OSError as error:
            raise ExpertileError(f"TCP port {port}: {error.strerror}; choose another, or 0 for any") from None
        self._host: socket.socket | None = None
        self.name = f"sim://{self.HOST}:{self._server.getsockname()[1]}"

    def fileno(self) -> int:
        """See :class:`Door`."""
        return (self._host or self._server).fileno()

    def read(self) -> bytes:
        """See :class:`Door`."""
        if self._host is None:
            if not select.select([self._server], [], [], 0)[0]:
                return b""
            self._host, _ = self._server.accept()
            self._host.setblocking(False)
            self._host.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            data = self._host.recv(_CHUNK)
        except BlockingIOError:
            return b""
        except ConnectionError:
            data = b""
        if not data:
            self._leave()
        return data

    def write(self, data: bytes) -> None:
        """See :class:`Door`."""
        try:
            if self._host is not None:
                self._host.send(data)
        except BlockingIOError:
            pass
        except ConnectionError:
            self._leave()

    def _leave(self) -> None:
        if self._host is not None:
            self._host.close()
            self._host = None

    def close(self) -> None:
        """Stop listening."""
        self._leave()
        self._server.close()


def serve(line: SerialLine, door: Door, stop: threading.Event) -> None:
    """Carry bytes between ``door`` and ``line`` until ``stop`` is set.

    Simulated time runs while there is something to send or an answer may come, and stands still otherwise.
    """
    quiet = _QUIET
    while not stop.is_set():
        if quiet >= _QUIET:
            select.select([door], [], [], _POLL)
        if data := door.read():
            line.write(data)
            quiet = 0
        if quiet < _QUIET:
            answer = line.read(_SLICE / line.hertz)
            quiet = 0 if answer else quiet + _SLICE
            if answer:
                door.write(answer)
