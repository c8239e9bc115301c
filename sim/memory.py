"""The memory behind a simulated accelerator, that experts come from which are not on chip."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PageMemory"]


@dataclass(frozen=True, kw_only=True)
class PageMemory:
    """How fast pages come.

    latency : cycles from a request to the first beat of its page
    bandwidth : beats (16 bytes) a cycle, at most
    """

    latency: int = 0
    bandwidth: float = 1.0

    def __post_init__(self) -> None:
        if self.latency < 0 or not 0 < self.bandwidth <= 1:
            raise ValueError(f"latency {self.latency} or bandwidth {self.bandwidth} out of range")
