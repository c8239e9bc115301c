"""The host's view of one accelerator: registers by name, a weight image, its layers, tokens in and out."""

from __future__ import annotations

import numpy as np

from driver.bus import Bus
from hw.host.registers import (
    COUNTERS,
    ID_VALUE,
    OLDEST_VERSION,
    REGISTERS,
    VERSION_VALUE,
    address,
    config_id,
    present,
)
from sw_model.config import Feature, HardwareConfig, load_config, presets
from sw_model.energy.governor import Registers
from sw_model.errors import ExpertileError
from sw_model.gate import SideBand
from sw_model.image import PLACE_REGISTERS, Image, resident_packet

__all__ = ["BAD_WEIGHTS", "CLEAR", "ENABLE", "FLUSH", "Driver"]

ENABLE, CLEAR, FLUSH, HOLD, GOVERN = (1 << f.lsb for f in REGISTERS["CONTROL"].fields)
_STATUS = {f.name: 1 << f.lsb for f in REGISTERS["STATUS"].fields}
BAD_WEIGHTS, HELD = _STATUS["error_weights"], _STATUS["held"]
_HOLD_READS = 10_000  # of STATUS until counters are held, which takes the core some 100 cycles
_RESPONSES = {0: "OKAY", 1: "EXOKAY", 2: "SLVERR", 3: "DECERR"}


class Driver:
    """Drives an accelerator through ``bus`` alone; requests for pages are answered from the image.

    Attributes
    ----------
    image : Image or None
        The layer that it is, or the layers.

    Raises
    ------
    RuntimeError : a register access or a weight packet is refused, or the core hangs
    ExpertileError : the design was made without a block that is asked for
    """

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.image: Image | None = None
        self._layer: dict[str, int] = {}  # the layer's registers, as written
        self._resident: np.ndarray | None = None  # as told to the gate
        self._weights: dict[str, int] = {}  # of the meter, as written
        self._experts = 0
        self._seen = 0  # requests since serve_pages
        self._slots: dict[int, int] = {}  # slot -> expert

    def write(self, name: str, value: int) -> None:
        """Write a register by name."""
        response = self.bus.write(address(name), value)
        if response:
            raise RuntimeError(f"write of {name}: {_RESPONSES[response]}")

    def read(self, name: str) -> int:
        """Read a register by name."""
        value, response = self.bus.read(address(name))
        if response:
            raise RuntimeError(f"read of {name}: {_RESPONSES[response]}")
        return value

    def require(self, config: HardwareConfig) -> None:
        """Make sure that this is an accelerator generated from ``config``.

        Raises
        ------
        ExpertileError : it is something else; says what
        """
        if (found := self.read("ID")) != ID_VALUE:
            raise ExpertileError(
                f"device: its ID is {found:#010x}: no Expertile accelerator; load a bitstream"
            )
        if (version := self.read("VERSION")) >> 16 != VERSION_VALUE >> 16 or version < OLDEST_VERSION:
            raise ExpertileError(
                f"device: its register map is {version:#x}, this software's {VERSION_VALUE:#x} (and from "
                f"{OLDEST_VERSION:#x} on); build the bitstream anew"
            )
        if (found := self.read("CONFIG_HASH")) != config_id(config):
            names = [name for name in presets() if config_id(load_config(name)) == found]
            raise ExpertileError(
                f"device: made from {f'configuration {names[0]!r}' if names else 'another configuration'} "
                f"(hash {found:08x}), not {config.name!r} ({config_id(config):08x}); "
                f"{f'use --config {names[0]}' if names else 'name the one that it was made from'}, "
                "or load another bitstream"
            )

    def features(self) -> Feature:
        """The blocks that it has, of those that a design may be made without."""
        return Feature(self.read("FEATURES"))

    def configure(self, image: Image) -> None:
        """Write the registers of the image's first layer and enable, ungoverned; the weights are there
        already, but no pages."""
        self.write("CONTROL", 0)
        features = self.features()
        there = {name: r.there(features) for name, r in present(features).items()}
        for layer in image.layers:
            for name, value in layer.items():
                if value & ~there.get(name, 0):
                    raise ExpertileError(f"device: made without what {name} = {value:#x} of the image is for")
        registers = {**dict.fromkeys(PLACE_REGISTERS, 0), **image.registers}
        self._layer = {name: value for name, value in registers.items() if name in there}
        for name, value in self._layer.items():
            self.write(name, value)
        self.bus.serve_pages([list(image.pages.packets(e)) for e in range(len(image.page_sizes))])
        self.image = image
        self._experts, self._seen, self._slots = image.registers["EXPERTS"], 0, {}
        self.govern(None, {})
        self.write("CONTROL", ENABLE | CLEAR | FLUSH)

    def select(self, layer: int) -> None:
        """Have the next tokens go through this layer of the image, 0 for the first: the registers that differ
        are written. No token is in the core."""
        assert self.image is not None
        registers = {**dict.fromkeys(PLACE_REGISTERS, 0), **self.image.layers[layer]}
        for name, before in self._layer.items():
            if (value := registers[name]) != before:
                self.write(name, value)
                self._layer[name] = value
        self._experts = registers["EXPERTS"]

    def load(self, image: Image) -> None:
        """Make the accelerator the first layer of ``image``: registers, and the weights of all its layers
        unless it woke up with them."""
        self.write("CONTROL", CLEAR)
        if self.read("IMAGE") != image.id:
            self.bus.send_weights(image.packets())
            self.bus.finish()
        if self.read("STATUS") & BAD_WEIGHTS:
            raise RuntimeError(f"the device refused weights: is {image.config!r} what it was made from?")
        self.configure(image)

    def run(self, x: np.ndarray, side: SideBand | None = None) -> np.ndarray:
        """Tokens float32 [T, H], counters cleared before; returns y float32 [T, H]."""
        self.write("CONTROL", ENABLE | CLEAR)
        if not len(x):
            return np.zeros_like(x)
        return self.bus.run(x, None if side is None else side.pack())

    def resident(self) -> np.ndarray:
        """Experts, bool [E], that have a page slot."""
        requests = self.bus.page_requests(self._seen)
        self._seen += len(requests)
        self._slots |= {slot: expert for expert, slot in requests}
        return np.isin(np.arange(self._experts), list(self._slots.values()))

    def govern(self, registers: Registers | None, weights: dict[str, int]) -> None:
        """Start the governor afresh, or turn it off; ``weights`` of the meter. No token is in the core."""
        if Feature.GOVERNOR not in self.features():
            if registers is not None:
                raise ExpertileError("device: made without a governor; use one whose configuration has it")
            return
        self._weights = {}
        self.weigh(weights)
        self.write("GOVERNOR_BUDGET", 0 if registers is None else int(registers.budget))
        if registers is not None:
            self.write("GOVERNOR_SHIFT", int(registers.shift))
            self.write("GOVERNOR_LAMBDA_MAX", registers.lambda_max)
            self.write("GOVERNOR_LAST_MODE", registers.last_mode)
        self.write("CONTROL", self.read("CONTROL") | GOVERN)

    def weigh(self, weights: dict[str, int]) -> None:
        """Write the ``weights`` of the meter that have changed. No token is in the core."""
        for name, value in weights.items():
            if self._weights.get(name) != value:
                self.write(f"ENERGY_{name}", value)
        self._weights = dict(weights)

    def governed(self) -> dict[str, int]:
        """What the governor has decided (fields of GOVERNOR_STATE), its credit, the last token's energy."""
        state = self.read("GOVERNOR_STATE")
        found = {f.name: state >> f.lsb & ((1 << f.width) - 1) for f in REGISTERS["GOVERNOR_STATE"].fields}
        credit = self.read("GOVERNOR_CREDIT")
        found["credit"] = credit - (credit >> 31 << 32)
        return found | {"energy": self.read("GOVERNOR_ENERGY")}

    def requests(self) -> list[int]:
        """Experts whose pages were asked for since :meth:`configure`, in order."""
        return [expert for expert, _ in self.bus.page_requests(0)]

    def set_resident(self, resident: np.ndarray) -> None:
        """Tell the gate which experts (bool [E]) of the layer are on chip, if it was told otherwise; between
        batches."""
        if self._resident is None or not np.array_equal(resident, self._resident):
            self.bus.send_weights([resident_packet(resident)])
            self.bus.finish()
            self._resident = resident.copy()

    def counters(self) -> dict[str, int]:
        """All counters by name, as of one cycle."""
        control = self.read("CONTROL")
        self.write("CONTROL", control | HOLD)
        if not any(self.read("STATUS") & HELD for _ in range(_HOLD_READS)):
            raise RuntimeError("the device holds no counters: reset it")
        values = {name: self.read(name) | self.read("COUNTER_HIGH") << 32 for name in COUNTERS}
        self.write("CONTROL", control)
        return values

    def close(self) -> None:
        """Give the bus back."""
        self.bus.close()
