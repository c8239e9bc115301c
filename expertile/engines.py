"""One MoE layer, or all of a model's, on the chosen engine, with every RTL result held against golden."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np

from driver.pipes import BAUD
from expertile.options import EngineName, FormatName
from expertile.output import Mismatch, console
from sw_model import golden, reference, reference_gate
from sw_model.checkpoint import Checkpoint
from sw_model.compiler import paging
from sw_model.config import HardwareConfig
from sw_model.energy.counters import of_array, of_work
from sw_model.energy.counts import Counts
from sw_model.energy.estimate import Estimate
from sw_model.energy.meter import Governor
from sw_model.errors import ExpertileError
from sw_model.formats import BLOCK
from sw_model.gate import Decisions, Gate, SideBand
from sw_model.gate_file import GateFile
from sw_model.model_gate import LEVELS
from sw_model.moe import MoELayer
from sw_model.pages import PageTable
from sw_model.quantised import ExpertFormats, QuantisedLayer, check_gate, quantise
from sw_model.scale_search import Importance

__all__ = ["LayerEngine", "LayerResult", "ModelEngine", "Tally"]


@dataclass(kw_only=True)
class Tally:
    """Work done, summed over calls. Cycles stay 0 unless hardware counted them (for ``timed`` tokens),
    ``gated`` and what follows it unless there is a gate, pages unless experts are loaded on demand."""

    calls: int = 0
    tokens: int = 0
    gated: int = 0
    empty: int = 0
    density: int = 0
    domain: int = 0
    cost: int = 0
    cap: int = 0
    experts_used: int = 0
    macs: int = 0
    cycles: int = 0
    timed: int = 0
    passes: int = 0
    pass_slots: int = 0
    page_hits: int = 0
    page_misses: int = 0
    page_stalls: int = 0

    def add(self, other: "Tally") -> None:
        """Add ``other`` to this one."""
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def decided(self, d: Decisions | None) -> None:
        """Count what the gate decided."""
        if d is None:
            return
        self.gated += len(d.kept)
        self.empty += int((~d.kept.any(axis=1)).sum())
        for level, name in enumerate(LEVELS, start=1):
            setattr(self, name, getattr(self, name) + int((d.removed == level).sum()))

    def figures(self) -> dict[str, Any]:
        """The JSON keys that follow from the sums; None where the engine does not count it."""
        return {
            "experts_per_token": self.experts_used / self.tokens if self.tokens else None,
            "mean_experts": self.experts_used / self.tokens if self.tokens else None,
            "p_empty": self.empty / self.gated if self.gated else None,
            "removed_by_level": {name: getattr(self, name) for name in LEVELS} if self.gated else None,
            "cycles": self.cycles or None,
            "cycles_per_token": self.cycles / self.timed if self.cycles else None,
            "macs": self.macs or None,
            "mac_utilisation": self.passes / self.pass_slots if self.pass_slots else None,
            **self._page_figures(),
        }

    def _page_figures(self) -> dict[str, Any]:
        used = self.page_hits + self.page_misses
        if not used:
            return {}
        return {
            "page_hit_rate": self.page_hits / used,
            "pages_loaded": self.page_misses,
            "page_stall_cycles": self.page_stalls if self.cycles else None,
        }


@dataclass(frozen=True, kw_only=True)
class LayerResult:
    """y float32 [T, H], candidates int [T, k], what the gate decided about them, and the work it took (None
    in float64)."""

    y: np.ndarray
    experts: np.ndarray
    decisions: Decisions | None
    tally: Tally = field(repr=False)
    work: Counts | None = field(default=None, repr=False)


class LayerEngine:
    """One layer on one engine.

    Parameters
    ----------
    layer : MoELayer
    name : str
        What messages call it.
    engine, config
        As on the command line.
    formats
        One for all experts, or every expert's; ``reference`` needs neither this nor ``config``.
    importance
        From calibration, for the quantiser's search of scales.
    gate : Gate or None
        The three-level gate; it is told which experts are on chip when a call begins.
    stalls, seed
        Random stalls on every stream of an RTL engine.
    energy : Estimate or None
        What a token may take, once :meth:`govern` is called.

    Raises
    ------
    ExpertileError
        The gate is another layer's, the layer is over the maxima of ``config``, a tool is missing, or the
        energy is less than a token can do with.
    """

    def __init__(
        self,
        layer: MoELayer,
        name: str,
        engine: EngineName,
        formats: str | Sequence[ExpertFormats],
        config: HardwareConfig,
        *,
        importance: Sequence[Importance] | None = None,
        gate: Gate | None = None,
        stalls: float = 0.0,
        seed: int = 0,
        energy: Estimate | None = None,
    ) -> None:
        self.layer = layer
        self._name = name
        self._where: str = engine.value
        self._config = config
        self._gate = gate
        self._quantised: QuantisedLayer | None = None
        self._pages: PageTable | None = None
        if engine is not EngineName.reference:
            self._quantised = quantise(layer, formats, config, importance, gate)
            with suppress(ExpertileError):  # golden alone computes it anyhow; the others say what is missing
                slots = paging(self._quantised, config)["PAGE_SLOTS"]
                self._pages = PageTable(slots) if slots else None
        elif gate is not None:
            check_gate(gate, layer, config)
        self._governor: Governor | None = None
        self._budget: Governor | None = None
        if energy is not None:
            assert self._quantised is not None
            self._budget = energy.governor(self._quantised, name)
        self._rtl: Any = None
        if engine.is_rtl:
            from sim.engines import open_engine

            self._rtl = open_engine(engine.value, self._quantised, config, stalls=stalls, seed=seed)

    @property
    def quantised(self) -> QuantisedLayer:
        """What runs; the float engine has none."""
        assert self._quantised is not None
        return self._quantised

    def attach(self, device: Any, where: str) -> None:
        """From now on the layer runs on ``device`` (:class:`sim.engines.Engine`), beside the golden engine;
        ``where`` is what messages call it."""
        self._rtl, self._where = device, where

    def run(self, x: np.ndarray, side: SideBand | None = None) -> LayerResult:
        """The layer's output for x float32 [T, H]; ``side`` tells the gate about the tokens.

        Raises
        ------
        ExpertileError
            x has another shape or dtype, or is not finite.
        Mismatch
            An RTL engine did not give golden's bits.
        """
        golden.check_input(x, self.layer.hidden)
        tally = Tally(calls=1, tokens=len(x))
        if self._quantised is None:
            return self._float(x, side, tally)
        resident = None if self._pages is None else self._pages.mask(self.layer.n_experts)
        want = golden.run(self._quantised, x, self._config, side, resident, self._governor)
        if self._pages is not None:
            tally.page_hits, loaded = self._pages.follow(want)
            tally.page_misses = len(loaded)
        tally.experts_used, tally.macs = want.stats.experts_used, want.stats.macs
        tally.decided(want.decisions)
        y = want.y
        if self._rtl is not None:
            try:
                got = self._rtl.run(x) if self._gate is None else self._rtl.run(x, side)
            except RuntimeError as error:  # it hung, or broke the rules of a port
                raise Mismatch(f"{self._name}: {self._where}: {error}") from error
            self._compare(want, got, tally)
            y = got.y
            tally.experts_used = got.counters["EXPERTS_USED"]
            tally.cycles, tally.timed = got.counters["BUSY_CYCLES"], len(x)
            tally.passes = got.counters["NIBBLE_PASSES"]
            cycles = tally.cycles * self._config.array_clock
            tally.pass_slots = self._config.macs_per_cycle * cycles // BLOCK
            if self._pages is not None:
                tally.page_stalls = got.counters["PAGE_STALL_CYCLES"]
        return LayerResult(
            y=y, experts=want.experts, decisions=want.decisions, tally=tally, work=want.work.total()
        )

    def govern(self) -> Governor:
        """From now on under the energy budget, from nothing owed; returns the golden engine's governor. The
        hardware's own is held against it with every call."""
        assert self._budget is not None
        self._governor = self._budget
        if self._rtl is not None:
            self._rtl.govern(self._governor)
        return self._governor

    def _float(self, x: np.ndarray, side: SideBand | None, tally: Tally) -> LayerResult:
        exact: reference.Result | reference_gate.Result
        if self._gate is None:
            exact, decisions = reference.run(self.layer, x), None
            tally.experts_used = exact.experts.size
        else:
            exact = reference_gate.run(self.layer, self._gate, x, side)
            decisions = exact.decisions
            tally.experts_used = int(decisions.kept.sum())
            tally.decided(decisions)
        y = exact.y.astype(np.float32)
        return LayerResult(y=y, experts=exact.experts, decisions=decisions, tally=tally)

    def _compare(self, want: golden.Result, got: Any, tally: Tally) -> None:
        what = f"{self._name}: {self._where} and golden differ"
        if got.y.shape != want.y.shape:
            raise Mismatch(f"{what}: {list(got.y.shape)} numbers came out, not {list(want.y.shape)}")
        bits, right = got.y.view(np.uint32), want.y.view(np.uint32)
        if not np.array_equal(bits, right):
            token, element = (int(i) for i in np.argwhere(bits != right)[0])
            raise Mismatch(
                f"{what} in {int((bits != right).sum())} of {bits.size} numbers, first at token {token}, "
                f"element {element}: {got.y[token, element]!r}, not {want.y[token, element]!r}"
            )
        if got.experts is not None and not np.array_equal(got.experts, want.experts):
            token = int(np.argwhere((got.experts != want.experts).any(axis=1))[0][0])
            raise Mismatch(f"{what} in the experts of token {token}")
        assert self._quantised is not None
        counts = of_work(want) | of_array(self._quantised, self._config, want)
        if self._pages is not None:
            counts |= {"PAGE_HITS": tally.page_hits, "PAGE_MISSES": tally.page_misses}
        for name, count in counts.items():
            if got.counters[name] != count:
                raise Mismatch(f"{what} in counter {name}: {got.counters[name]}, not {count}")

        if self._governor is not None and got.governed != self._governor.decided:
            raise Mismatch(f"{what} in the governor: {got.governed}, not {self._governor.decided}")

    def close(self) -> None:
        """Release the simulator."""
        if self._rtl is not None:
            self._rtl.close()


class ModelEngine:
    """Every MoE layer of a checkpoint on one engine: the ``moe`` callable of a Decoder. A context manager.

    ``ports`` : layer -> port of the device that it runs on, beside the golden engine; layers with the same
    port share the device, all on chip at once. ``baud``: of serial ports.

    Attributes
    ----------
    layers : int
        How many there are.
    tally : Tally
        Sums over all layers and calls.
    side : SideBand or None
        What the gates are told about the tokens of the next calls.
    work : Counts or None
        Summed over the calls since it was last set to None.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: EngineName,
        fmt: FormatName,
        config: HardwareConfig,
        *,
        gate: GateFile | None = None,
        ports: Mapping[int, str] | None = None,
        baud: int = BAUD,
        **options: Any,
    ) -> None:
        if fmt is FormatName.auto:
            raise ExpertileError(
                "format 'auto': chosen layer by layer, with `expertile layer`; name a format here"
            )
        self.layers = len(checkpoint.moe_layers)
        self.tally = Tally()
        self.side: SideBand | None = None
        self.work: Counts | None = None
        self._layers: dict[int, LayerEngine] = {}
        try:
            for n in checkpoint.moe_layers:
                with console(stderr=True).status(f"loading the experts of layer {n} ({engine.value})"):
                    layer = checkpoint.moe_layer(n)
                one = None if gate is None else gate.gate(n)
                # Simulators say themselves what takes so long.
                self._layers[n] = LayerEngine(
                    layer, f"layer {n}", engine, fmt.value, config, gate=one, **options
                )
            for port in sorted(set((ports or {}).values())):
                self._attach(port, [n for n in self._layers if (ports or {}).get(n) == port], config, baud)
        except BaseException:
            self.close()
            raise

    def _attach(self, port: str, numbers: list[int], config: HardwareConfig, baud: int) -> None:
        """Have these layers run on the device at ``port``."""
        from sim.engines import open_port

        layers = [self._layers[n] for n in numbers]
        named = f"layer{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
        with console(stderr=True).status(f"{named}: weights to {port}, unless they are there"):
            devices = open_port(port, [layer.quantised for layer in layers], config, baud=baud)
        for layer, device in zip(layers, devices, strict=True):
            layer.attach(device, port)

    def __call__(self, n: int, x: np.ndarray) -> np.ndarray:
        result = self._layers[n].run(x, self.side)
        self.tally.add(result.tally)
        if result.work is not None:
            self.work = result.work if self.work is None else self.work + result.work
        return result.y

    def govern(self) -> dict[int, Governor]:
        """:meth:`LayerEngine.govern` of every layer."""
        return {n: layer.govern() for n, layer in self._layers.items()}

    def close(self) -> None:
        """Release all simulators."""
        for layer in self._layers.values():
            layer.close()

    def __enter__(self) -> "ModelEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
