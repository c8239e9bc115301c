"""Topologies on the Verilated core: whatever the split of each pass, the bits of the golden model."""

from itertools import product

import numpy as np
import pytest
from random_layers import RULES, random_tokens
from sim_layers import Case, check, check_with_side, random_quantised

from sim import build
from sim.engines import open_engine
from sim.hollow import HollowCore
from sim.mix import FORMATS, Part, measure
from sw_model import compiler, golden
from sw_model.config import HardwareConfig, load_config
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


def test_tiles_compiled_once(monkeypatch: pytest.MonkeyPatch, config: HardwareConfig) -> None:
    """As in models of many tiles: a tile is a block of its own, and nothing else is different."""
    monkeypatch.setattr(build, "_MANY", config.tiles)
    case = Case(fmt="mixed", gate=True, shape={**RULES["gpt_oss"], "width": 40})
    layer = random_quantised(case, config, seed=3)
    x = random_tokens(np.random.default_rng(4), 9, case.hidden)
    for stalls in (0.0, 0.4):
        with open_engine("verilator", layer, config, stalls=stalls, seed=5) as engine:
            check_with_side(engine, x, seed=6)
    library = build.build_verilator(build.generated(config))
    assert (library.parent / f"{build.TOP}.v").read_text().count("hier_block") == 1


FEW = (
    Part(name="router alone", tokens=3, top_k=1, width=1, experts=2, empty=True),
    Part(name="narrow", tokens=3, top_k=2, width=1, experts=3),
    Part(name="wide", tokens=3, top_k=1, width=96, experts=2),
)


@pytest.mark.parametrize("fmt", FORMATS)
def test_no_fixed_topology_is_faster(fmt: str, config: HardwareConfig) -> None:
    *fixed, chosen = measure(config, fmt, FEW)
    assert [row["split"] for row in fixed] == [0, 1, 2]
    for part in FEW:
        best = min(row["parts"][part.name] for row in fixed)
        assert (
            chosen["parts"][part.name] <= 1.01 * best
        )  # where rows or tokens in and out bound it, a few more
    assert chosen["cycles_ratio"] > 1 and chosen["array_cycles_ratio"] > 1


def test_hollow_tiles_change_no_cycle(config: HardwareConfig) -> None:
    """Whatever the split and format, the counters are those of whole tiles, where routes are alike."""
    core = HollowCore(config)
    for n, (fmt, shape) in enumerate(
        product(("int4", "int8"), ({"shared": 64, "gated": True}, {"width": 8}))
    ):
        layer = random_quantised(Case(fmt=fmt, shape={**shape, "experts": 2}), config, seed=n)
        x = random_tokens(np.random.default_rng(n), 5, layer.hidden)
        with open_engine("verilator", layer, config) as engine:
            for split in SPLITS:
                image = compiler.compile(layer, config, split)
                engine.driver.load(image)
                counters = check(engine, x, split=split).counters
                assert {**core.cycles(image, x), "CYCLES": 0, "WORDS_LOADED": 0} == {
                    **counters, "CYCLES": 0, "WORDS_LOADED": 0,
                }  # fmt: skip
    core.close()


@pytest.mark.slow
@pytest.mark.parametrize("fmt", FORMATS)
def test_the_mix_on_many_macros(fmt: str) -> None:
    """A topology a pass: 1.3 times fewer cycles than the best fixed one, tokens in and out included."""
    *_, chosen = measure(load_config("macros_64"), fmt)
    assert chosen["cycles_ratio"] >= 1.3
