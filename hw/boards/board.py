"""What the flow must know of a board, and its pins."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from amaranth.build import Pins, Resource, Subsignal
from amaranth.lib import wiring

from sw_model.config import HardwareConfig

__all__ = ["Board", "Pin", "pins"]


@dataclass(frozen=True)
class Pin:
    """A port bit of the board's top, where it comes out, and its I/O attributes."""

    port: str
    site: str
    attributes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board with an ECP5.

    name : as the command line has it
    device : nextpnr's options for device, package and speed grade
    capacity : what the device holds: lut, ff, bram, dsp
    oscillator_mhz, oscillator_port : the clock that comes in
    clock_mhz : the clock that the design runs at
    baud : of its serial line
    top : (configuration, baud) -> top component; its ports are the pins
    pins : of every port bit of the top
    """

    name: str
    device: tuple[str, ...]
    capacity: dict[str, int]
    oscillator_mhz: float
    oscillator_port: str
    clock_mhz: float
    baud: int
    top: Callable[[HardwareConfig, int], wiring.Component]
    pins: tuple[Pin, ...]

    def lpf(self) -> str:
        """The constraints in the format of the Lattice tools."""
        lines = [f'FREQUENCY PORT "{self.oscillator_port}" {self.oscillator_mhz:g} MHZ;']
        for pin in self.pins:
            lines.append(f'LOCATE COMP "{pin.port}" SITE "{pin.site}";')
            attributes = " ".join(f"{k}={v}" for k, v in pin.attributes)
            lines.append(f'IOBUF PORT "{pin.port}" {attributes};')
        return "\n".join(lines) + "\n"


def pins(resources: Iterable[Resource], wanted: dict[str, tuple[str, int, str | None]]) -> tuple[Pin, ...]:
    """Pins of a board description of amaranth-boards.

    Parameters
    ----------
    resources : those of its platform
    wanted : port bit -> (resource, its number, its subsignal or None)

    Raises
    ------
    KeyError : there is no such resource or subsignal, or it has several pins
    """
    by_name = {(r.name, r.number): r for r in resources}

    def find(part: Resource | Subsignal, attributes: dict[str, str], sub: str | None) -> tuple[str, dict]:
        attributes = attributes | dict(part.attrs)
        for io in part.ios:
            if isinstance(io, Subsignal) and io.name == sub:
                return find(io, attributes, None)
            if isinstance(io, Pins) and sub is None and len(io.names) == 1:
                return io.names[0], attributes
        raise KeyError(f"no pin {part.name}.{sub}")

    found = []
    for port, (name, number, sub) in wanted.items():
        site, attributes = find(by_name[name, number], {}, sub)
        found.append(Pin(port, site, tuple(sorted(attributes.items()))))
    return tuple(found)
