"""A Verilated accelerator in this process: ports as method calls, every clock cycle in compiled code."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from ctypes import POINTER, byref, c_int, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path

import numpy as np

__all__ = ["Core"]

_RUNNING = 1
_ERRORS = {
    2: "no handshake on any port for {watchdog} cycles",
    3: "m_axis_y_tlast came early or late",
    4: "m_axis_y or m_axis_page changed a beat before it was taken",
    5: "m_axis_y offers a beat that belongs to no token",
    6: "m_axis_page asks for a page that there is not",
}
_SLICE = 100_000  # cycles in one call, so that Ctrl-C is heard

_WORDS, _HALVES, _BYTES = POINTER(c_uint32), POINTER(c_uint16), POINTER(c_uint8)
_LONGS = POINTER(c_uint64)
_SIGNATURES = {
    "create": (c_void_p, [c_uint64, c_uint32, c_uint64]),
    "destroy": (None, [c_void_p]),
    "reset": (None, [c_void_p, c_uint64]),
    "cycle": (c_uint64, [c_void_p]),
    "write": (c_int, [c_void_p, c_uint32, c_uint32, c_uint32, _WORDS]),
    "read": (c_int, [c_void_p, c_uint32, _WORDS, _WORDS]),
    "send_weights": (None, [c_void_p, _WORDS, _BYTES, c_uint64]),
    "send_tokens": (None, [c_void_p, _WORDS, _BYTES, _HALVES, c_uint64]),
    "take_tokens": (c_int, [c_void_p, _WORDS, c_uint64, c_uint64]),
    "advance": (c_int, [c_void_p, c_uint64]),
    "wait": (c_int, [c_void_p, c_uint64]),
    "progress": (None, [c_void_p, _LONGS]),
    "serve_pages": (None, [c_void_p, _WORDS, _BYTES, _LONGS, c_uint64, c_uint64, c_uint64]),
    "page_requests": (c_uint64, [c_void_p, c_uint64, _WORDS, c_uint64]),
}


@cache
def _load(path: Path) -> dict[str, ctypes._CFuncPtr]:
    library = ctypes.CDLL(str(path))
    functions = {}
    for name, (result, arguments) in _SIGNATURES.items():
        functions[name] = getattr(library, f"expertile_{name}")
        functions[name].restype, functions[name].argtypes = result, arguments
    return functions


def _words(a: np.ndarray) -> ctypes._Pointer:
    return a.ctypes.data_as(_WORDS)


class Core:
    """One instance of a Verilated accelerator, out of reset.

    Parameters
    ----------
    library : what :func:`sim.build.build_verilator` returned
    stalls : probability, each cycle on each channel of every port, that the bus master pauses; 0 for never
    seed : of the stalls and of the signals that no reset sets
    watchdog : cycles without any handshake that count as a hang

    Streams that were started (:meth:`send_weights`, :meth:`start`) also move while registers are read and
    written, as on a real bus. Pages (:meth:`serve_pages`) are answered whenever the clock runs; packets of
    :meth:`send_weights` go first.

    Raises
    ------
    RuntimeError : from every method, when the hardware hangs or breaks the rules of a port
    """

    def __init__(self, library: Path, *, stalls: float = 0.0, seed: int = 0, watchdog: int = 200_000) -> None:
        if not 0 <= stalls < 1:
            raise ValueError(f"stalls must be a probability below 1, not {stalls}")
        self._call = _load(library)
        self._watchdog = watchdog
        self._buffers: dict[str, tuple[np.ndarray, ...]] = {}
        self._pages: tuple[np.ndarray, ...] = ()
        self._totals = {"weights": 0, "tokens": 0, "results": 0}
        self._core = c_void_p(self._call["create"](seed, int(stalls * 2**32), watchdog))

    def close(self) -> None:
        """Free the model. Further calls are errors."""
        if self._core:
            self._call["destroy"](self._core)
            self._core = c_void_p()

    def __enter__(self) -> Core:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_core"):
            self.close()

    @property
    def cycle(self) -> int:
        """Clock cycles since the instance was made."""
        return int(self._call["cycle"](self._live()))

    def reset(self, cycles: int = 4) -> None:
        """Assert ``aresetn`` for some cycles, whatever is going on; all streams are dropped."""
        self._call["reset"](self._live(), cycles)
        self._buffers.clear()

    def write(self, address: int, value: int, strobe: int = 0xF) -> int:
        """AXI4-Lite write; returns BRESP (0 OKAY, 2 SLVERR)."""
        response = c_uint32()
        code = self._call["write"](self._live(), address, value, strobe, byref(response))
        self._check(code, f"write of {address:#x}")
        return response.value

    def read(self, address: int) -> tuple[int, int]:
        """AXI4-Lite read; returns the value and RRESP."""
        value, response = c_uint32(), c_uint32()
        code = self._call["read"](self._live(), address, byref(value), byref(response))
        self._check(code, f"read of {address:#x}")
        return value.value, response.value

    def send_weights(self, packets: Iterable[np.ndarray]) -> None:
        """Start weight packets, uint32 [beats, 4] each, on ``s_axis_w``."""
        parts = [np.ascontiguousarray(p, dtype=np.uint32) for p in packets]
        data = np.concatenate(parts)
        last = _last(np.array([len(p) for p in parts]))
        self._buffers["weights"] = (data, last)
        self._totals["weights"] = len(data)
        self._call["send_weights"](self._live(), _words(data), last.ctypes.data_as(_BYTES), len(data))

    def serve_pages(
        self, pages: Sequence[Sequence[np.ndarray]], *, latency: int = 0, bandwidth: float = 1.0
    ) -> None:
        """Answer requests on ``m_axis_page`` with packets on ``s_axis_w``, as a DMA engine would.

        Page i is the packets ``pages[i]``, uint32 [beats, 4] each. ``latency``: cycles from a request to its
        first beat; ``bandwidth``: beats a cycle, at most. Requests so far are forgotten.
        """
        if latency < 0 or not 0 < bandwidth <= 1:
            raise ValueError(f"latency {latency} or bandwidth {bandwidth} out of range")
        packets = [p for page in pages for p in page]
        lengths = np.array([len(p) for p in packets], dtype=np.int64)
        data = np.concatenate([np.zeros((0, 4), np.uint32), *packets]).astype(np.uint32)
        sizes = [sum(len(p) for p in page) for page in pages]
        first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint64)
        last = _last(lengths) if packets else np.zeros(0, np.uint8)
        self._pages = (data, last, first)
        self._call["serve_pages"](
            self._live(),
            _words(data),
            last.ctypes.data_as(_BYTES),
            first.ctypes.data_as(_LONGS),
            len(pages),
            latency,
            round(65536 / bandwidth),
        )

    def page_requests(self, start: int = 0) -> list[tuple[int, int]]:
        """Requests taken since :meth:`serve_pages`, (page, slot), from number ``start`` on."""
        count = self._call["page_requests"](self._live(), 0, _words(np.zeros(1, np.uint32)), 0)
        found = np.zeros(max(1, count - start), dtype=np.uint32)
        self._call["page_requests"](self._live(), start, _words(found), len(found))
        return [(int(r) & 0xFFFF, int(r) >> 16) for r in found[: max(0, count - start)]]

    def start(
        self,
        beats: np.ndarray,
        lengths: np.ndarray,
        tokens: int,
        hidden: int,
        user: np.ndarray | None = None,
    ) -> np.ndarray:
        """Start token packets on ``s_axis_x``, and take ``tokens`` x ``hidden`` beats from ``m_axis_y``.

        ``beats`` are uint32, packet i has ``lengths[i]`` of them; ``user`` is TUSER of each packet. Returns
        the buffer uint32 [tokens, hidden] that fills as the simulation advances.
        """
        data, last = np.ascontiguousarray(beats, dtype=np.uint32).reshape(-1), _last(lengths)
        if len(data) != len(last):
            raise ValueError(f"{len(data)} beats, but lengths for {len(last)}")
        users = np.zeros(len(lengths)) if user is None else user
        beside = np.repeat(users.astype(np.uint16), lengths)
        result = np.zeros((tokens, hidden), dtype=np.uint32)
        code = self._call["take_tokens"](self._live(), _words(result), hidden, result.size)
        self._check(code, "start of a run")
        self._buffers["tokens"] = (data, last, beside, result)
        self._totals.update(tokens=len(data), results=result.size)
        self._call["send_tokens"](
            self._live(), _words(data), last.ctypes.data_as(_BYTES), beside.ctypes.data_as(_HALVES), len(data)
        )
        return result

    def advance(self, cycles: int) -> bool:
        """Run for at most ``cycles``; True when all streams are done."""
        code = self._call["advance"](self._live(), cycles)
        if code == _RUNNING:
            return False
        self._check(code, "streams")
        self._buffers.clear()
        return True

    def finish(self) -> None:
        """Run until all streams are done."""
        while not self.advance(_SLICE):
            pass

    def wait(self, cycles: int) -> None:
        """Run with idle streams."""
        self._check(self._call["wait"](self._live(), cycles), "wait")

    def run(self, x: np.ndarray, user: np.ndarray | None = None) -> np.ndarray:
        """Tokens float32 [T, H] through the core, back to back; ``user`` is TUSER of each. Returns y."""
        tokens, hidden = x.shape
        beats = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
        result = self.start(beats, np.full(tokens, hidden), tokens, hidden, user)
        self.finish()
        return result.view(np.float32)

    def _live(self) -> c_void_p:
        if not self._core:
            raise ValueError("the core is closed")
        return self._core

    def _check(self, code: int, what: str) -> None:
        if not code:
            return
        moved = (c_uint64 * 3)()
        self._call["progress"](self._live(), moved)
        x, w, y = moved
        total = self._totals
        raise RuntimeError(
            f"simulated core: {_ERRORS[code].format(watchdog=self._watchdog)} ({what}, cycle {self.cycle}; "
            f"s_axis_x took {x} of {total['tokens']} beats, s_axis_w {w} of {total['weights']}, "
            f"m_axis_y gave {y} of {total['results']})"
        )


def _last(lengths: np.ndarray) -> np.ndarray:
    """TLAST of packets of these lengths, uint8 [beats]."""
    if not len(lengths) or np.min(lengths) < 1:
        raise ValueError("a packet has at least one beat")
    last = np.zeros(int(np.sum(lengths)), dtype=np.uint8)
    last[np.cumsum(lengths) - 1] = 1
    return last
