"""Designs made without some blocks: bit for bit the golden model, and clear about what they lack."""

from dataclasses import replace

import numpy as np
import pytest
from random_layers import RULES, random_side, random_tokens
from sim_layers import DOMAINS, Case, check, random_quantised

from hw.host.registers import REGISTERS, present
from hw.verilog import describe, generate
from sim.build import build_verilator, generated
from sim.engines import open_engine
from sim.verilator import Core
from sw_model import compiler, golden
from sw_model.config import Feature, HardwareConfig, load_config
from sw_model.energy.governor import Registers
from sw_model.errors import ExpertileError

pytestmark = pytest.mark.sim

FULL = HardwareConfig(
    name="full", tiles=2, words=2048, scales=1024, max_hidden=96, max_intermediate=96, max_experts=8,
    max_top_k=3, max_groups=1, max_domains=DOMAINS, body="lut",
)  # fmt: skip
SLIM = replace(FULL, name="slim", gate=False, governor=False, clamp=False)
UNGOVERNED = replace(FULL, name="ungoverned", tiles=1, governor=False, body="dsp", page_slots=4)

#: Families whose rule a slim design has: one group of experts, SwiGLU.
PLAIN = {name: shape for name, shape in RULES.items() if "groups" not in shape and "clamped" not in shape}


def layer_of(shape: dict, config: HardwareConfig, fmt: str = "mixed", *, gate: bool = False):
    return random_quantised(Case(fmt=fmt, gate=gate, shape=shape), config, seed=4)


@pytest.mark.parametrize("stalls", [0.0, 0.3])
@pytest.mark.parametrize("rule", PLAIN)
def test_slim(rule: str, stalls: float) -> None:
    layer = layer_of(PLAIN[rule], SLIM)
    with open_engine("verilator", layer, SLIM, stalls=stalls, seed=5) as engine:
        check(engine, random_tokens(np.random.default_rng(6), 9, layer.hidden))


@pytest.mark.slow  # a model to build
@pytest.mark.parametrize("fmt", ["mixed", "int8-high"])
def test_a_gate_without_a_governor(fmt: str) -> None:
    layer = layer_of({"experts": 6}, UNGOVERNED, fmt, gate=True)
    with open_engine("verilator", layer, UNGOVERNED, stalls=0.2, seed=5) as engine:
        rng = np.random.default_rng(7)
        for some in (0.0, 0.5, 1.0):
            resident = rng.random(layer.n_experts) < some
            check(engine, random_tokens(rng, 9, layer.hidden), random_side(rng, 9, DOMAINS), resident)
        with pytest.raises(ExpertileError, match="device: made without a governor"):
            engine.driver.govern(Registers(budget=9999, shift=1, lambda_max=1, last_mode=0), {})


def test_foreign_bus_models() -> None:
    layer = layer_of({"hidden": 32, "experts": 3}, SLIM)
    with open_engine("icarus", layer, SLIM, stalls=0.2, seed=3) as engine:
        check(engine, random_tokens(np.random.default_rng(6), 3, 32))


def test_registers() -> None:
    """FEATURES says what is there; what is not answers as other addresses, and a layer for it is refused."""
    slverr = 2
    gated = compiler.compile(layer_of({"experts": 6}, FULL, gate=True), FULL)
    layer = layer_of({"experts": 6}, SLIM)
    with open_engine("verilator", layer, SLIM) as engine:
        driver, core = engine.driver, engine.core
        assert driver.features() == SLIM.features == Feature(0)
        missing = {n: r for n, r in REGISTERS.items() if n not in present(SLIM.features)}
        assert {"GATE_PSI", "DOMAIN_ROWS", "LIMIT", "GOVERNOR_BUDGET", "GOVERNOR_STATE"} <= set(missing)
        for register in missing.values():
            assert core.read(register.offset) == (0, slverr)
            assert core.write(register.offset, 1) == slverr
        assert {r["name"] for r in describe(SLIM)["registers"]} == set(present(SLIM.features))
        with pytest.raises(ExpertileError, match=r"device: made without what FLAGS = 0x\w+ of the image"):
            driver.configure(gated)
        core.reset()
        driver.configure(compiler.compile(layer, SLIM))
        check(engine, random_tokens(np.random.default_rng(6), 3, layer.hidden))


def test_tables_of_a_missing_gate_are_refused() -> None:
    """As packets for anything else that the design does not have."""
    layer = layer_of({"experts": 6}, SLIM)
    with open_engine("verilator", layer, SLIM) as engine:
        engine.driver.set_resident(np.ones(6, dtype=bool))
        assert engine.driver.read("STATUS") & 4
        engine.driver.load(compiler.compile(layer, SLIM))
        check(engine, random_tokens(np.random.default_rng(6), 3, layer.hidden))


@pytest.mark.slow
def test_baked_image() -> None:
    layer = layer_of({"experts": 6}, SLIM)
    x = random_tokens(np.random.default_rng(6), 3, layer.hidden)
    with Core(build_verilator(generate(SLIM, compiler.compile(layer, SLIM)))) as core:
        assert np.array_equal(core.run(x).view(np.uint32), golden.run(layer, x, SLIM).y.view(np.uint32))


def test_what_is_missing_is_left_out() -> None:
    slim, full = generated(SLIM), generated(load_config("tiny"))
    for block in ("core.router.gate", "core.router.choice.groups", "core.energy", "core.activate.clamp0"):
        module = rf"module \expertile_top.{block}"
        assert module in full and module not in slim, block


def test_layers_that_need_it_are_refused() -> None:
    clamped = RULES["gpt_oss"]
    for shape, gate, message in (
        ({}, True, r"'slim': made without what a gate needs \(gate = false\)"),
        (clamped, False, r"'slim': made without what the clamped activation needs \(clamp = false\)"),
    ):
        with pytest.raises(ExpertileError, match=message):
            layer_of(shape, SLIM, gate=gate)
        layer = layer_of(shape, FULL, gate=gate)
        for use in (
            compiler.compile,
            lambda layer, c: golden.run(layer, np.zeros((1, layer.hidden), np.float32), c),
        ):
            with pytest.raises(ExpertileError, match="'slim': made without"):
                use(layer, SLIM)
    with pytest.raises(ValueError, match="governor must be false without a gate"):
        replace(FULL, gate=False)
    with pytest.raises(ValueError, match="clamp must be true or false, not 1"):
        replace(FULL, clamp=1)
    assert load_config("tiny").features == ~Feature.LAYERS
