"""Engines that compute one MoE layer: the golden model, the generated Verilog in a simulator, or a device.

Every engine takes the same quantised layer and gives the same bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from driver.accelerator import Driver
from driver.bus import Bus
from driver.link import Link
from driver.link_bus import LinkBus
from driver.pipes import BAUD, PortPipe
from hw.boards.flow import find
from sim.board import open_board
from sim.build import build_verilator, generated
from sim.memory import PageMemory
from sim.runner import LayerJob, build, run_layer
from sim.verilator import Core, watchdog
from sw_model import compiler, golden
from sw_model.config import Feature, HardwareConfig
from sw_model.energy.counters import of_array, of_pages, of_work
from sw_model.energy.meter import Governor
from sw_model.errors import ExpertileError
from sw_model.gate import SideBand
from sw_model.image import Image
from sw_model.joined import join
from sw_model.pages import PageTable
from sw_model.quantised import QuantisedLayer

__all__ = ["ENGINES", "Engine", "EngineResult", "open_engine", "open_port"]


@dataclass(frozen=True, kw_only=True)
class EngineResult:
    """What one run gave.

    y : float32 [T, H]
    experts : int [T, k] by falling logit, or None where the engine does not tell (the hardware)
    counters : of this run; all registers of ``hw.host.registers.COUNTERS`` from the hardware, and from the
        golden model those of :mod:`sw_model.energy.counters`
    loaded : experts whose pages were asked for, in order, or None where the engine does not tell (Icarus)
    governed : what the hardware's governor has decided for the next token, if there is one
        (:meth:`driver.accelerator.Driver.governed`)
    """

    y: np.ndarray
    experts: np.ndarray | None
    counters: dict[str, int]
    loaded: Sequence[int] | None = ()
    governed: Mapping[str, int] | None = None


class Engine(ABC):
    """One MoE layer, loaded once, run as often as needed. A context manager.

    Attributes
    ----------
    layer : QuantisedLayer
    config : HardwareConfig
    paged : experts are loaded on demand
    page_sizes : int [experts, 2], words and scale entries over all tiles of each expert's page, if paged
    governor : Governor or None
    """

    def __init__(self, layer: QuantisedLayer, config: HardwareConfig, slots: int | None) -> None:
        self.layer = layer
        self.config = config
        self.governor: Governor | None = None
        self._page_slots = compiler.paging(layer, config, slots=slots)["PAGE_SLOTS"]

    @property
    def paged(self) -> bool:
        return self._page_slots > 0

    @property
    def resident(self) -> np.ndarray:
        """Experts, bool [E], that are on chip now."""
        return self._resident() if self.paged else np.ones(self.layer.n_experts, dtype=bool)

    def run(
        self, x: np.ndarray, side: SideBand | None = None, resident: np.ndarray | None = None
    ) -> EngineResult:
        """Tokens ``x`` float32 [T, H] through the layer, back to back.

        ``side`` and ``resident`` are the gate's, see :func:`sw_model.golden.run`; without ``resident``, the
        gate is told which experts are on chip at the start.

        Raises
        ------
        ExpertileError : x of the wrong shape or dtype, or not finite
        RuntimeError : the simulation hangs, crashes or breaks the rules of a port
        """
        golden.check_input(x, self.layer.hidden)
        result = self._run(x, side, self.resident if resident is None else resident)
        if result.counters["TOKENS"] != len(x):
            raise RuntimeError(f"the core counted {result.counters['TOKENS']} tokens of {len(x)}")
        return result

    def govern(self, governor: Governor | None) -> None:
        """From now on under a governor (:attr:`governor`, in a hardware engine its own, with these registers
        and weights), from nothing owed; or none.

        Raises
        ------
        ExpertileError : the engine starts anew with every run (Icarus), or the design has no governor
        """
        if governor is not None:
            self.config.require(Feature.GOVERNOR, "a governor")
        self.governor = governor

    @property
    @abstractmethod
    def page_sizes(self) -> np.ndarray: ...

    @abstractmethod
    def _run(self, x: np.ndarray, side: SideBand | None, resident: np.ndarray) -> EngineResult: ...

    @abstractmethod
    def _resident(self) -> np.ndarray: ...

    def close(self) -> None:  # noqa: B027 (most engines hold nothing)
        """Give back what the engine holds."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Golden(Engine):
    """The specification itself."""

    def __init__(self, layer: QuantisedLayer, config: HardwareConfig, slots: int | None) -> None:
        super().__init__(layer, config, slots)
        self._table = PageTable(self._page_slots)
        self._sizes = np.zeros((0, 2), dtype=np.int64)
        if self.paged:
            self._sizes = compiler.compile(layer, config, slots=slots).page_sizes * config.tiles

    @property
    def page_sizes(self) -> np.ndarray:
        return self._sizes

    def _resident(self) -> np.ndarray:
        return self._table.mask(self.layer.n_experts)

    def _run(self, x: np.ndarray, side: SideBand | None, resident: np.ndarray) -> EngineResult:
        result = golden.run(self.layer, x, self.config, side, resident, self.governor)
        hits, loaded = self._table.follow(result) if self.paged else (0, [])
        pages = of_pages(self.page_sizes, loaded, hits)
        counters = of_work(result) | of_array(self.layer, self.config, result) | pages
        return EngineResult(y=result.y, experts=result.experts, counters=counters, loaded=loaded)


def _driver(config: HardwareConfig, image: Image, bus: Bus) -> Driver:
    """The accelerator at ``bus``, made from ``config``, with ``image`` loaded."""
    try:
        driver = Driver(bus)
        driver.require(config)
        driver.load(image)
        return driver
    except BaseException:
        bus.close()
        raise


class _Driven(Engine):
    """An accelerator that keeps its weights, whatever it is reached through: layer ``number`` of those that
    are loaded."""

    def __init__(
        self,
        layer: QuantisedLayer,
        config: HardwareConfig,
        slots: int | None,
        driver: Driver,
        number: int = 0,
    ) -> None:
        super().__init__(layer, config, slots)
        self.driver = driver
        self._number = number

    @property
    def page_sizes(self) -> np.ndarray:
        assert self.driver.image is not None
        return self.driver.image.page_sizes * self.config.tiles

    def _resident(self) -> np.ndarray:
        return self.driver.resident()

    def govern(self, governor: Governor | None) -> None:
        super().govern(governor)
        if governor is None:
            self.driver.govern(None, {})
        else:
            self.driver.govern(governor.registers, governor.weights)

    def _run(self, x: np.ndarray, side: SideBand | None, resident: np.ndarray) -> EngineResult:
        self.driver.select(self._number)
        if self.layer.gate is not None:
            self.driver.set_resident(resident)
        if self.governor is not None:
            self.driver.weigh(self.governor.weights)
        before = len(self.driver.requests())
        y = self.driver.run(x, side)
        loaded = self.driver.requests()[before:]
        return EngineResult(
            y=y,
            experts=None,
            counters=self.driver.counters(),
            loaded=loaded,
            governed=None if self.governor is None else self.driver.governed(),
        )

    def close(self) -> None:
        self.driver.close()


class _Verilator(_Driven):
    """A Verilated instance."""

    def __init__(
        self,
        layer: QuantisedLayer,
        config: HardwareConfig,
        slots: int | None,
        *,
        memory: PageMemory,
        stalls: float,
        seed: int,
    ) -> None:
        image = compiler.compile(layer, config, slots=slots)
        library = build_verilator(generated(config))
        self.core = Core(library, stalls=stalls, seed=seed, watchdog=watchdog(config), memory=memory)
        super().__init__(layer, config, slots, _driver(config, image, self.core))


class _Board(_Driven):
    """A Verilated board whose core has a byte link alone, at its serial line."""

    def __init__(
        self,
        layer: QuantisedLayer,
        config: HardwareConfig,
        slots: int | None,
        *,
        memory: PageMemory,
        stalls: float,
        seed: int,
    ) -> None:
        image = compiler.compile(layer, config, slots=slots)
        self.core = open_board(find("icebreaker"), config, seed=seed)
        super().__init__(layer, config, slots, _driver(config, image, LinkBus(Link(self.core))))


class _Icarus(Engine):
    """Icarus through cocotb; every run starts a simulator anew and loads everything over the ports."""

    def __init__(
        self,
        layer: QuantisedLayer,
        config: HardwareConfig,
        slots: int | None,
        *,
        memory: PageMemory,
        stalls: float,
        seed: int,
    ) -> None:
        super().__init__(layer, config, slots)
        self._image = compiler.compile(layer, config, slots=slots)
        self._memory = memory
        self._folder = build("icarus", generated(config))
        self._stalls, self._seed = stalls, seed

    @property
    def page_sizes(self) -> np.ndarray:
        return self._image.page_sizes * self.config.tiles

    def govern(self, governor: Governor | None) -> None:
        raise ExpertileError("engine 'icarus' starts anew with every run: no governor; use verilator")

    def _resident(self) -> np.ndarray:
        return np.zeros(self.layer.n_experts, dtype=bool)

    def _run(self, x: np.ndarray, side: SideBand | None, resident: np.ndarray) -> EngineResult:
        job = LayerJob(
            image=self._image,
            x=x,
            side=side,
            resident=resident if self.layer.gate is not None else None,
            memory=self._memory,
            stalls=self._stalls,
            seed=self._seed,
            watchdog=watchdog(self.config),
            array_clock=self.config.array_clock,
        )
        y, counters = run_layer("icarus", self._folder, job)
        return EngineResult(y=y, experts=None, counters=counters, loaded=None)


_RTL = {"verilator": _Verilator, "icarus": _Icarus}
ENGINES = ("golden", *_RTL)


def open_engine(
    name: str,
    layer: QuantisedLayer,
    config: HardwareConfig,
    *,
    slots: int | None = None,
    memory: PageMemory | None = None,
    stalls: float = 0.0,
    seed: int = 0,
) -> Engine:
    """An engine with ``layer`` loaded; experts that do not fit are loaded when a token needs them.

    Parameters
    ----------
    name : "golden", "verilator" or "icarus"
    slots : load experts on demand in any case, with at most so many on chip
    memory : where they come from (RTL engines)
    stalls : probability of a random pause, each cycle, on every stream and register channel (RTL engines, but
        with body "micro", whose bytes come at the line's pace)
    seed : of the pauses

    Raises
    ------
    ExpertileError : unknown name, a tool is missing, or the layer does not fit ``config``
    """
    if name == "golden":
        return _Golden(layer, config, slots)
    if name not in _RTL:
        raise ExpertileError(f"engine {name!r}: unknown; choose one of {', '.join(ENGINES)}")
    engine = _RTL[name]
    if config.body == "micro":
        if name != "verilator":
            raise ExpertileError(
                f"engine {name!r} drives AXI ports, and body 'micro' has bytes alone; use verilator"
            )
        engine = _Board
    return engine(layer, config, slots, memory=memory or PageMemory(), stalls=stalls, seed=seed)


def open_port(
    port: str, layers: Sequence[QuantisedLayer], config: HardwareConfig, *, baud: int = BAUD
) -> list[Engine]:
    """The device at a port, made from ``config``, with all of ``layers`` on chip at once (pages, of a layer
    alone: when they are needed). Weights that it woke up with are not sent.

    Parameters
    ----------
    port : a serial port, or sim://HOST:PORT
    baud : of a serial port

    Returns
    -------
    An engine for each layer. They share the device: one runs at a time, and the first that is closed gives
    the port back.

    Raises
    ------
    ExpertileError : nobody answers there, it is another design, or the layers do not fit ``config``
    """
    image = join([compiler.compile(layer, config) for layer in layers], config)
    driver = _driver(config, image, LinkBus(Link(PortPipe(port, baud))))
    return [_Driven(layer, config, None, driver, number) for number, layer in enumerate(layers)]
