"""Commands over a byte pipe that may lose and damage bytes: each is carried out once, and answered."""

from __future__ import annotations

from collections.abc import Sequence

from driver.pipes import Pipe
from hw.host.frames import Decoder, Error, Frame, Kind, encode
from sw_model.errors import ExpertileError

__all__ = ["Link", "Refused"]


class Refused(RuntimeError):
    """The device refused a command: ``error`` says why."""

    def __init__(self, kind: int, error: int) -> None:
        names = {e.value: e.name.lower().replace("_", " ") for e in Error}
        super().__init__(f"device refused {Kind(kind).name}: {names.get(error, error)}")
        self.error = error


class Link:
    """The host's end of the protocol of :mod:`hw.host.frames`.

    Parameters
    ----------
    pipe : to the device
    timeout : seconds without an answer after which a frame is sent again, at least

    The timeout follows the device, as in RFC 6298: four times what the last answer took, doubled with every
    attempt, and measured only on frames that were sent once (Karn's rule).

    Attributes
    ----------
    capacity : payload words that a frame may have
    retries : frames sent again so far

    Raises
    ------
    ExpertileError : from every method, when the device does not answer
    """

    ATTEMPTS = 12
    FIRST_ATTEMPTS = 5  # as long as nobody has answered yet
    LONGEST = 30.0

    def __init__(self, pipe: Pipe, timeout: float = 0.3) -> None:
        self._pipe = pipe
        self._least = self._timeout = timeout
        self._decoder = Decoder()
        self._tag = 0
        self._attempts = self.FIRST_ATTEMPTS
        self.retries = 0
        self.capacity = self.reset()
        self._attempts = self.ATTEMPTS

    def reset(self) -> int:
        """Reset the device but for its weights; returns its capacity."""
        return self.ask(Kind.RESET).words[0]

    def ask(self, kind: Kind, words: Sequence[int] = ()) -> Frame:
        """Have a command carried out; returns the answer.

        Raises
        ------
        Refused : the device does not do that
        """
        self._tag = (self._tag + 1) % 256
        data = encode(kind, self._tag, words)
        for attempt in range(self._attempts):
            self.retries += attempt > 0
            start = self._pipe.now()
            self._pipe.write(data)
            answer = self._answer(start + self._timeout)
            if answer is not None:
                if not attempt:
                    self._timeout = max(self._least, 4 * (self._pipe.now() - start))
                if answer.kind == Kind.REFUSED:
                    raise Refused(kind, answer.words[0])
                return answer
            self._timeout = min(2 * self._timeout, self.LONGEST)
        raise ExpertileError(
            f"device does not answer {kind.name}, asked {self._attempts} times: "
            "is it on, configured, and the port and baud rate right?"
        )

    def _answer(self, deadline: float) -> Frame | None:
        while (left := deadline - self._pipe.now()) > 0:
            for frame in self._decoder.feed(self._pipe.read(left)):
                if frame.tag == self._tag and frame.kind & 0x80:
                    return frame
        return None

    def close(self) -> None:
        """Give the pipe back."""
        self._pipe.close()
