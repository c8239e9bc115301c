"""Whole random layers on the Verilated core: bit for bit the golden model, whatever the bus does."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from random_layers import random_tokens
from sim_layers import Case, check, random_quantised, same_bits

from driver.accelerator import CLEAR, ENABLE, Driver
from hw.host.registers import REGISTERS, Access, present
from sim.engines import open_engine
from sw_model import compiler, golden
from sw_model.config import HardwareConfig, load_config
from sw_model.errors import ExpertileError
from sw_model.formats import EXPERT_FORMATS

pytestmark = pytest.mark.sim

SHAPES: list[dict[str, Any]] = [
    {},
    {"width": 64, "experts": 2},
    {"width": 64, "experts": 8, "shared": 64, "gated": True, "renormalise": False},
    {"hidden": 32, "shared": 32, "experts": 5, "top_k": 1, "renormalise": False},
    {"experts": 1, "top_k": 1},
    {"hidden": 32, "width": 64, "experts": 1, "top_k": 1, "shared": 64, "gated": True},
    # Sizes that fill neither blocks nor tiles.
    {"hidden": 40, "width": 56, "shared": 24, "gated": True, "experts": 3},
    {"hidden": 33, "width": 35, "shared": 37, "experts": 5},
    {"hidden": 2, "width": 1, "experts": 3, "renormalise": False},
    {"hidden": 31, "width": 21, "shared": 1, "expert_bias": True, "experts": 3, "clamped": True},
]
CASES = [Case(fmt=fmt, shape=shape) for shape in SHAPES for fmt in ("int8", "int4", "mixed")]
LEFT = Case(fmt="int8", shape={"shared": 32, "gated": True, "experts": 5})
RIGHT = Case(fmt="int4", shape={"hidden": 32, "width": 64, "experts": 3, "top_k": 1, "renormalise": False})


def tokens(n: int, hidden: int, seed: int) -> np.ndarray:
    return random_tokens(np.random.default_rng(seed), n, hidden)


@pytest.fixture(scope="module")
def config() -> HardwareConfig:
    return load_config("tiny")


@pytest.mark.parametrize("stalls", [0.0, 0.4])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_golden(case: Case, stalls: float, config: HardwareConfig) -> None:
    layer = random_quantised(case, config, seed=len(str(case)))
    with open_engine("verilator", layer, config, stalls=stalls, seed=layer.n_experts) as engine:
        check(engine, tokens(17, case.hidden, seed=case.hidden))


@pytest.mark.parametrize(("drain", "columns"), [(2, 1), (4, 4), pytest.param(8, 4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fmt", [*EXPERT_FORMATS, "mixed"])
def test_any_width_gives_the_same_bits(fmt: str, drain: int, columns: int, config: HardwareConfig) -> None:
    """Whole beats and ragged ones, groups of tiles smaller than a beat, with stalls and without."""
    wide = replace(config, tiles=2 * drain, drain=drain, columns=columns)
    for n, shape in enumerate(({"shared": 64, "gated": True}, *SHAPES[-4:])):
        case = Case(fmt=fmt, shape=shape)
        layer = random_quantised(case, wide, seed=n)
        for stalls in (0.0, 0.35):
            with open_engine("verilator", layer, wide, stalls=stalls, seed=n) as engine:
                check(engine, tokens(9, case.hidden, seed=n))


@pytest.mark.parametrize("seed", range(6))
def test_any_pace_gives_the_same_bits(seed: int, config: HardwareConfig) -> None:
    layer = random_quantised(LEFT, config, seed=1)
    with open_engine("verilator", layer, config, stalls=[0.05, 0.5, 0.9][seed % 3], seed=seed) as engine:
        check(engine, tokens(12, LEFT.hidden, seed=2))


def test_runs_follow_each_other(config: HardwareConfig) -> None:
    layer = random_quantised(LEFT, config, seed=1)
    with open_engine("verilator", layer, config) as engine:
        for n, many in enumerate((1, 5, 0, 2, 1)):
            if many:
                check(engine, tokens(many, LEFT.hidden, seed=n))
            else:
                empty = engine.run(np.zeros((0, LEFT.hidden), np.float32))
                assert empty.y.shape == (0, LEFT.hidden)
        x = tokens(4, LEFT.hidden, seed=9)
        first, second = check(engine, x), check(engine, x)
        assert first.counters["ACTIVE_CYCLES"] == second.counters["ACTIVE_CYCLES"]


def test_a_second_layer_over_the_first(config: HardwareConfig) -> None:
    left, right = (random_quantised(case, config, seed=3) for case in (LEFT, RIGHT))
    with open_engine("verilator", left, config, stalls=0.2, seed=1) as engine:
        check(engine, tokens(3, LEFT.hidden, seed=1))
        for layer in (right, left):
            engine.driver.load(compiler.compile(layer, config))
            engine.layer = layer
            check(engine, tokens(3, layer.hidden, seed=2))


def test_instances_do_not_share_anything(config: HardwareConfig) -> None:
    left, right = (random_quantised(case, config, seed=4) for case in (LEFT, RIGHT))
    with open_engine("verilator", left, config) as one, open_engine("verilator", right, config) as two:
        for seed in range(2):
            check(one, tokens(2, LEFT.hidden, seed=seed))
            check(two, tokens(2, RIGHT.hidden, seed=seed))


@pytest.mark.parametrize("stalls", [0.0, 0.3])
def test_reset_in_the_middle(stalls: float, config: HardwareConfig) -> None:
    """Registers fall back, weights stay, and nothing of the abandoned tokens is left."""
    layer = random_quantised(LEFT, config, seed=5)
    image, x = compiler.compile(layer, config), tokens(4, LEFT.hidden, seed=5)
    rng = np.random.default_rng(6)
    with open_engine("verilator", layer, config, stalls=stalls, seed=7) as engine:
        whole = check(engine, x).counters["CYCLES"]
        for cycles in (1, LEFT.hidden, *rng.integers(LEFT.hidden, whole, size=12).tolist()):
            beats = x.view(np.uint32)
            engine.core.start(beats, np.full(len(x), LEFT.hidden), len(x), LEFT.hidden)
            engine.core.advance(cycles)
            engine.core.reset(int(rng.integers(1, 5)))
            for register in present(config.features).values():
                if register.access is Access.RW:
                    assert engine.driver.read(register.name) == register.reset, register.name
            assert engine.driver.read("STATUS") == 0
            engine.driver.configure(image)
            check(engine, x)


def test_reset_in_the_middle_of_a_weight_packet(config: HardwareConfig) -> None:
    layer = random_quantised(LEFT, config, seed=15)
    image = compiler.compile(layer, config)
    with open_engine("verilator", layer, config) as engine:
        # Headers, macro words, and between the four scale entries of a beat.
        for cycles in (1, 2, 30, 30 + image.words.shape[1], 31 + image.words.shape[1]):
            engine.core.send_weights(image.packets())
            engine.core.advance(cycles)
            engine.core.reset()
            engine.driver.load(image)
            check(engine, tokens(2, LEFT.hidden, seed=15))


@pytest.mark.parametrize("length", [1, 3 * LEFT.hidden])
def test_reset_while_a_token_comes_or_is_dropped(length: int, config: HardwareConfig) -> None:
    layer = random_quantised(LEFT, config, seed=16)
    image, x = compiler.compile(layer, config), tokens(2, LEFT.hidden, seed=16)
    with open_engine("verilator", layer, config) as engine:
        for cycles in (3, LEFT.hidden // 2, LEFT.hidden + 3, 2 * LEFT.hidden):
            engine.core.start(np.zeros(length, np.uint32), np.array([length]), 1, LEFT.hidden)
            engine.core.advance(cycles)
            engine.core.reset()
            assert engine.driver.read("STATUS") == 0
            engine.driver.configure(image)
            check(engine, x)


@pytest.mark.parametrize("stalls", [0.0, 0.3])
def test_token_length_errors(stalls: float, config: HardwareConfig) -> None:
    """Tokens too short or too long give nothing and are flagged; those around them are right."""
    hidden = LEFT.hidden
    layer = random_quantised(LEFT, config, seed=8)
    error, rng = 2, np.random.default_rng(8)
    bad = [1, hidden - 1, hidden + 1, hidden // 2, 3 * hidden]
    orders = [[hidden, n, hidden] for n in bad] + [[*bad, *bad], [*bad, hidden]]
    orders += [rng.choice([hidden, hidden, *bad], size=12).tolist() for _ in range(4)]
    with open_engine("verilator", layer, config, stalls=stalls, seed=8) as engine:
        for lengths in orders:
            packets = [rng.normal(0, 4.0, n).astype(np.float32) for n in lengths]
            good = [p for p in packets if len(p) == hidden]
            assert engine.driver.read("STATUS") == 0
            beats = np.concatenate(packets).view(np.uint32)
            y = engine.core.start(beats, np.array(lengths), len(good), hidden)
            engine.core.finish()
            if good:
                want = golden.run(layer, np.stack(good), config).y
                assert same_bits(y.view(np.float32), want), lengths
            engine.core.wait(3000)  # whatever else may come would be an error
            assert engine.driver.read("TOKENS") == len(good)
            assert engine.driver.read("STATUS") == error, "not flagged, or busy for ever"
            engine.driver.write("CONTROL", ENABLE | CLEAR)
        assert engine.driver.read("STATUS") == 0
        check(engine, tokens(3, hidden, seed=8))


def test_nothing_is_taken_before_enable(config: HardwareConfig) -> None:
    layer = random_quantised(RIGHT, config, seed=10)
    x = tokens(2, RIGHT.hidden, seed=10)
    with open_engine("verilator", layer, config) as engine:
        engine.driver.write("CONTROL", CLEAR)
        y = engine.core.start(x.view(np.uint32), np.full(2, RIGHT.hidden), 2, RIGHT.hidden)
        assert not engine.core.advance(2000)
        assert engine.driver.read("TOKENS") == 0
        engine.driver.write("CONTROL", ENABLE)
        engine.core.finish()
        assert same_bits(y.view(np.float32), golden.run(layer, x, config).y)


def test_busy_while_tokens_are_inside(config: HardwareConfig) -> None:
    layer = random_quantised(RIGHT, config, seed=11)
    x = tokens(2, RIGHT.hidden, seed=11)
    with open_engine("verilator", layer, config) as engine:
        engine.core.start(x.view(np.uint32), np.full(2, RIGHT.hidden), 2, RIGHT.hidden)
        engine.core.advance(RIGHT.hidden + 10)
        assert engine.driver.read("STATUS") == 1
        engine.core.finish()
        engine.core.wait(4)
        assert engine.driver.read("STATUS") == 0


def test_registers(config: HardwareConfig) -> None:
    """Every mapped register answers, every other address and every write to a read-only one is refused."""
    there = present(config.features).values()
    slverr, mapped = 2, {r.offset: r for r in there}
    with open_engine("verilator", random_quantised(RIGHT, config, seed=12), config, stalls=0.3) as engine:
        core, driver = engine.core, Driver(engine.core)
        core.reset()
        assert driver.read("ID") == REGISTERS["ID"].reset
        assert driver.read("VERSION") == REGISTERS["VERSION"].reset
        for offset in range(0, 0x1000, 4):
            register = mapped.get(offset)
            value, response = core.read(offset)
            assert (response, value) == (slverr, 0) if register is None else response == 0, hex(offset)
            if register is None or register.access is Access.RO:
                assert core.write(offset, 0xFFFFFFFF) == slverr, hex(offset)
        for register in there:
            if register.access is Access.RW and register.name != "CONTROL":
                driver.write(register.name, 0xFFFFFFFF)
                assert driver.read(register.name) == (1 << register.width) - 1, register.name
                driver.write(register.name, 0xA5A5A5A5)
                assert driver.read(register.name) == 0xA5A5A5A5 % (1 << register.width), register.name
        assert driver.read("ID") == REGISTERS["ID"].reset


def test_refused_access_raises(config: HardwareConfig) -> None:
    with open_engine("verilator", random_quantised(RIGHT, config, seed=12), config) as engine:
        with pytest.raises(RuntimeError, match=r"write of ID: SLVERR"):
            engine.driver.write("ID", 0)


def test_golden_engine_counts_the_same_work(config: HardwareConfig) -> None:
    layer, x = random_quantised(LEFT, config, seed=13), tokens(3, LEFT.hidden, seed=13)
    with open_engine("golden", layer, config) as soft, open_engine("verilator", layer, config) as hard:
        expected, result = soft.run(x), hard.run(x)
    assert same_bits(result.y, expected.y)
    assert expected.counters.items() <= result.counters.items()
    assert expected.experts is not None and expected.experts.shape == (3, LEFT.top_k)


def test_bad_requests_are_one_line(config: HardwareConfig) -> None:
    layer = random_quantised(RIGHT, config, seed=14)
    with pytest.raises(ExpertileError, match="engine 'vcs': unknown; choose one of golden,"):
        open_engine("vcs", layer, config)
    with open_engine("verilator", layer, config) as engine:
        with pytest.raises(ExpertileError, match="dtype float64"):
            engine.run(np.zeros((1, RIGHT.hidden)))
        check(engine, tokens(1, RIGHT.hidden, seed=14))
