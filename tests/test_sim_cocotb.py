"""The same layers through cocotb: bus models that we did not write, and a second simulator."""

import numpy as np
import pytest
from random_layers import RULES, random_tokens
from sim_layers import Case, check, check_with_side, random_quantised, same_bits
from test_sim_topology import COLUMNS

from sim.build import generated
from sim.engines import open_engine
from sim.runner import LayerJob, build, run_layer
from sim.verilator import watchdog
from sw_model import compiler, golden
from sw_model.config import HardwareConfig, load_config
from sw_model.topology import choose_split

pytestmark = pytest.mark.sim

SMALL = {"hidden": 32, "experts": 3, "shared": 32, "gated": True}


def tokens(n: int, seed: int) -> np.ndarray:
    return random_tokens(np.random.default_rng(seed), n, 32)


@pytest.fixture(scope="module")
def config() -> HardwareConfig:
    return load_config("tiny")


def _job(config: HardwareConfig, fmt: str, **options: object) -> LayerJob:
    layer = random_quantised(Case(fmt=fmt, shape=SMALL), config, seed=21)
    x = tokens(4, seed=22)
    expected = golden.run(layer, x, config).y
    image = compiler.compile(layer, config)
    return LayerJob(image=image, x=x, expected=expected, watchdog=watchdog(config), **options)


@pytest.mark.parametrize(("fmt", "stalls"), [("int8", 0.0), ("int4", 0.3), ("mixed", 0.1)])
def test_icarus_engine(fmt: str, stalls: float, config: HardwareConfig) -> None:
    layer = random_quantised(Case(fmt=fmt, shape=SMALL), config, seed=23)
    with open_engine("icarus", layer, config, stalls=stalls, seed=3) as engine:
        check(engine, tokens(3, seed=24))


@pytest.mark.parametrize(("rule", "fmt"), [("gpt_oss", "mxfp4"), ("deepseek_v3", "fp8")])
def test_icarus_with_a_gate(rule: str, fmt: str, config: HardwareConfig) -> None:
    case = Case(fmt=fmt, gate=True, shape={**RULES[rule], "hidden": 32})
    layer = random_quantised(case, config, seed=25)
    with open_engine("icarus", layer, config, stalls=0.2, seed=4) as engine:
        check(engine, tokens(3, seed=26))


def test_icarus_with_side_band(config: HardwareConfig) -> None:
    layer = random_quantised(Case(gate=True, shape={**RULES["deepseek_v3"], "hidden": 32}), config, seed=25)
    with open_engine("icarus", layer, config, stalls=0.2, seed=4) as engine:
        check_with_side(engine, tokens(3, seed=26), seed=27)


def test_icarus_where_blocks_do_not_fill_a_group() -> None:
    """Four tiles share rows of three blocks: nothing that was never written is read."""
    layer = random_quantised(
        Case(fmt="int4", shape={"hidden": 66, "width": 66, "experts": 1, "top_k": 1}), COLUMNS, seed=28
    )
    split, blocks = choose_split(layer.router.rows, layer.router.blocks, COLUMNS.tiles, COLUMNS.columns), 3
    assert blocks % (1 << split) and layer.router.blocks == blocks
    with open_engine("icarus", layer, COLUMNS) as engine:
        check(engine, random_tokens(np.random.default_rng(29), 1, 66))


def test_icarus_reset_in_the_middle(config: HardwareConfig) -> None:
    job = _job(config, "int8", stalls=0.2, seed=5, reset_at=300)
    y, _ = run_layer("icarus", build("icarus", generated(config)), job)
    assert same_bits(y, job.expected)


@pytest.mark.parametrize(("fmt", "stalls", "reset_at"), [("int8", 0.0, None), ("int4", 0.3, 700)])
def test_strays_and_traffic(fmt: str, stalls: float, reset_at: int | None, config: HardwareConfig) -> None:
    """Packets of wrong lengths between back-to-back tokens and random register accesses change no bit."""
    strays = (1, 31, 33, 96, 2, 64, 33, 1, 31)
    options = {"stalls": stalls, "seed": 7, "reset_at": reset_at}
    job = _job(config, fmt, strays=strays, traffic=True, **options)
    y, counters = run_layer("icarus", build("icarus", generated(config)), job)
    assert same_bits(y, job.expected)
    assert counters["TOKENS"] == len(job.x)


def test_a_wrong_bit_fails(config: HardwareConfig) -> None:
    """The testbench notices, and so does what runs it."""
    job = _job(config, "int4")
    job.expected.view(np.uint32)[2, 7] ^= 1
    with pytest.raises(RuntimeError, match=r"1 of 1 tests failed(?s:.*)token 2, element 7"):
        run_layer("icarus", build("icarus", generated(config)), job)


@pytest.mark.slow
@pytest.mark.parametrize("reset_at", [None, 500])
def test_verilator_through_cocotb(reset_at: int | None, config: HardwareConfig) -> None:
    job = _job(config, "int8", stalls=0.3, seed=6, reset_at=reset_at)
    y, _ = run_layer("verilator", build("verilator", generated(config)), job)
    assert same_bits(y, job.expected)
