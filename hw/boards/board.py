"""What the flow must know of a board, and its pins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amaranth.build import Connector, Pins, Resource, Subsignal

from hw.boards.family import Family

__all__ = ["Board", "Pin", "pins"]


@dataclass(frozen=True)
class Pin:
    """A port bit of the board's top, where it comes out, its I/O attributes, and whether it is active low."""

    port: str
    site: str
    attributes: tuple[tuple[str, str], ...] = ()
    inverted: bool = False


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board with an FPGA, and a UART or SPI to the host.

    name : as the command line has it
    title : as people have it
    family : of its FPGA
    part : a name of the family's devices
    package, speed : nextpnr's names of package and speed grade; no speed grade where there is one alone
    preset : the configuration that it is built with, unless another is named
    oscillator_mhz : the clock that comes in
    clock_mhz : the clock that the design runs at
    baud : of its UART
    pins : of every port bit of :class:`hw.boards.serial_top.SerialTop`
    """

    name: str
    title: str
    family: Family
    part: str
    package: str
    speed: str
    preset: str
    oscillator_mhz: float
    clock_mhz: float
    baud: int
    pins: tuple[Pin, ...]

    @property
    def capacity(self) -> Mapping[str, int]:
        """What the device holds, by the names of the report: lut, ff, bram, dsp."""
        return self.family.devices[self.part].capacity

    @property
    def spi(self) -> bool:
        """Its host is at the pins of an SPI, not of a UART."""
        return any(pin.port == "spi_sck" for pin in self.pins)

    @property
    def button(self) -> bool:
        """It has a button to reset the design with."""
        return any(pin.port == "button_reset" for pin in self.pins)

    @property
    def leds(self) -> int:
        """Its lamps."""
        return sum(pin.port.startswith("led[") for pin in self.pins)

    def inverted(self, port: str) -> bool:
        """Whether a port bit is active low."""
        return next(pin.inverted for pin in self.pins if pin.port == port)


def pins(platform: type, wanted: Mapping[str, tuple[str, int, str | None] | Resource]) -> tuple[Pin, ...]:
    """Pins of a board description of amaranth-boards.

    Parameters
    ----------
    platform : the description
    wanted : port bit -> (resource, its number, its subsignal or None), or a resource of our own with one pin
        on a connector

    Raises
    ------
    KeyError : there is no such resource, subsignal or connector pin, or it has several pins
    """
    by_name = {(r.name, r.number): r for r in platform.resources}
    on_connectors = {pin: site for c in platform.connectors if isinstance(c, Connector) for pin, site in c}

    def find(
        part: Resource | Subsignal, attributes: dict[str, str], sub: str | None
    ) -> tuple[str, dict, bool]:
        attributes = attributes | dict(part.attrs)
        for io in part.ios:
            if isinstance(io, Subsignal) and io.name == sub:
                return find(io, attributes, None)
            if isinstance(io, Pins) and sub is None and len(io.names) == 1:
                name = io.names[0]
                return on_connectors[name] if ":" in name else name, attributes, io.invert
        raise KeyError(f"no pin {part.name}.{sub}")

    found = []
    for port, place in wanted.items():
        if isinstance(place, Resource):
            site, attributes, inverted = find(place, {}, None)
        else:
            name, number, sub = place
            site, attributes, inverted = find(by_name[name, number], {}, sub)
        found.append(Pin(port, site, tuple(sorted(attributes.items())), inverted))
    return tuple(found)
