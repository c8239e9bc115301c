"""The accelerator's ports at the far end of a byte link."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from driver.link import Link, Refused
from hw.host.frames import Error, Kind
from sw_model.packets import BEAT_LIMBS, pieces

__all__ = ["LinkBus"]

OKAY, SLVERR = 0, 2


class LinkBus:
    """See :class:`driver.bus.Bus`.

    Every command is answered before the next is sent. A token is sent ahead of the result that is fetched, so
    the core computes while the line works.
    """

    AHEAD = 2  # tokens that are on their way at most
    PATIENCE = 64  # fetches in a row that may find nothing; the device waits a while for each

    def __init__(self, link: Link) -> None:
        self._link = link
        self._pages: Sequence[Sequence[np.ndarray]] = ()
        self._requests: list[tuple[int, int]] = []

    def write(self, address: int, value: int) -> int:
        return self._access(Kind.WRITE, address, value)[1]

    def read(self, address: int) -> tuple[int, int]:
        return self._access(Kind.READ, address)

    def _access(self, kind: Kind, *words: int) -> tuple[int, int]:
        try:
            answer = self._link.ask(kind, words).words
        except Refused as refused:
            if refused.error != Error.BUS_ERROR:
                raise
            return 0, SLVERR
        return (answer[0] if answer else 0), OKAY

    def send_weights(self, packets: Iterable[np.ndarray]) -> None:
        beats = self._link.capacity // BEAT_LIMBS
        for packet in packets:
            for part in pieces(packet, beats):
                self._link.ask(Kind.WEIGHTS, part.ravel().tolist())

    def finish(self) -> None:
        """Nothing is on its way."""

    def serve_pages(self, pages: Sequence[Sequence[np.ndarray]]) -> None:
        self._pages, self._requests = pages, []

    def page_requests(self, start: int = 0) -> list[tuple[int, int]]:
        return self._requests[start:]

    def run(self, x: np.ndarray, user: np.ndarray | None = None) -> np.ndarray:
        beats = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
        side = np.zeros(len(x), np.uint16) if user is None else user
        result, sent = np.zeros_like(beats), 0
        for got in range(len(x)):
            while sent < min(got + self.AHEAD, len(x)) and self._take(
                [int(side[sent]), *beats[sent].tolist()]
            ):
                sent += 1
            result[got] = self._fetch(x.shape[1], got)
        return result.view(np.float32)

    def _take(self, token: list[int]) -> bool:
        """Send a token; False if the device still holds one that its core has not taken."""
        try:
            self._link.ask(Kind.TOKEN, token)
        except Refused as refused:
            if refused.error != Error.BUSY:
                raise
            return False
        return True

    def _fetch(self, hidden: int, number: int) -> tuple[int, ...]:
        """The next result, once there is one; pages are answered meanwhile."""
        nothing = 0
        while nothing < self.PATIENCE:
            answer = self._link.ask(Kind.FETCH)
            if answer.kind == Kind.PAGE:
                expert, slot = answer.words[0] & 0xFFFF, answer.words[0] >> 16
                if expert >= len(self._pages):
                    raise RuntimeError(f"device: asks for page {expert}, of {len(self._pages)}")
                self._requests.append((expert, slot))
                self.send_weights(self._pages[expert])
            elif answer.kind == Kind.RESULT:
                if len(answer.words) != hidden:
                    raise RuntimeError(f"device: result of {len(answer.words)} elements, not {hidden}")
                return answer.words
            nothing = nothing + 1 if answer.kind == Kind.DONE else 0
        raise RuntimeError(f"device: no result of token {number}, asked for {nothing} times: it hangs")

    def close(self) -> None:
        self._link.close()
