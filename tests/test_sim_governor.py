"""The governor in the whole core: every bit and every decision as the golden model has them, at any pace."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_layers import RULES, random_side, random_tokens
from sim_layers import DOMAINS, Case, check, random_quantised
from test_cli import run
from test_sim_asic import CONFIGS as SERIAL
from test_sim_lookup import ONE_CLOCK, TWO_CLOCKS, TWO_COLUMNS
from test_sim_topology import COLUMNS

from expertile.options import MODEL
from sim.engines import Engine, open_engine
from sw_model import golden
from sw_model.config import HardwareConfig, load_config
from sw_model.energy import governor as rule
from sw_model.energy.estimate import EVENTS
from sw_model.energy.meter import Governor, weights_of
from sw_model.errors import ExpertileError
from sw_model.gate import SideBand
from sw_model.quantised import QuantisedLayer

pytestmark = pytest.mark.sim
SLOW = pytest.mark.slow
OTHERS = (ONE_CLOCK, TWO_COLUMNS)

CASES = [
    Case(fmt="int8", gate=True, shape={"experts": 8, "shared": 32, "gated": True}),
    Case(fmt="mixed", gate=True, shape={**RULES["mixtral"], "hidden": 64}),  # without a base expert
    Case(fmt="int4", gate=True, shape={**RULES["deepseek_v3"], "hidden": 33, "width": 21}),
    Case(fmt="mixed", shape={"hidden": 2, "width": 1, "experts": 3, "renormalise": False}),  # without a gate
]


@pytest.fixture(scope="module")
def config() -> HardwareConfig:
    return load_config("tiny")


def opened(case: Case, config: HardwareConfig, seed: int) -> QuantisedLayer:
    """The layer of ``case``, with a gate that lets nearly all pass, so that the governor has what to take."""
    layer = random_quantised(case, config, seed=seed)
    if layer.gate is None:
        return layer
    low = (-(1 << 15),) * len(layer.gate.tau)
    gate = replace(layer.gate, tau=low, phi=-(1 << 15), psi=-(6 << 8), lam=0, cap=255)
    return replace(layer, gate=replace(gate, cost=np.abs(gate.cost) % 512 + 128, miss=0 * gate.miss))


def governed(layer: QuantisedLayer, config: HardwareConfig, rng: np.random.Generator, share: float) -> Any:
    """Random weights, and a governor whose budget is ``share`` of what a token takes with everything on."""
    events = {name: int(n) for name, n in zip(EVENTS, rng.integers(1, 1200, len(EVENTS)), strict=True)}
    weights = weights_of(layer, events)
    meter = Governor(rule.registers((1 << 24) - 1), weights)
    x = random_tokens(rng, 12, layer.hidden)
    side = random_side(rng, 12, DOMAINS) if layer.gate is not None else None
    spent = [s.energy for s in golden.run(layer, x, config, side, None, meter).settings]
    return Governor(rule.registers(max(rule.LEAST_BUDGET, int(share * np.mean(spent)))), weights)


def batch(engine: Engine, rng: np.random.Generator, n: int) -> None:
    x = random_tokens(rng, n, engine.layer.hidden)
    side = random_side(rng, n, DOMAINS) if engine.layer.gate is not None else None
    check(engine, x, side)


@pytest.mark.parametrize("stalls", [0.0, 0.35])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_golden(case: Case, stalls: float, config: HardwareConfig) -> None:
    every_decision(config, case, stalls)


def every_decision(config: HardwareConfig, case: Case, stalls: float) -> None:
    """Budgets from far too small to more than is ever used; tokens in streams and one by one."""
    rng = np.random.default_rng(len(str(case)))
    layer = opened(case, config, seed=5)
    seen = []
    with open_engine("verilator", layer, config, stalls=stalls, seed=3) as engine:
        for share in (0.75, 1.5, 0.3, 0.55, 0.9):
            engine.govern(governed(layer, config, rng, share))
            assert engine.governor is not None
            for n in (1, 1, 1, 24, 3, 1):
                batch(engine, rng, n)
                s = engine.governor.state
                seen.append((int(s.lam) > 0, int(s.cap), int(s.mode), int(s.later)))
        engine.govern(None)
        assert engine.driver.governed()["cap"] == 255
        batch(engine, rng, 3)
    lam, cap, mode, high = (set(values) for values in zip(*seen, strict=True))
    assert lam == {False, True} and high == {0, 1} and mode == {0, 1, 2, 3} and {0, 255} <= cap


@pytest.mark.parametrize(("case", "stalls"), [(CASES[0], 0.35), (CASES[1], 0.0)], ids=str)
@pytest.mark.parametrize(
    "design",
    [COLUMNS, *SERIAL, TWO_CLOCKS, *(pytest.param(c, marks=SLOW) for c in OTHERS)],
    ids=lambda c: c.name,
)
def test_every_body_and_column(design: HardwareConfig, case: Case, stalls: float) -> None:
    """As on multipliers, with array cycles that are longer, or shorter than the core's."""
    every_decision(design, case, stalls)


def test_off_changes_nothing(config: HardwareConfig) -> None:
    """With weights but without a budget: the cycles and the counters of a design that never heard of it."""
    layer = opened(CASES[0], config, seed=6)
    rng = np.random.default_rng(1)
    x, side = random_tokens(rng, 20, 64), random_side(rng, 20, DOMAINS)
    with open_engine("verilator", layer, config) as engine:
        plain = check(engine, x, side).counters
        engine.driver.govern(None, weights_of(layer, dict.fromkeys(EVENTS, 900)))
        assert check(engine, x, side).counters["BUSY_CYCLES"] == plain["BUSY_CYCLES"]
        engine.govern(Governor(rule.registers((1 << 24) - 1), weights_of(layer, dict.fromkeys(EVENTS, 1))))
        slower = check(engine, x, side).counters  # nothing is ever owed, but tokens wait to be charged
        assert plain["BUSY_CYCLES"] < slower["BUSY_CYCLES"] < plain["BUSY_CYCLES"] + 60 * len(x)
        assert slower["EXPERTS_USED"] == plain["EXPERTS_USED"]


def test_what_the_host_adds_counts(config: HardwareConfig) -> None:
    """ENERGY_TOKEN may change from token to token: attention that grows is paid for with experts."""
    layer = opened(CASES[0], config, seed=7)
    rng = np.random.default_rng(2)
    governor = governed(layer, config, rng, 1.05)
    used = []
    with open_engine("verilator", layer, config) as engine:
        engine.govern(governor)
        for n in range(24):
            governor.outside(int(n * 0.02 * governor.registers.budget))
            x, side = random_tokens(rng, 1, 64), SideBand.empty(1)
            used.append(check(engine, x, side).counters["EXPERTS_USED"])
    assert sum(used[:8]) > sum(used[16:])
    governor.outside(1 << 24)
    assert governor.weights["TOKEN"] == (1 << 24) - 1


def test_saturated_energy(config: HardwareConfig) -> None:
    """A token that takes more than the meter holds counts as that much."""
    shape = {"width": 64, "shared": 64, "gated": True}
    layer = opened(Case(fmt="fp8", gate=True, shape=shape), config, seed=8)
    weights = {"READ": 65535, "PASS": 65535, "SUM": 65535} | dict.fromkeys(
        ("TOKEN", "EXPERT", "BASE"), (1 << 24) - 1
    )
    with open_engine("verilator", layer, config) as engine:
        engine.govern(Governor(rule.registers((1 << 24) - 1), weights))
        batch(engine, np.random.default_rng(3), 1)
        assert engine.driver.governed()["energy"] == (1 << rule.ENERGY_BITS) - 1


def test_icarus_has_none(config: HardwareConfig) -> None:
    with open_engine("golden", opened(CASES[0], config, seed=9), config) as engine:
        engine.govern(None)
        assert engine.governor is None
    with pytest.raises(ExpertileError, match="starts anew with every run: no governor"):
        open_engine("icarus", opened(CASES[0], config, seed=9), config).govern(None)


def test_generate_on_hardware(tiny_checkpoint: Any, tmp_path: Path) -> None:
    """A text under a budget: every layer's own governor in simulated hardware does as the golden ones do."""
    text, gate, out = (tmp_path / name for name in ("text.txt", "gate.json", "out.json"))
    text.write_bytes(np.random.default_rng(6).integers(40, 90, 600).astype(np.uint8).tobytes())
    common = ("--checkpoint", tiny_checkpoint, "--config", "tiny")
    assert run("calibrate", *common, "--text", text, "--max-bytes", 300, "-o", gate) == 0

    def governed(engine: str, tokens: int, budget: float, begin: int) -> dict[str, Any]:
        options = ("--prompt", "a bc", "--tokens", tokens, "--gate", gate, "--json", out, "--engine", engine)
        assert run("generate", *common, *options, "--energy-budget", budget, "--budget-from", begin) == 0
        report: dict[str, Any] = json.loads(out.read_text())
        return report

    free = governed("golden", 20, 1000, 0)["governor"]["nj_after"]
    soft, hard = (governed(engine, 44, 0.8 * free, 6) for engine in ("golden", "verilator"))
    assert soft["text"] == hard["text"] and soft["governor"] == hard["governor"]
    assert hard["cycles"] > 0 and hard["governor"]["attention"]
    assert hard["governor"]["nj_after"] == pytest.approx(0.8 * free, rel=0.06)


def test_the_shipped_model_on_hardware(tmp_path: Path) -> None:
    """Its five layers, each simulated with its governor: token for token as in the golden model."""
    common = ("--format", "int4", "--gate", MODEL / "gate.json", "--prompt", "The ", "--tokens", 16)
    budget = ("--energy-budget", 95, "--budget-from", 4, "--json", tmp_path / "out.json")
    reports = []
    for engine in ("golden", "verilator"):
        assert run("generate", *common, *budget, "--engine", engine) == 0
        reports.append(json.loads((tmp_path / "out.json").read_text()))
    soft, hard = reports
    assert soft["text"] == hard["text"] and soft["governor"] == hard["governor"] and hard["cycles"] > 0
    governed = hard["governor"]
    assert governed["nj_after"] < 0.9 * governed["nj_before"]
    assert governed["experts_after"] < governed["experts_before"] and len(governed["attention"]) == 3
