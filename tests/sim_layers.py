"""Random MoE layers and tokens for the simulations, and what a comparison with the golden model checks."""

from dataclasses import dataclass

import numpy as np

from sim.engines import Engine, EngineResult
from sw_model import golden
from sw_model.config import HardwareConfig
from sw_model.moe import Expert, MoELayer
from sw_model.quantised import QuantisedLayer, quantise


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layer's shape and rules; ``shared``: width of the base expert, 0 for none."""

    hidden: int = 64
    intermediate: int = 32
    shared: int = 0
    gated: bool = False
    experts: int = 4
    top_k: int = 2
    renormalise: bool = True
    fmt: str = "int8"

    def __str__(self) -> str:
        shared = f"-shared{self.shared}{'gated' * self.gated}" if self.shared else ""
        norm = "-norm" if self.renormalise else ""
        return (
            f"{self.fmt}-h{self.hidden}-i{self.intermediate}-{self.top_k}of{self.experts}{norm}{shared}"
        )


def random_layer(case: Case, seed: int) -> MoELayer:
    """Weights of trained size, with rows of very different size and one row of zeros among them."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        w = rng.standard_normal((rows, columns)) * columns**-0.5
        w *= 2.0 ** rng.integers(-6, 3, size=(rows, 1))
        w[rng.integers(rows)] = 0
        return w.astype(np.float32)

    def expert(width: int) -> Expert:
        h = case.hidden
        return Expert(gate=matrix(width, h), up=matrix(width, h), down=matrix(h, width))

    return MoELayer(
        router=rng.standard_normal((case.experts, case.hidden)).astype(np.float32),
        experts=tuple(expert(case.intermediate) for _ in range(case.experts)),
        shared=expert(case.shared) if case.shared else None,
        shared_gate=rng.standard_normal(case.hidden).astype(np.float32) if case.gated else None,
        top_k=case.top_k,
        renormalise=case.renormalise,
    )


def random_quantised(case: Case, config: HardwareConfig, seed: int) -> QuantisedLayer:
    """:func:`random_layer`, quantised."""
    return quantise(random_layer(case, seed), case.fmt, config)


def random_tokens(tokens: int, hidden: int, seed: int) -> np.ndarray:
    """Ordinary tokens, among them (from the fourth on) a zero, a one-hot, a tiny, a huge and a ragged one."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, hidden))
    special = [
        np.zeros(hidden),
        np.eye(1, hidden, hidden - 1)[0],
        rng.standard_normal(hidden) * 2.0**-140,
        rng.standard_normal(hidden) * 2.0**60,
        rng.standard_normal(hidden) * 2.0 ** rng.integers(-30, 30, size=hidden),
    ]
    for row, value in zip(range(3, tokens), special, strict=False):
        x[row] = value
    return x.astype(np.float32)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal float32 arrays, the sign of zero included."""
    return a.dtype == b.dtype == np.float32 and np.array_equal(a.view(np.uint32), b.view(np.uint32))


def check(engine: Engine, x: np.ndarray) -> EngineResult:
    """Run ``x``, compare y and the work counters with the golden model, and the counters with each other."""
    expected = golden.run(engine.layer, x, engine.config)
    result = engine.run(x)
    assert same_bits(result.y, expected.y), _difference(result.y, expected.y)
    counters = result.counters
    assert counters["TOKENS"] == len(x)
    assert counters["EXPERTS_USED"] == expected.stats.experts_used
    assert counters["WORD_READS"] * 32 == expected.stats.nibble_macs
    assert counters["ACTIVE_CYCLES"] <= counters["BUSY_CYCLES"] <= counters["CYCLES"]
    assert counters["WORD_READS"] <= counters["ACTIVE_CYCLES"] * engine.config.tiles
    return result


def _difference(y: np.ndarray, expected: np.ndarray) -> str:
    wrong = np.argwhere(y.view(np.uint32) != expected.view(np.uint32))
    t, i = wrong[0]
    first = f"token {t}, element {i}: {y[t, i]!r}, golden {expected[t, i]!r}"
    return f"{len(wrong)} of {y.size} differ; first at {first}"
