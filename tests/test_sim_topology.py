"""Topologies on the Verilated core: whatever the split of each pass, the bits of the golden model."""

import numpy as np
import pytest
from random_layers import RULES, random_tokens
from sim_layers import Case, check_with_side, random_quantised

from sim.engines import open_engine
from sw_model import compiler, golden
from sw_model.config import HardwareConfig
from sw_model.timing import stream_cycles

pytestmark = pytest.mark.sim

SPLITS = (0, 1, 2, None)
CASES = [
    Case(fmt="int8", shape={"shared": 32, "gated": True, "experts": 5}),
    # Blocks that fill no group, rows that fill no slot.
    Case(fmt="mixed", shape={"hidden": 75, "width": 35, "shared": 64, "experts": 7}),
    Case(fmt="int4", shape={"hidden": 96, "width": 64, "experts": 2}),
    Case(fmt="mixed", gate=True, shape={**RULES["gpt_oss"], "width": 40}),
    Case(fmt="mixed", gate=True, shape={**RULES["deepseek_v3"], "hidden": 96}),
]


COLUMNS = HardwareConfig(
    name="columns", tiles=4, columns=4, words=3072, scales=1536, max_hidden=96, max_intermediate=96,
    max_experts=8, max_top_k=2, page_slots=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def config() -> HardwareConfig:
    return COLUMNS


@pytest.mark.parametrize("stalls", [0.0, 0.4])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_split_gives_the_same_bits(case: Case, stalls: float, config: HardwareConfig) -> None:
    layer = random_quantised(case, config, seed=3)
    x = random_tokens(np.random.default_rng(4), 9, case.hidden)
    with open_engine("verilator", layer, config, stalls=stalls, seed=5) as engine:
        for split in SPLITS:
            engine.driver.load(compiler.compile(layer, config, split))
            counters = check_with_side(engine, x, seed=6, split=split).counters
            if not case.gate and not stalls and not compiler.paging(layer, config, split=split)["PAGE_SLOTS"]:
                want = stream_cycles(layer, config, golden.run(layer, x, config).experts, split)
                assert counters["BUSY_CYCLES"] == pytest.approx(want, rel=0.05)
