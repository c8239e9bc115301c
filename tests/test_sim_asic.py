"""Whole layers with bit-serial macros: the bits of the golden model, and the counters of multipliers."""

from dataclasses import replace

import numpy as np
import pytest
from random_layers import RULES, random_tokens
from sim_layers import Case, check, check_with_side, random_quantised

from sim.engines import open_engine
from sw_model.config import HardwareConfig, load_config
from sw_model.formats import EXPERT_FORMATS

pytestmark = pytest.mark.sim

TINY = load_config("tiny")
CONFIGS = [
    replace(TINY, name="bit", body="asic", act_bits=1),
    replace(TINY, name="nibble", body="asic", act_bits=4, tiles=4, columns=4, drain=2),
]
CASES = [
    *(Case(fmt=fmt, shape={"shared": 64, "gated": True, "experts": 5}) for fmt in (*EXPERT_FORMATS, "mixed")),
    # Sizes that fill neither blocks nor tiles.
    Case(fmt="mixed", shape={"hidden": 33, "width": 35, "shared": 37, "experts": 5}),
    Case(fmt="int4", shape={"hidden": 2, "width": 1, "experts": 3, "renormalise": False}),
    Case(fmt="mixed", gate=True, shape={**RULES["gpt_oss"], "width": 20}),
    Case(fmt="mixed", gate=True, shape={**RULES["deepseek_v3"], "hidden": 64}),
]


@pytest.mark.parametrize("stalls", [0.0, 0.4])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_equals_golden(config: HardwareConfig, case: Case, stalls: float) -> None:
    layer = random_quantised(case, config, seed=len(str(case)))
    x = random_tokens(np.random.default_rng(2), 7, case.hidden)
    with open_engine("verilator", layer, config, stalls=stalls, seed=3) as engine:
        check_with_side(engine, x, seed=6)


@pytest.mark.parametrize("fmt", ["int4", "fp8"])
def test_work_is_the_same_and_takes_its_time(fmt: str) -> None:
    """Of all counters only the cycles differ from those of multipliers: the array's, by the pace."""
    config, case = CONFIGS[0], Case(fmt=fmt, shape={"shared": 64, "gated": True})
    layer = random_quantised(case, config, seed=1)
    x = random_tokens(np.random.default_rng(4), 5, case.hidden)
    counts = []
    for c in (TINY, config):
        with open_engine("verilator", layer, c) as engine:
            counts.append(check(engine, x).counters)
    dsp, asic = counts
    for name in ("ACTIVE_CYCLES", "ROUTED_CYCLES"):
        assert asic[name] == config.step_cycles * dsp[name] > 0
    paced = {"CYCLES", "BUSY_CYCLES", "ACTIVE_CYCLES", "ROUTED_CYCLES"}
    assert {n: v for n, v in asic.items() if n not in paced} == {
        n: v for n, v in dsp.items() if n not in paced
    }


def test_pages() -> None:
    """Experts that come while others are computed."""
    config = CONFIGS[0]
    layer = random_quantised(Case(fmt="mixed", shape={"experts": 6}), config, seed=5)
    x = random_tokens(np.random.default_rng(6), 8, 64)
    with open_engine("verilator", layer, config, slots=4) as engine:
        assert check(engine, x).counters["PAGE_MISSES"] > 0
