"""Layers whose experts do not fit: loaded on demand, and still bit for bit the golden model."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from random_layers import random_gate, random_layer, random_side, random_tokens
from sim_layers import DOMAINS, Case, check, random_quantised, same_bits
from test_hw_paging import Lru
from test_sim_topology import COLUMNS

from driver.accelerator import BAD_WEIGHTS, CLEAR, ENABLE
from expertile.engines import LayerEngine
from expertile.options import EngineName
from sim.engines import Engine, open_engine
from sim.memory import PageMemory
from sw_model import compiler, golden
from sw_model.config import HardwareConfig, load_config
from sw_model.errors import ExpertileError
from sw_model.packets import Kind, packet
from sw_model.quantised import QuantisedLayer

pytestmark = pytest.mark.sim

SHAPE = {"experts": 8, "shared": 32, "gated": True}


def tokens(n: int, seed: int, hidden: int = 64) -> np.ndarray:
    return random_tokens(np.random.default_rng(seed), n, hidden)


@pytest.fixture(scope="module")
def config() -> HardwareConfig:
    return load_config("tiny")


class Watcher:
    """Runs tokens, and follows what is on chip in a model of its own."""

    def __init__(self, engine: Engine, slots: int) -> None:
        self.engine = engine
        self.lru = Lru(slots)
        self.requests: list[tuple[int, int]] = []

    def resident(self) -> np.ndarray:
        return np.array([e in self.lru.where for e in range(self.engine.layer.n_experts)])

    def run(self, x: np.ndarray, **side: Any) -> dict[str, int]:
        engine = self.engine
        assert np.array_equal(engine.resident, self.resident())
        result = golden.run(engine.layer, x, engine.config, resident=self.resident(), **side)
        gate = result.decisions
        kept = np.ones_like(result.experts, bool) if gate is None else gate.kept
        hits = misses = 0
        for experts, mine in zip(result.experts, kept, strict=True):
            found, loads = self.lru.token(experts[mine].tolist())
            hits, misses = hits + len(found), misses + len(loads)
            self.requests += loads
        before = self.engine.resident
        counters = check(engine, x, side.get("side"), before).counters
        assert (counters["PAGE_HITS"], counters["PAGE_MISSES"]) == (hits, misses)
        assert np.array_equal(engine.resident, self.resident())
        return counters


@pytest.mark.parametrize("stalls", [0.0, 0.3])
@pytest.mark.parametrize("slots", [2, 3, 7])
@pytest.mark.parametrize(("fmt", "gate"), [("int4", False), ("mixed", False), ("int8", True)])
def test_equals_golden(fmt: str, gate: bool, slots: int, stalls: float, config: HardwareConfig) -> None:
    layer = random_quantised(Case(fmt=fmt, gate=gate, shape=SHAPE), config, seed=slots)
    memory = PageMemory(latency=17 * slots, bandwidth=0.9)
    with open_engine("verilator", layer, config, slots=slots, memory=memory, stalls=stalls, seed=3) as engine:
        watcher = Watcher(engine, slots)
        rng = np.random.default_rng(slots)
        for n in (1, 120, 3, 80):
            side = {"side": random_side(rng, n, DOMAINS)} if gate else {}
            watcher.run(tokens(n, seed=n), **side)
        assert engine.core.page_requests() == watcher.requests
        assert engine.driver.read("STATUS") == 0


def test_a_layer_that_does_not_fit_pages_by_itself() -> None:
    """No option is needed: the experts take what room there is beside router and base expert."""
    config, shape = COLUMNS, {"hidden": 96, "width": 96, "experts": 8, "shared": 32}
    layer = random_quantised(Case(fmt="int8", shape=shape), config, seed=1)
    words, scales = compiler.size(layer, config.tiles, config.columns)
    assert words > config.words and scales > config.scales
    registers = compiler.paging(layer, config)
    slots = registers["PAGE_SLOTS"]
    for what, had in (("WORD", config.words), ("SCALE", config.scales)):
        end = registers[f"PAGE_{what}_BASE"] + slots * registers[f"PAGE_{what}S"]
        assert end <= had
    assert 2 <= slots < 8 and end + registers["PAGE_SCALES"] > config.scales  # no room for one more
    with open_engine("golden", layer, config) as soft, open_engine("verilator", layer, config) as hard:
        x = tokens(100, seed=2, hidden=96)
        want, result = soft.run(x), hard.run(x)
        assert same_bits(want.y, result.y)
        assert want.counters.items() <= result.counters.items()
        assert 0 < want.counters["PAGE_MISSES"] < want.counters["PAGE_HITS"]
        assert np.array_equal(soft.resident, hard.resident) and soft.resident.sum() == slots


def test_the_command_line_checks_and_reports() -> None:
    """Residency goes on from call to call; output, counters and figures agree with the golden engine's."""
    plain = random_layer(np.random.default_rng(2), hidden=96, width=96, experts=8, shared=32)
    gate = random_gate(np.random.default_rng(3), plain)
    engines = [
        LayerEngine(plain, "layer", EngineName(name), "int8", COLUMNS, gate=gate)
        for name in ("golden", "verilator")
    ]
    for seed in range(3):
        golden_side, rtl_side = (e.run(tokens(20, seed=seed, hidden=96)) for e in engines)
        assert same_bits(golden_side.y, rtl_side.y)
        ours, theirs = golden_side.tally.figures(), rtl_side.tally.figures()
        assert ours["page_hit_rate"] == theirs["page_hit_rate"] > 0
        assert ours["page_stall_cycles"] is None and (seed or theirs["page_stall_cycles"] > 0)
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("split", [None, 0, 2])
def test_pages_in_every_topology(split: int | None) -> None:
    layer = random_quantised(Case(fmt="mixed", shape={"hidden": 96, "experts": 7}), COLUMNS, seed=21)
    with open_engine("verilator", layer, COLUMNS, slots=3, stalls=0.1, seed=22) as engine:
        engine.driver.load(compiler.compile(layer, COLUMNS, split, slots=3))
        counters = check(engine, tokens(40, seed=23, hidden=96), split=split).counters
        assert counters["PAGE_MISSES"] > 20


def one_miss_each(layer: QuantisedLayer, config: HardwareConfig, x: np.ndarray, slots: int) -> np.ndarray:
    """Of tokens ``x``, a stream each of which but the first misses one expert."""
    lru, stream = Lru(slots), []
    for token, experts in zip(x, golden.run(layer, x, config).experts.tolist(), strict=True):
        if not stream or sum(e not in lru.where for e in experts) == 1:
            lru.token(experts)
            stream.append(token)
    return np.stack(stream)


def test_nothing_waits_where_bandwidth_allows(config: HardwareConfig) -> None:
    """Pages load while the base expert and those on chip compute: no cycle is lost, and no bit disturbed."""
    shape = {"experts": 8, "shared": 64, "gated": True}
    layer = random_quantised(Case(fmt="fp8", shape=shape), config, seed=4)
    x = one_miss_each(layer, config, tokens(400, seed=5), slots=4)
    counters = {}
    for slots in (4, None):
        with open_engine("verilator", layer, config, slots=slots) as engine:
            engine.run(x[:1])  # two pages, which one base expert does not hide
            counters[slots] = check(engine, x[1:]).counters
    paged, whole = counters[4], counters[None]
    page = compiler.paging(layer, config, slots=4)["PAGE_WORDS"]
    assert paged["PAGE_MISSES"] > 60
    assert paged["PAGE_MISSES"] == len(x) - 1
    assert paged["PAGE_STALL_CYCLES"] == 0
    assert paged["WORDS_LOADED"] == paged["PAGE_MISSES"] * page * config.tiles
    assert (whole["PAGE_HITS"], whole["PAGE_MISSES"], whole["WORDS_LOADED"]) == (0, 0, 0)
    assert paged["ACTIVE_CYCLES"] == whole["ACTIVE_CYCLES"]
    assert paged["BUSY_CYCLES"] < 1.01 * whole["BUSY_CYCLES"]
    # With a slow memory the same stream waits, for as long as it takes.
    with open_engine("verilator", layer, config, slots=4, memory=PageMemory(latency=3000)) as engine:
        engine.run(x[:1])
        slow = check(engine, x[1:]).counters
    assert slow["PAGE_STALL_CYCLES"] > 1000 * slow["PAGE_MISSES"] / 2
    assert slow["BUSY_CYCLES"] >= paged["BUSY_CYCLES"] + slow["PAGE_STALL_CYCLES"]


@pytest.mark.slow
def test_pages_off_cost_nothing(config: HardwareConfig) -> None:
    """A design with page slots, unused, takes the same cycles as one without, which refuses pages."""
    layer = random_quantised(Case(shape=SHAPE), config, seed=6)
    x, cycles = tokens(20, seed=6), []
    for design in (config, replace(config, page_slots=0)):
        with open_engine("verilator", layer, design) as engine:
            cycles.append(check(engine, x).counters)
            beat = np.full((1, 4), 0xFFFFFFFF, np.uint32)
            engine.core.send_weights([packet(Kind.WORDS, beat, page=0), packet(Kind.PAGE, page=0)])
            engine.core.finish()
            engine.core.wait(8)
            assert engine.driver.read("STATUS") == BAD_WEIGHTS
            check(engine, x)
    assert cycles[0] == cycles[1]


def test_too_small(config: HardwareConfig) -> None:
    """The message names what is missing, and that is the least that will do."""
    layer = random_quantised(Case(fmt="int8", shape=SHAPE), config, seed=1)
    slots = compiler.paging(layer, config, slots=2)
    words = slots["PAGE_WORD_BASE"] + 2 * slots["PAGE_WORDS"]
    scales = slots["PAGE_SCALE_BASE"] + 2 * slots["PAGE_SCALES"]
    compiler.compile(layer, replace(config, words=words, scales=scales))
    for less in (
        {"words": words - 1},
        {"scales": scales - 4},
        {"words": 100},
        {"page_slots": 1, "words": words},
    ):
        with pytest.raises(ExpertileError, match="takes 2 experts at once, but there is room for") as error:
            compiler.compile(layer, replace(config, **{"scales": scales, **less}))
        assert f"words >= {words}, scales >= {scales} and page_slots >= 2" in str(error.value)
    with pytest.raises(ExpertileError, match="more tiles or page_slots"):
        compiler.compile(layer, replace(config, words=words, page_slots=0))


def test_layers_follow_each_other(config: HardwareConfig) -> None:
    """Paged, whole, and paged again: nothing of the pages before is believed."""
    layers = [random_quantised(Case(fmt=f, shape=SHAPE), config, seed=7) for f in ("int4", "int8")]
    with open_engine("verilator", layers[0], config, slots=4, stalls=0.1, seed=8) as engine:
        for n, slots in enumerate((4, None, 2, 7)):
            engine.layer = layers[n % 2]
            engine.driver.load(compiler.compile(engine.layer, config, slots=slots))
            counters = check(engine, tokens(30, seed=n)).counters
            assert (counters["PAGE_MISSES"] > 0) == (slots is not None)


@pytest.mark.parametrize("stalls", [0.0, 0.3])
def test_reset_in_the_middle(stalls: float, config: HardwareConfig) -> None:
    """While pages are asked for and come: afterwards none is there, and all is right."""
    layer = random_quantised(Case(fmt="int4", shape=SHAPE), config, seed=9)
    image, x = compiler.compile(layer, config, slots=3), tokens(6, seed=9)
    rng = np.random.default_rng(10)
    with open_engine("verilator", layer, config, slots=3, stalls=stalls, seed=11) as engine:
        whole = check(engine, x).counters["CYCLES"]
        for cycles in rng.integers(64, whole, size=10).tolist():
            engine.core.start(x.view(np.uint32), np.full(len(x), 64), len(x), 64)
            engine.core.advance(cycles)
            engine.core.reset()
            engine.driver.configure(image)
            assert not engine.resident.any()
            assert check(engine, x).counters["PAGE_MISSES"] >= 3


def test_a_damaged_page_is_not_used(config: HardwareConfig) -> None:
    """A page with a bad packet is flagged and stays missing until the host sends it again, whole."""
    layer = random_quantised(Case(fmt="int4", shape={**SHAPE, "top_k": 1}), config, seed=12)
    image, x = compiler.compile(layer, config, slots=2), tokens(1, seed=12)
    want = golden.run(layer, x, config)
    whole = list(image.pages.packets(int(want.experts[0, 0])))
    short, long = whole[1][:-1], np.concatenate([whole[1], whole[1][-1:]])
    for damaged in (short, long, packet(Kind.WORDS, whole[1][1:], tile=config.tiles)):
        with open_engine("verilator", layer, config, slots=2) as engine:
            pages = [[whole[0], damaged, *whole[2:]]] * layer.n_experts
            engine.core.serve_pages(pages)
            y = engine.core.start(x.view(np.uint32), np.full(1, 64), 1, 64)
            assert not engine.core.advance(5000)
            assert engine.driver.read("STATUS") == BAD_WEIGHTS | 1
            engine.core.send_weights(whole)
            engine.core.finish()
            assert same_bits(y.view(np.float32), want.y)


def test_packets_that_are_refused(config: HardwareConfig) -> None:
    """Places beyond the design, pages that nobody asked for: flagged, and no weight is touched."""
    layer = random_quantised(Case(fmt="int4", shape=SHAPE), config, seed=13)
    x, beat = tokens(10, seed=13), np.full((1, 4), 0xFFFFFFFF, np.uint32)
    refused = [
        packet(Kind.WORDS, beat, tile=config.tiles),
        packet(Kind.WORDS, beat, start=config.words),
        packet(Kind.WORDS, beat, start=1 << 16),
        packet(Kind.SCALES, beat, tile=65535),
        packet(Kind.SCALES, beat, start=config.scales),
        packet(Kind.CONTEXTS, beat, start=config.max_experts + 1),
        packet(Kind.COSTS, beat, start=config.max_experts),
        packet(Kind.WORDS, beat, page=0),
        packet(Kind.PAGE, page=0),
        packet(Kind.PAGE),
        packet(Kind.WORDS),
    ]
    with open_engine("verilator", layer, config, slots=8, stalls=0.1, seed=14) as engine:
        check(engine, x)
        for bad in refused:
            assert engine.driver.read("STATUS") == 0
            engine.core.send_weights([bad])
            engine.core.finish()
            engine.core.wait(8)
            assert engine.driver.read("STATUS") == BAD_WEIGHTS
            engine.driver.write("CONTROL", ENABLE | CLEAR)
        assert check(engine, x).counters["PAGE_MISSES"] == 0


@pytest.mark.parametrize("gate", [False, True])
def test_icarus_pages(gate: bool, config: HardwareConfig) -> None:
    shape = {"hidden": 32, "experts": 5, "shared": 32}
    layer = random_quantised(Case(fmt="int4", gate=gate, shape=shape), config, seed=16)
    memory = PageMemory(latency=40, bandwidth=0.5)
    with open_engine("icarus", layer, config, slots=2, memory=memory, stalls=0.2, seed=16) as engine:
        x = tokens(6, seed=17, hidden=32)
        result = check(engine, x, None, engine.resident)
        assert result.counters["PAGE_MISSES"] > 2
        assert result.counters["PAGE_STALL_CYCLES"] > 0
