"""Whole layers on Verilated cores whose macros look sums up: bit for bit the golden model."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from random_layers import RULES, random_tokens
from sim_layers import Case, check, check_with_side, random_quantised, same_bits

from hw.verilog import array_clock, generate
from sim.build import build_verilator
from sim.engines import open_engine
from sim.memory import PageMemory
from sim.verilator import Core
from sw_model import compiler, golden
from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError

pytestmark = pytest.mark.sim

ONE_CLOCK = HardwareConfig(
    name="lookup", tiles=3, words=4096, scales=2048, max_hidden=96, max_intermediate=96, max_experts=8,
    max_top_k=3, body="lut", page_slots=5,
)  # fmt: skip
TWO_CLOCKS = replace(ONE_CLOCK, name="lookup_clock", tiles=4, array_clock=3, drain=2)
TWO_COLUMNS = replace(ONE_CLOCK, name="lookup_columns", tiles=6, array_clock=2, columns=2, router_spread=1)
CONFIGS = (ONE_CLOCK, TWO_CLOCKS, TWO_COLUMNS)

PAGED = {"experts": 8, "top_k": 3, "shared": 64, "gated": True}
SHAPES: list[dict[str, Any]] = [
    {},
    {"width": 64, "experts": 8, "shared": 64, "gated": True, "renormalise": False},
    {"hidden": 33, "width": 35, "shared": 37, "experts": 5},
    {"hidden": 2, "width": 1, "experts": 3, "renormalise": False},
    {"hidden": 96, "width": 96, "shared": 96, "gated": True, "experts": 5, "top_k": 3},  # as large as goes
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
@pytest.mark.parametrize(("fmt", "stalls"), [("int8", 0.0), ("int4", 0.4), ("int4", 0.0), ("mixed", 0.3)])
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_equals_golden(shape: int, fmt: str, stalls: float, config: HardwareConfig) -> None:
    case = Case(fmt=fmt, shape=SHAPES[shape])
    layer = random_quantised(case, config, seed=shape)
    with open_engine("verilator", layer, config, stalls=stalls, seed=shape) as engine:
        check(engine, random_tokens(np.random.default_rng(shape), 17, case.hidden))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_with_a_gate(rule: str, config: HardwareConfig) -> None:
    case = Case(fmt="mixed", gate=True, shape=RULES[rule])
    layer = random_quantised(case, config, seed=2)
    with open_engine("verilator", layer, config, stalls=0.2, seed=2) as engine:
        check_with_side(engine, random_tokens(np.random.default_rng(3), 12, case.hidden), 3)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
@pytest.mark.parametrize(("slots", "stalls"), [(3, 0.0), (4, 0.3), (5, 0.0)])
def test_pages(slots: int, stalls: float, config: HardwareConfig) -> None:
    """Experts that are loaded while others are computed, over the tiles' second port."""
    layer = random_quantised(Case(fmt="mixed", shape=PAGED), config, seed=slots)
    memory = PageMemory(latency=40 * slots, bandwidth=0.8)
    with open_engine("verilator", layer, config, slots=slots, memory=memory, stalls=stalls, seed=3) as engine:
        rng = np.random.default_rng(slots)
        for n in (1, 60, 40):
            counters = check(engine, random_tokens(rng, n, 64)).counters
            assert counters["PAGE_MISSES"] > n / 20
        assert counters["PAGE_HITS"] and engine.driver.read("STATUS") == 0


def test_any_pace_gives_the_same_bits_and_counts() -> None:
    case = Case(fmt="int8", shape=SHAPES[1])
    layer = random_quantised(case, TWO_CLOCKS, seed=1)
    x = random_tokens(np.random.default_rng(4), 10, case.hidden)
    counts = set()
    for seed, stalls in enumerate((0.0, 0.05, 0.5, 0.9)):
        with open_engine("verilator", layer, TWO_CLOCKS, stalls=stalls, seed=seed) as engine:
            counters = check(engine, x).counters
            counts.add((counters["ACTIVE_CYCLES"], counters["ROUTED_CYCLES"], counters["ROUTED_READS"]))
    assert len(counts) == 1


def test_reset_in_the_middle_of_a_token() -> None:
    """Both clock domains start anew; the weights are still there."""
    case = Case(fmt="int4", shape=SHAPES[0])
    layer = random_quantised(case, TWO_CLOCKS, seed=1)
    image = compiler.compile(layer, TWO_CLOCKS)
    x = random_tokens(np.random.default_rng(4), 4, case.hidden)
    with open_engine("verilator", layer, TWO_CLOCKS) as engine:
        whole = check(engine, x).counters["CYCLES"]
        for cycles in np.random.default_rng(5).integers(case.hidden, whole, size=12).tolist():
            engine.core.start(x.view(np.uint32), np.full(len(x), case.hidden), len(x), case.hidden)
            engine.core.advance(cycles)
            engine.core.reset(1 + cycles % 3)
            engine.driver.configure(image)
            check(engine, x)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_icarus_and_foreign_bus_models(config: HardwareConfig) -> None:
    layer = random_quantised(Case(fmt="mixed", shape={"hidden": 32, "experts": 3}), config, seed=2)
    with open_engine("icarus", layer, config, stalls=0.2, seed=3) as engine:
        check(engine, random_tokens(np.random.default_rng(6), 3, 32))


@pytest.mark.parametrize(
    "config", [pytest.param(ONE_CLOCK, marks=pytest.mark.slow), TWO_COLUMNS], ids=lambda c: c.name
)
def test_baked_image(config: HardwareConfig) -> None:
    """A core that wakes up with the weights in its tiles."""
    case = Case(fmt="mixed", shape=SHAPES[1])
    layer = random_quantised(case, config, seed=1)
    x = random_tokens(np.random.default_rng(4), 4, case.hidden)
    text = generate(config, compiler.compile(layer, config))
    with Core(build_verilator(text)) as core:
        assert same_bits(core.run(x), golden.run(layer, x, config).y)


def test_clock_port() -> None:
    """Only a core with a clock of its own for the array has a port for it, and says how fast it is meant."""
    texts = [generate(config) for config in CONFIGS]
    assert [array_clock(text) for text in texts] == [1, 3, 2]
    assert ["array_clk" in text for text in texts] == [False, True, True]


@pytest.mark.parametrize("fmt", ["fp8", "mxfp4"])
def test_format_that_it_does_not_multiply(fmt: str) -> None:
    with pytest.raises(ExpertileError, match=f"'lookup'.*body 'lut' do not multiply {fmt}.*int8, int4"):
        random_quantised(Case(fmt=fmt), ONE_CLOCK, seed=1)
