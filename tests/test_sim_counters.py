"""The comparison of counters with the golden model sees a fault in any of them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import data, wiring
from random_layers import random_side, random_tokens
from sim_layers import DOMAINS, Case, expected_counters, random_quantised

from hw.energy.counters import Counters
from hw.host.registers import COUNTERS
from hw.verilog import generate
from sim.engines import Engine, open_engine
from sw_model import golden
from sw_model.config import HardwareConfig, load_config
from sw_model.quantised import QuantisedLayer

pytestmark = pytest.mark.sim

#: What depends on time: compared with each other, and in the tests of paging.
TIMES = {"CYCLES", "BUSY_CYCLES", "PAGE_STALL_CYCLES"}
CASE = Case(fmt="mixed", gate=True, shape={"experts": 8, "shared": 32, "gated": True})


@pytest.fixture(scope="module")
def config() -> HardwareConfig:
    return load_config("tiny")


@pytest.fixture(scope="module")
def layer(config: HardwareConfig) -> QuantisedLayer:
    """One with all of it: each level of the gate removes something, pages are loaded."""
    found = random_quantised(CASE, config, seed=4)
    assert found.gate is not None
    return replace(found, gate=replace(found.gate, cap=1))


def run(engine: Engine) -> tuple[dict[str, int], dict[str, int]]:
    """Counters of a run, as the golden model has them and as the hardware does."""
    rng = np.random.default_rng(7)
    x, side = random_tokens(rng, 60, CASE.hidden), random_side(rng, 60, DOMAINS)
    resident = rng.random(engine.layer.n_experts) < 0.6
    expected = golden.run(engine.layer, x, engine.config, side, resident)
    result = engine._run(x, side, resident)  # without the look at TOKENS
    return expected_counters(engine, expected, result), result.counters


def test_every_counter_is_compared_and_counts(layer: QuantisedLayer, config: HardwareConfig) -> None:
    """None of them is 0 there, so none can stop or count twice unseen."""
    with open_engine("verilator", layer, config, slots=4) as engine:
        want, got = run(engine)
        assert set(want) == set(COUNTERS) - TIMES
        assert all(want.values()), want
        assert {name: got[name] for name in want} == want
        # Cycles are those of the clock.
        before, start = engine.driver.counters(), engine.core.cycle
        engine.core.wait(20_000)
        after, end = engine.driver.counters(), engine.core.cycle
        assert abs(after["CYCLES"] - before["CYCLES"] - (end - start)) < 4 * len(COUNTERS) * 10
        assert after["BUSY_CYCLES"] == before["BUSY_CYCLES"]


@pytest.mark.slow
@pytest.mark.parametrize("even", [True, False])
def test_a_fault_in_any_counter_is_seen(
    even: bool, layer: QuantisedLayer, config: HardwareConfig, monkeypatch: Any
) -> None:
    """Every second counter counts twice, the others not at all: all of them are found."""

    class Faulty(wiring.Component):
        def __init__(self, most: dict[str, int]) -> None:
            self._factors = [2 * ((i % 2 == 0) == even) for i in range(len(most))]
            self._inner = Counters({name: 2 * n + 1 for name, n in most.items()})
            events = data.StructLayout({name: range(n + 1) for name, n in most.items()})
            super().__init__({**self._inner.signature.members, "events": wiring.In(events)})

        def elaborate(self, platform: object) -> Module:
            m = Module()
            m.submodules.inner = inner = self._inner
            for name, factor in zip(COUNTERS, self._factors, strict=True):
                m.d.comb += inner.events[name].eq(self.events[name] * factor)
            for name, member in self.signature.members.items():
                if name != "events":
                    mine, its = getattr(self, name), getattr(inner, name)
                    m.d.comb += its.eq(mine) if member.flow is wiring.In else mine.eq(its)
            return m

    monkeypatch.setattr("hw.top.Counters", Faulty)
    text = generate(config)
    monkeypatch.setattr("sim.engines.generated", lambda config: text)
    with open_engine("verilator", layer, config, slots=4) as engine:
        want, got = run(engine)
    assert [name for name, count in want.items() if got[name] == count] == []
