"""Every family's rule in every format on one Verilated core, with the gate and without it."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from random_layers import RULES, random_gate, random_layer, random_side, random_tokens
from sim_layers import DOMAINS, Case, check, check_with_side, random_quantised, same_bits

from hw.verilog import generate
from sim.build import build_verilator
from sim.engines import open_engine
from sim.verilator import Core
from sw_model import compiler, golden
from sw_model.config import HardwareConfig, load_config
from sw_model.formats import EXPERT_FORMATS
from sw_model.gate import Q_MIN, SideBand
from sw_model.quantised import quantise

pytestmark = pytest.mark.sim

FORMATS = ("int8", "int4", "fp8", "mxfp4", "mixed")


@pytest.fixture(scope="module")
def config() -> HardwareConfig:
    return load_config("tiny")


@pytest.mark.parametrize("gate", [False, True], ids=["free", "gate"])
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_and_format(rule: str, fmt: str, gate: bool, config: HardwareConfig) -> None:
    case = Case(fmt=fmt, gate=gate, shape=RULES[rule])
    for seed, stalls in enumerate((0.0, 0.3)):
        layer = random_quantised(case, config, seed=seed)
        with open_engine("verilator", layer, config, stalls=stalls, seed=seed) as engine:
            x = random_tokens(np.random.default_rng(seed), 24, layer.hidden)
            check_with_side(engine, x, seed)


def test_one_core_serves_all(config: HardwareConfig) -> None:
    """Layers of every rule, one loaded over the other in a random order: nothing of the last one is left."""
    rng = np.random.default_rng(5)
    cases = [
        Case(fmt=FORMATS[(i + gate) % 5], gate=gate, shape=RULES[rule])
        for i, rule in enumerate(RULES)
        for gate in (False, True)
    ]
    layers = [random_quantised(case, config, seed=i) for i, case in enumerate(cases)]
    with open_engine("verilator", layers[0], config, stalls=0.1, seed=5) as engine:
        for i in rng.permutation(2 * len(layers)) % len(layers):
            engine.driver.load(compiler.compile(layers[i], config))
            engine.layer = layers[i]
            check_with_side(engine, random_tokens(rng, 6, layers[i].hidden), int(i))


@pytest.mark.parametrize("rule", ["qwen2_moe", "mixtral", "gpt_oss"])
def test_all_full_and_all_empty(rule: str, config: HardwareConfig) -> None:
    """Tokens with every expert between tokens with none, in one stream: the base expert or the fallback."""
    rng = np.random.default_rng(9)
    plain = random_layer(rng, **RULES[rule], temper="rows")
    # Level 1 alone decides, on the information that comes with the token.
    passing = {"phi": Q_MIN, "psi": Q_MIN, "cap": 2, "entropy": 0, "density": 0, "lam": 0}
    gate = random_gate(rng, plain, domains=DOMAINS, density=False)
    gate = replace(gate, tau=(8 << 8,) * 2, info=1 << 8, **passing)
    layer = quantise(plain, "int8", config, gate=gate)
    info = np.array([0, 255, 255, 0, 0, 64, 63, 255] * 2)
    side = SideBand(info=info, tag=np.full(len(info), -1))
    x = random_tokens(rng, len(info), layer.hidden)
    with open_engine("verilator", layer, config) as engine:
        counters = check(engine, x, side).counters
        empty = int((info < 64).sum())
        assert counters["EMPTY_TOKENS"] == empty
        assert counters["REMOVED_DENSITY"] == 2 * empty
        assert counters["EXPERTS_USED"] == 2 * (len(x) - empty)
        # The empty route fetches no routed expert: only router and base expert, or the fallback, are read.
        check(engine, x[:1], SideBand(info=info[:1], tag=side.tag[:1]))
        assert engine.run(x[:1], SideBand(info=info[:1], tag=side.tag[:1])).counters["EXPERTS_USED"] == 0
        alone = engine.driver.counters()["WORD_READS"]
        m = layer.router
        base = m.rows * m.blocks * 8
        matrices = [layer.shared.gate_up, layer.shared.down] if layer.shared is not None else [layer.fallback]
        assert alone == base + sum(m.rows * m.blocks * 2 for m in matrices if m is not None)


@pytest.mark.parametrize("fmt", EXPERT_FORMATS)
def test_the_largest_operands(fmt: str, config: HardwareConfig) -> None:
    """Every weight and every activation at its end, rows of both signs: no sum overflows on the way."""
    rng = np.random.default_rng(12)
    plain = random_layer(rng, width=64, shared=64, experts=2)
    for e in plain.everyone:
        for w in (e.gate, e.up, e.down):
            w[:] = np.where(np.arange(len(w)) % 3, 1.0, -1.0)[:, None]
            w[:, :32] *= 2.0**8 if fmt != "fp8" else 2.0**4  # as far apart as a row's blocks may be
    layer = quantise(plain, fmt, config)
    x = np.full((6, 64), np.nextafter(np.float32(2), np.float32(0)))
    x[1] *= -1
    x[2, :32] *= 2.0**10
    x[3, 32:] *= 2.0**10
    x[4] *= np.where(np.arange(64) % 2, 1, -1)
    x[5] *= 2.0**120
    with open_engine("verilator", layer, config) as engine:
        check(engine, x)


@pytest.mark.parametrize(
    ("rule", "gate"),
    [
        pytest.param("mixtral", False, marks=pytest.mark.slow),
        pytest.param("mixtral", True, marks=pytest.mark.slow),
        ("deepseek_v3", True),
    ],
)
def test_a_baked_image(rule: str, gate: bool) -> None:
    """Weights, tables and registers that the design wakes up with; nothing is loaded."""
    small = HardwareConfig(
        name="baked", tiles=1, words=2048, scales=1024, max_hidden=32, max_intermediate=32, max_experts=8,
        max_top_k=2,
    )  # fmt: skip
    layer = random_quantised(
        Case(fmt="mixed", gate=gate, shape={**RULES[rule], "hidden": 32}), small, seed=13
    )
    with warnings.catch_warnings(record=True) as said:  # an error would leave half a design behind
        warnings.simplefilter("always")
        verilog = generate(small, compiler.compile(layer, small))
    assert [str(w.message) for w in said] == []
    library = build_verilator(verilog)
    x = random_tokens(np.random.default_rng(13), 8, 32)
    with Core(library, stalls=0.1, seed=13) as core:
        assert same_bits(core.run(x), golden.run(layer, x, small).y)


@pytest.mark.parametrize("seed", range(24))
def test_random_gates(seed: int, config: HardwareConfig) -> None:
    """Over 10,000 tokens with random registers, tables, residency and tags, ties and saturated numbers among
    them; registers and tables change between batches, and no token is lost."""
    rng = np.random.default_rng(100 + seed)
    rule = {**list(RULES.values())[seed % len(RULES)], "hidden": 32, "width": 8}
    plain = random_layer(rng, **rule, router_gain=float(rng.choice([1, 4, 64])))
    if seed % 3 == 0:  # experts that tie
        plain.router[1:] = plain.router[0]
    batches = 9
    gates = []
    for _ in range(batches):
        rows, density = (bool(flag) for flag in rng.integers(2, size=2))
        gates.append(random_gate(rng, plain, domains=int(rng.integers(1, 9)), rows=rows, density=density))
    x = random_tokens(rng, 50 * batches, plain.hidden)
    first = quantise(plain, "int4", config, gate=gates[0])
    with open_engine("verilator", first, config, stalls=0.2 * (seed % 2), seed=seed) as engine:
        for n, gate in enumerate(gates):
            if n:
                engine.layer = quantise(plain, "int4", config, gate=gate)
                engine.driver.load(compiler.compile(engine.layer, config))
            part = x[50 * n : 50 * n + 50]
            resident = rng.random(plain.n_experts) < rng.random()
            check(engine, part, random_side(rng, len(part), len(gate.domain_bias)), resident)
