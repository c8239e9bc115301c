"""What the flow must know of a board, and its pins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amaranth.build import Connector, Pins, Resource, Subsignal

__all__ = ["DEVICES", "Board", "Device", "Pin", "pins"]


@dataclass(frozen=True, kw_only=True)
class Device:
    """An ECP5: nextpnr's option for it, and what it holds."""

    option: str
    lut: int
    bram: int
    dsp: int

    @property
    def capacity(self) -> dict[str, int]:
        """What it holds, by the names of the report; a flip-flop stands beside every LUT."""
        return {"lut": self.lut, "ff": self.lut, "bram": self.bram, "dsp": self.dsp}


#: ECP5 family data sheet, table 1-1; the LUTs are those that nextpnr can use. The 12F is the 25F's die.
DEVICES: dict[str, Device] = {
    "LFE5U-12F": Device(option="--12k", lut=24288, bram=56, dsp=28),
    "LFE5U-25F": Device(option="--25k", lut=24288, bram=56, dsp=28),
    "LFE5U-45F": Device(option="--45k", lut=43848, bram=108, dsp=72),
    "LFE5U-85F": Device(option="--85k", lut=83640, bram=208, dsp=156),
    "LFE5UM5G-45F": Device(option="--um5g-45k", lut=43848, bram=108, dsp=72),
    "LFE5UM5G-85F": Device(option="--um5g-85k", lut=83640, bram=208, dsp=156),
}


@dataclass(frozen=True)
class Pin:
    """A port bit of the board's top, where it comes out, its I/O attributes, and whether it is active low."""

    port: str
    site: str
    attributes: tuple[tuple[str, str], ...] = ()
    inverted: bool = False


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board with an ECP5, and a UART or SPI to the host.

    name : as the command line has it
    title : as people have it
    part : a name of :data:`DEVICES`
    package, speed : nextpnr's names of package and speed grade
    preset : the configuration that it is built with, unless another is named
    oscillator_mhz : the clock that comes in
    clock_mhz : the clock that the design runs at
    baud : of its UART
    pins : of every port bit of :class:`hw.boards.serial_top.SerialTop`
    """

    name: str
    title: str
    part: str
    package: str
    speed: str
    preset: str
    oscillator_mhz: float
    clock_mhz: float
    baud: int
    pins: tuple[Pin, ...]

    @property
    def device(self) -> tuple[str, ...]:
        """nextpnr's options for device, package and speed grade."""
        return (DEVICES[self.part].option, "--package", self.package, "--speed", self.speed)

    @property
    def capacity(self) -> dict[str, int]:
        """What the device holds: lut, ff, bram, dsp."""
        return DEVICES[self.part].capacity

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

    def lpf(self) -> str:
        """The constraints in the format of the Lattice tools."""
        lines = [f'FREQUENCY PORT "clk" {self.oscillator_mhz:g} MHZ;']
        for pin in self.pins:
            lines.append(f'LOCATE COMP "{pin.port}" SITE "{pin.site}";')
            attributes = " ".join(f"{k}={v}" for k, v in pin.attributes)
            lines.append(f'IOBUF PORT "{pin.port}" {attributes};')
        return "\n".join(lines) + "\n"


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
