"""Pages: routed experts that are loaded on demand into equal slots of the macros.

A page is what the tiles hold of one expert, with addresses that count from the first word and scale entry of
whatever slot it is put into. Slot s begins ``PAGE_WORDS * s`` words behind ``PAGE_WORD_BASE``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError
from sw_model.packets import BEAT_LIMBS, Kind, packet
from sw_model.result import Result

__all__ = ["PAGE_REGISTERS", "PageTable", "Pages", "fit"]

#: Registers that describe the slots; all 0 where every expert is on chip.
PAGE_REGISTERS = ("PAGE_SLOTS", "PAGE_WORDS", "PAGE_SCALES", "PAGE_WORD_BASE", "PAGE_SCALE_BASE")


def _whole(entries: int) -> int:
    """Scale entries of whole beats."""
    return -(-entries // BEAT_LIMBS) * BEAT_LIMBS


@dataclass(frozen=True, kw_only=True)
class Pages:
    """Pages of all routed experts, filled up to the largest; of none where every expert is on chip.

    words : uint32 [experts, tiles, words, 4]; scales : uint32 [experts, tiles, entries (multiple of 4)];
    contexts : uint32 [experts, 4]; sizes : uint32 [experts, 2], words and scales that each has.
    """

    words: np.ndarray
    scales: np.ndarray
    contexts: np.ndarray
    sizes: np.ndarray

    @staticmethod
    def gather(experts: Sequence[tuple[Sequence[int], np.ndarray, np.ndarray]]) -> Pages:
        """From each expert's context, words [tiles, n, 4] and scales [tiles, n]; none make no pages."""
        sizes = [(w.shape[1], _whole(s.shape[1])) for _, w, s in experts]
        most = np.max(sizes, axis=0) if sizes else (0, 0)
        tiles = len(experts[0][1]) if experts else 0
        words = np.zeros((len(experts), tiles, most[0], BEAT_LIMBS), np.uint32)
        scales = np.zeros((len(experts), tiles, most[1]), np.uint32)
        for e, (_, w, s) in enumerate(experts):
            words[e, :, : w.shape[1]] = w
            scales[e, :, : s.shape[1]] = s
        return Pages(
            words=words,
            scales=scales,
            contexts=np.array([c for c, _, _ in experts], dtype=np.uint32).reshape(-1, BEAT_LIMBS),
            sizes=np.array(sizes, dtype=np.uint32).reshape(-1, 2),
        )

    def packets(self, expert: int) -> Iterator[np.ndarray]:
        """What a request for ``expert`` is answered with; the last packet says that the page is whole."""
        yield packet(Kind.CONTEXTS, self.contexts[expert], page=expert)
        words, scales = self.sizes[expert]
        for tile in range(self.words.shape[1]):
            yield packet(Kind.WORDS, self.words[expert, tile, :words], tile=tile, page=expert)
            yield packet(Kind.SCALES, self.scales[expert, tile, :scales], tile=tile, page=expert)
        yield packet(Kind.PAGE, page=expert)


def fit(
    resident: tuple[int, int],
    experts: Sequence[tuple[int, int]],
    top_k: int,
    config: HardwareConfig,
    most: int | None = None,
) -> dict[str, int]:
    """Values of :data:`PAGE_REGISTERS`: as many slots as fit beside what is always there, or ``most``.

    Parameters
    ----------
    resident : macro words and scale entries a tile of the router and the base expert
    experts : the same of each routed expert
    top_k : experts that a token takes: all of them are on chip at the same time

    Raises
    ------
    ExpertileError : there is room for fewer slots than that
    """
    size = (max(words for words, _ in experts), _whole(max(scales for _, scales in experts)))
    base = (resident[0], _whole(resident[1]))
    room = [(have - b) // s for have, b, s in zip((config.words, config.scales), base, size, strict=True)]
    slots = min(config.page_slots, len(experts), *room, *([] if most is None else [most]))
    if slots < top_k:
        words, scales = (b + top_k * s for b, s in zip(base, size, strict=True))
        raise ExpertileError(
            f"config {config.name!r}: a token takes {top_k} experts at once, but there is room for "
            f"{max(0, slots)} (each {size[0]} macro words and {size[1]} scales a tile, beside {base[0]} and "
            f"{base[1]} of the router and base expert); use a configuration with words >= {words}, scales >= "
            f"{scales} and page_slots >= {top_k}, or a narrower format"
        )
    return dict(zip(PAGE_REGISTERS, (slots, *size, *base), strict=True))


class PageTable:
    """Which expert is in which slot: least recently used replacement, as the hardware does it.

    A token's experts that are there are used first, best first; then each that is missing takes the slot of
    the least recently used one that the token does not need.
    """

    def __init__(self, slots: int) -> None:
        self._order: list[tuple[int | None, int]] = [(None, slot) for slot in range(slots)]

    @property
    def experts(self) -> frozenset[int]:
        """Those that have a slot."""
        return frozenset(expert for expert, _ in self._order if expert is not None)

    def mask(self, experts: int) -> np.ndarray:
        """bool [experts]: which of them have a slot."""
        return np.isin(np.arange(experts), list(self.experts))

    def follow(self, result: Result) -> tuple[int, list[int]]:
        """The tokens of ``result``, one after the other: how many experts were found; those asked for."""
        kept = np.ones_like(result.experts, dtype=bool) if result.decisions is None else result.decisions.kept
        loaded = [
            expert
            for experts, mine in zip(result.experts, kept, strict=True)
            for expert, _ in self.use(experts[mine].tolist())
        ]
        return int(kept.sum()) - len(loaded), loaded

    def use(self, experts: Iterable[int]) -> list[tuple[int, int]]:
        """One token's experts, best first; returns the requests that they cause: (expert, slot)."""
        wanted = list(experts)
        found = [e for e in wanted if e in self.experts]
        for expert in found:
            self._to_front(next(i for i, (e, _) in enumerate(self._order) if e == expert), expert)
        requests = []
        for expert in [e for e in wanted if e not in found]:
            oldest = max(i for i, (e, _) in enumerate(self._order) if e not in wanted)
            requests.append((expert, self._to_front(oldest, expert)))
        return requests

    def _to_front(self, place: int, expert: int) -> int:
        _, slot = self._order.pop(place)
        self._order.insert(0, (expert, slot))
        return slot
