"""High nibbles of INT8 alone on the Verilated core: golden's bits and counts, changed between tokens too."""

from dataclasses import replace

import numpy as np
import pytest
from random_layers import RULES, random_tokens
from sim_layers import Case, check, check_with_side, random_quantised, same_bits
from test_sim_asic import CONFIGS as SERIAL
from test_sim_topology import COLUMNS

from sim.engines import open_engine
from sw_model import golden
from sw_model.compiler import Flag
from sw_model.config import HardwareConfig, load_config

pytestmark = pytest.mark.sim

TINY = load_config("tiny")
CONFIGS = [TINY, COLUMNS, SERIAL[1]]
CASES = [
    Case(fmt="int8", shape={"shared": 64, "gated": True, "experts": 5}),
    Case(fmt="mixed", shape={"hidden": 33, "width": 35, "shared": 37, "experts": 5}),
    Case(fmt="mixed", gate=True, shape={**RULES["gpt_oss"], "width": 20}),
]


@pytest.mark.parametrize("stalls", [0.0, 0.4])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_batch_by_batch(config: HardwareConfig, case: Case, stalls: float) -> None:
    """The same weights on chip, read whole and by halves in turn."""
    whole = random_quantised(case, config, seed=5)
    x = random_tokens(np.random.default_rng(2), 7, case.hidden)
    with open_engine("verilator", whole, config, stalls=stalls, seed=3) as engine:
        flags = engine.driver.read("FLAGS")
        cycles = []
        for high in (False, True, True, False):
            engine.layer = replace(whole, high_nibble=high)
            engine.driver.write("FLAGS", flags | Flag.HIGH_NIBBLE * high)
            cycles.append(check_with_side(engine, x, seed=6).counters["ACTIVE_CYCLES"])
        assert cycles[0] == cycles[3] > cycles[1] == cycles[2]


def test_half_the_passes() -> None:
    """Of an INT8 layer, all but the router's cycles, reads and nibble passes are halved."""
    whole = random_quantised(CASES[0], TINY, seed=1)
    x = random_tokens(np.random.default_rng(3), 6, CASES[0].hidden)
    router = (
        len(x) * 2 * 4 * 2 * -(-whole.router.rows // TINY.tiles)
    )  # blocks, nibbles, bytes, rows of a tile
    counts = []
    for high in (False, True):
        with open_engine("verilator", replace(whole, high_nibble=high), TINY) as engine:
            counts.append(check(engine, x).counters)
    assert counts[0]["ACTIVE_CYCLES"] - router == 2 * (counts[1]["ACTIVE_CYCLES"] - router) > 0
    for name in ("ROUTED_READS", "ROUTED_CYCLES"):
        assert counts[0][name] == 2 * counts[1][name]


@pytest.mark.parametrize("stalls", [0.0, 0.3])
def test_token_by_token(stalls: float) -> None:
    """Changed at any time in a stream, each token is wholly of one kind, and both kinds come."""
    config, case = TINY, CASES[0]
    whole = random_quantised(case, config, seed=4)
    x = random_tokens(np.random.default_rng(5), 24, case.hidden)
    want = [golden.run(replace(whole, high_nibble=high), x, config).y for high in (False, True)]
    assert all((a != b).any() for a, b in zip(*want, strict=True) if a.any())
    rng = np.random.default_rng(6)
    with open_engine("verilator", whole, config, stalls=stalls, seed=7) as engine:
        flags = engine.driver.read("FLAGS")
        y = engine.core.start(x.view(np.uint32), np.full(len(x), case.hidden), len(x), case.hidden)
        while not engine.core.advance(int(rng.integers(1, 900))):
            engine.driver.write("FLAGS", flags | Flag.HIGH_NIBBLE * int(rng.integers(2)))
    got = y.view(np.float32)
    kinds = [[same_bits(got[t], w[t]) for w in want] for t in range(len(x))]
    assert all(any(kind) for kind in kinds)
    assert {(True, False), (False, True)} <= {tuple(kind) for kind in kinds}
