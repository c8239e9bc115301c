"""What the simulations run: small random layers by name, and what a comparison with golden checks."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from random_layers import random_gate, random_layer, random_side

from sim.engines import Engine, EngineResult
from sw_model import golden
from sw_model.config import HardwareConfig
from sw_model.energy.counters import of_array, of_pages, of_work
from sw_model.gate import SideBand
from sw_model.quantised import ExpertFormats, QuantisedLayer, quantise

DOMAINS = 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layer: ``shape`` for :func:`random_layer`; ``fmt``: a format, or "mixed"; ``gate``: with one."""

    fmt: str = "int8"
    gate: bool = False
    shape: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [f"{k}{v:d}" if isinstance(v, int) else f"{k}{v}" for k, v in self.shape.items()]
        return "-".join([self.fmt, *["gate"] * self.gate, *words])

    @property
    def hidden(self) -> int:
        return int(self.shape.get("hidden", 64))

    @property
    def top_k(self) -> int:
        return int(self.shape.get("top_k", 2))


def random_quantised(case: Case, config: HardwareConfig, seed: int) -> QuantisedLayer:
    """The layer of ``case``, with rows of very different size, quantised."""
    rng = np.random.default_rng(seed)
    layer = random_layer(rng, **{"temper": "rows", "router_gain": 4.0, **case.shape})
    gate = random_gate(rng, layer, domains=DOMAINS) if case.gate else None
    names = [fmt.name for fmt in config.formats]
    n = len(names)
    mixed = [
        ExpertFormats(gate_up=names[e % n], down=names[(e + e // n + 1) % n])
        for e in range(len(layer.everyone))
    ]
    return quantise(layer, mixed if case.fmt == "mixed" else case.fmt, config, gate=gate)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal float32 arrays, the sign of zero included."""
    return a.dtype == b.dtype == np.float32 and np.array_equal(a.view(np.uint32), b.view(np.uint32))


def check(
    engine: Engine,
    x: np.ndarray,
    side: SideBand | None = None,
    resident: np.ndarray | None = None,
    split: int | None = None,
) -> EngineResult:
    """Run ``x``, compare y, the counters and the governor with the golden model, and the counters with each
    other.

    ``split``: of all passes of the weights that are loaded, None: as the compiler chooses.
    """
    governor = engine.governor
    expected = golden.run(engine.layer, x, engine.config, side, resident, governor)
    result = engine.run(x, side, resident)
    assert same_bits(result.y, expected.y), _difference(result.y, expected.y)
    counters = result.counters
    want = expected_counters(engine, expected, result, split)
    assert {name: counters[name] for name in want} == want
    assert counters["TOKENS"] == len(x)
    assert counters["ACTIVE_CYCLES"] <= counters["BUSY_CYCLES"] * engine.config.array_clock
    assert counters["BUSY_CYCLES"] <= counters["CYCLES"]
    for work in ("WORD_READS", "NIBBLE_PASSES"):
        assert counters[work] <= counters["ACTIVE_CYCLES"] * engine.config.tiles
    if governor is not None:
        assert result.governed == governor.decided
    return result


def expected_counters(
    engine: Engine, expected: golden.Result, result: EngineResult, split: int | None = None
) -> dict[str, int]:
    """What all counters but those of time must read."""
    work = of_work(expected) | of_array(engine.layer, engine.config, expected, split)
    if result.loaded is None:
        return work
    sizes = engine.page_sizes
    hits = work["EXPERTS_USED"] - len(result.loaded) if len(sizes) else 0
    return work | of_pages(sizes, result.loaded, hits)


def check_with_side(engine: Engine, x: np.ndarray, seed: int, split: int | None = None) -> EngineResult:
    """:func:`check` with random side-band data and residency, where a gate looks at them."""
    if engine.layer.gate is None:
        return check(engine, x, split=split)
    rng = np.random.default_rng(seed)
    side = random_side(rng, len(x), DOMAINS)
    return check(engine, x, side, rng.random(engine.layer.n_experts) < 0.6, split)


def _difference(y: np.ndarray, expected: np.ndarray) -> str:
    wrong = np.argwhere(y.view(np.uint32) != expected.view(np.uint32))
    t, i = wrong[0]
    first = f"token {t}, element {i}: {y[t, i]!r}, golden {expected[t, i]!r}"
    return f"{len(wrong)} of {y.size} differ; first at {first}"
