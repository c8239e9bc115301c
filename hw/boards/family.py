"""What the flow must know of a family of FPGAs: its tools, files, names of resources, and PLL."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar

from amaranth.hdl import Instance, Signal, Value

from hw.boards.tools import Tool
from sw_model.config import HardwareConfig

if TYPE_CHECKING:
    from hw.boards.board import Board

__all__ = ["TOP", "Device", "Family", "resources"]

TOP = "board_top"
"""The module of a board's top, and the name of its files."""


@dataclass(frozen=True)
class Device:
    """nextpnr's name of a device, and what the device holds, by the names of the report."""

    option: str
    capacity: Mapping[str, int]


class Family(ABC):
    """FPGAs that are served by the same tools.

    devices : by the name of the part
    synthesised : how much of a resource each type of cell of the synthesised netlist takes
    placed : the same of the elements of the placed design, as nextpnr's report names them; a resource that is
        not here is counted in the netlist
    constraints, routed, bitstream : suffixes of the files of pins, of what nextpnr made, and of the bitstream
    files : nextpnr's options for the first two
    nextpnr, packer : the tools
    clocks : the most that its PLL is asked for
    """

    devices: ClassVar[Mapping[str, Device]]
    synthesised: ClassVar[Mapping[str, Mapping[str, float]]]
    placed: ClassVar[Mapping[str, Mapping[str, float]]]
    constraints: ClassVar[str]
    routed: ClassVar[str]
    bitstream: ClassVar[str]
    files: ClassVar[tuple[str, ...]]
    nextpnr: ClassVar[Tool]
    packer: ClassVar[Tool]
    clocks: ClassVar[int]

    @abstractmethod
    def part(self, platform: Any) -> tuple[str, str, str]:
        """Part, package and speed grade of a board description of amaranth-boards, as nextpnr and
        ``devices`` name them."""

    @abstractmethod
    def synthesis(self, board: Board, top: str) -> list[str]:
        """The Yosys commands that map the module ``top``, and flatten it."""

    @abstractmethod
    def pins(self, board: Board) -> str:
        """The file of constraints."""

    @abstractmethod
    def pll(
        self, clock: Signal, oscillator_mhz: float, outputs: Sequence[tuple[Value, float]], lock: Signal
    ) -> Instance:
        """The PLL that makes clocks of the oscillator's.

        Parameters
        ----------
        clock : the oscillator's pin
        outputs : the clocks to make, at most :attr:`clocks`, with their MHz
        lock : 1 when they are steady

        Raises
        ------
        ValueError : it cannot make these of that
        """

    @abstractmethod
    def device(self, board: Board) -> tuple[str, ...]:
        """nextpnr's options for the device, its package, and its speed grade."""

    @abstractmethod
    def pack(self, board: Board) -> list[str]:
        """The packer's arguments."""

    def effort(self, config: HardwareConfig) -> tuple[str, ...]:
        """nextpnr's options that a configuration needs to be placed and routed well."""
        return ()

    def improve(self, netlist: dict[str, Any], board: Board) -> None:  # noqa: B027
        """Do what Yosys leaves to be done with a JSON netlist of :data:`TOP`; nothing, if not said."""


def resources(amounts: Mapping[str, Mapping[str, float]], cells: Mapping[str, int]) -> dict[str, int]:
    """What ``cells``, their numbers by type, take of each resource, where a cell takes ``amounts``."""
    return {
        resource: ceil(sum(cells.get(cell, 0) * amount for cell, amount in kinds.items()))
        for resource, kinds in amounts.items()
    }
