"""Engines that compute one MoE layer: the golden model, or the generated Verilog in a simulator.

Every engine takes the same quantised layer and gives the same bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from sim.build import build_verilator, generated
from sim.driver import Driver, watchdog
from sim.runner import LayerJob, build, run_layer
from sim.verilator import Core
from sw_model import compiler, golden
from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError
from sw_model.gate import SideBand
from sw_model.quantised import QuantisedLayer

__all__ = ["ENGINES", "Engine", "EngineResult", "open_engine"]


@dataclass(frozen=True, kw_only=True)
class EngineResult:
    """What one run gave.

    y : float32 [T, H]
    experts : int [T, k] by falling logit, or None where the engine does not tell (the hardware)
    counters : of this run; all registers of ``hw.host.registers.COUNTERS`` from the hardware, and from the
        golden model those that are properties of the work: TOKENS, EXPERTS_USED, WORD_READS,
        NIBBLE_PASSES, ROUTED_READS
    """

    y: np.ndarray
    experts: np.ndarray | None
    counters: dict[str, int]


class Engine(ABC):
    """One MoE layer, loaded once, run as often as needed. A context manager.

    Attributes
    ----------
    layer : QuantisedLayer
    config : HardwareConfig
    """

    def __init__(self, layer: QuantisedLayer, config: HardwareConfig) -> None:
        self.layer = layer
        self.config = config

    def run(
        self, x: np.ndarray, side: SideBand | None = None, resident: np.ndarray | None = None
    ) -> EngineResult:
        """Tokens ``x`` float32 [T, H] through the layer, back to back.

        ``side`` and ``resident`` are the gate's, see :func:`sw_model.golden.run`.

        Raises
        ------
        ExpertileError : x of the wrong shape or dtype, or not finite
        RuntimeError : the simulation hangs, crashes or breaks the rules of a port
        """
        golden.check_input(x, self.layer.hidden)
        result = self._run(x, side, resident)
        if result.counters["TOKENS"] != len(x):
            raise RuntimeError(f"the core counted {result.counters['TOKENS']} tokens of {len(x)}")
        return result

    @abstractmethod
    def _run(self, x: np.ndarray, side: SideBand | None, resident: np.ndarray | None) -> EngineResult: ...

    def close(self) -> None:  # noqa: B027 (most engines hold nothing)
        """Give back what the engine holds."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Golden(Engine):
    """The specification itself."""

    def _run(self, x: np.ndarray, side: SideBand | None, resident: np.ndarray | None) -> EngineResult:
        result = golden.run(self.layer, x, self.config, side, resident)
        stats = result.stats
        counters = {
            "TOKENS": stats.tokens,
            "EXPERTS_USED": stats.experts_used,
            "WORD_READS": stats.word_reads,
            "NIBBLE_PASSES": stats.nibble_passes,
            "ROUTED_READS": stats.routed_reads,
            **stats.removed,
        }
        return EngineResult(y=result.y, experts=result.experts, counters=counters)


class _Verilator(Engine):
    """A Verilated instance that keeps its weights."""

    def __init__(self, layer: QuantisedLayer, config: HardwareConfig, *, stalls: float, seed: int) -> None:
        super().__init__(layer, config)
        image = compiler.compile(layer, config)
        library = build_verilator(generated(config))
        self.core = Core(library, stalls=stalls, seed=seed, watchdog=watchdog(config))
        self.driver = Driver(self.core)
        self.driver.load(image)

    def _run(self, x: np.ndarray, side: SideBand | None, resident: np.ndarray | None) -> EngineResult:
        if self.layer.gate is not None:
            everyone = np.ones(self.layer.n_experts, dtype=bool)
            self.driver.set_resident(everyone if resident is None else resident)
        y = self.driver.run(x, side)
        return EngineResult(y=y, experts=None, counters=self.driver.counters())

    def close(self) -> None:
        self.core.close()


class _Icarus(Engine):
    """Icarus through cocotb; every run starts a simulator anew and loads everything over the ports."""

    def __init__(self, layer: QuantisedLayer, config: HardwareConfig, *, stalls: float, seed: int) -> None:
        super().__init__(layer, config)
        self._image = compiler.compile(layer, config)
        self._folder = build("icarus", generated(config))
        self._stalls, self._seed = stalls, seed

    def _run(self, x: np.ndarray, side: SideBand | None, resident: np.ndarray | None) -> EngineResult:
        job = LayerJob(
            image=self._image,
            x=x,
            side=side,
            resident=resident,
            stalls=self._stalls,
            seed=self._seed,
            watchdog=watchdog(self.config),
        )
        y, counters = run_layer("icarus", self._folder, job)
        return EngineResult(y=y, experts=None, counters=counters)


_RTL = {"verilator": _Verilator, "icarus": _Icarus}
ENGINES = ("golden", *_RTL)


def open_engine(
    name: str, layer: QuantisedLayer, config: HardwareConfig, *, stalls: float = 0.0, seed: int = 0
) -> Engine:
    """An engine with ``layer`` loaded.

    Parameters
    ----------
    name : "golden", "verilator" or "icarus"
    stalls : probability of a random pause, each cycle, on every stream and register channel (RTL engines)
    seed : of the pauses

    Raises
    ------
    ExpertileError : unknown name, a tool is missing, or the layer does not fit ``config``
    """
    if name == "golden":
        return _Golden(layer, config)
    if name not in _RTL:
        raise ExpertileError(f"engine {name!r}: unknown; choose one of {', '.join(ENGINES)}")
    return _RTL[name](layer, config, stalls=stalls, seed=seed)
