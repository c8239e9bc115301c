"""Where things are in the memories of the core: one place for program, engine and RTL."""

from __future__ import annotations

from dataclasses import dataclass

from sw_model.config import HardwareConfig
from sw_model.formats import BLOCK

__all__ = ["LANES", "Layout"]

LANES = 16  # products a cycle; a memory row holds so many nibbles, a macro word two rows


@dataclass(frozen=True)
class Layout:
    """Memory rows of 64 bits: two a macro word, from 0 on; then scale entries, two a row. Blocks of the
    activation buffer: INT8 of x from 0 on, its high and its low bytes for the router, then h."""

    config: HardwareConfig

    @property
    def first_scale(self) -> int:
        """Memory row of the first scale entries."""
        return 2 * self.config.words

    @property
    def rows(self) -> int:
        """Memory rows in all."""
        return self.first_scale + self.config.scales // 2

    @property
    def x_blocks(self) -> int:
        """Blocks of the longest token."""
        return self.config.max_hidden // BLOCK

    @property
    def high(self) -> int:
        return self.x_blocks

    @property
    def low(self) -> int:
        return 2 * self.x_blocks

    @property
    def h(self) -> int:
        return 3 * self.x_blocks

    @property
    def act_blocks(self) -> int:
        """Blocks of activations in all."""
        return self.h + self.config.max_slots * self.config.max_intermediate // BLOCK

    @property
    def elements(self) -> int:
        """Words for a token, and later for its h."""
        return max(self.config.max_hidden, self.config.max_slots * self.config.max_intermediate)

    @property
    def capacity(self) -> int:
        """Payload words of a frame: a token and its TUSER, in whole beats of the weight stream."""
        return self.config.max_hidden + 4
