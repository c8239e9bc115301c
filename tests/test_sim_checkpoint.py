"""The shipped checkpoint on the hardware: every MoE layer, held-out text, every format, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
from sim_layers import check

from sim.bench import heldout_inputs, run
from sim.bench_report import write
from sim.engines import open_engine
from sw_model.checkpoint import Checkpoint
from sw_model.config import HardwareConfig, load_config
from sw_model.formats import EXPERT_FORMATS
from sw_model.quantised import HIGH_NIBBLE, quantise

FOLDER = Path(__file__).parent.parent / "models" / "base"
TOKENS = 256  # of each layer; fewer where nothing but time is at stake

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def config() -> HardwareConfig:
    return load_config("base")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.open(FOLDER)


@pytest.fixture(scope="module")
def inputs(checkpoint: Checkpoint) -> dict[int, np.ndarray]:
    return heldout_inputs(checkpoint, TOKENS)


def every_layer(
    config: HardwareConfig,
    checkpoint: Checkpoint,
    inputs: dict[int, np.ndarray],
    fmt: str,
    stalls: float,
    tokens: int,
) -> None:
    for n in checkpoint.moe_layers:
        layer = quantise(checkpoint.moe_layer(n), fmt, config)
        with open_engine("verilator", layer, config, stalls=stalls, seed=n) as engine:
            check(engine, inputs[n][:tokens])


@pytest.mark.parametrize(
    ("fmt", "stalls", "tokens"),
    [("int8", 0.0, 96), ("int4", 0.3, TOKENS), ("fp8", 0.1, 32), ("mxfp4", 0.0, 32)],
)
def test_every_layer_under_verilator(
    fmt: str,
    stalls: float,
    tokens: int,
    config: HardwareConfig,
    checkpoint: Checkpoint,
    inputs: dict[int, np.ndarray],
) -> None:
    every_layer(config, checkpoint, inputs, fmt, stalls, tokens)


@pytest.mark.slow
@pytest.mark.parametrize("stalls", [0.0, 0.3])
@pytest.mark.parametrize("fmt", EXPERT_FORMATS)
def test_every_token_of_every_layer(
    fmt: str, stalls: float, config: HardwareConfig, checkpoint: Checkpoint, inputs: dict[int, np.ndarray]
) -> None:
    every_layer(config, checkpoint, inputs, fmt, stalls, TOKENS)


@pytest.mark.parametrize(
    ("which", "fmt", "stalls"),
    [pytest.param(0, "int8", 0.1, marks=pytest.mark.slow), (-1, "int4", 0.0)],
)
def test_first_and_last_layer_under_icarus(
    which: int,
    fmt: str,
    stalls: float,
    config: HardwareConfig,
    checkpoint: Checkpoint,
    inputs: dict[int, np.ndarray],
) -> None:
    n = checkpoint.moe_layers[which]
    layer = quantise(checkpoint.moe_layer(n), fmt, config)
    with open_engine("icarus", layer, config, stalls=stalls, seed=n) as engine:
        check(engine, inputs[n][:1])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stalls", [0.0, 0.2])
@pytest.mark.parametrize("fmt", ["int8", "int4"])
def test_every_layer_under_icarus(
    fmt: str, stalls: float, config: HardwareConfig, checkpoint: Checkpoint, inputs: dict[int, np.ndarray]
) -> None:
    for n in checkpoint.moe_layers:
        layer = quantise(checkpoint.moe_layer(n), fmt, config)
        with open_engine("icarus", layer, config, stalls=stalls, seed=n) as engine:
            check(engine, inputs[n][:3])


def test_bench(tmp_path: Path) -> None:
    rows = run("base", tokens=8)
    assert [r["format"] for r in rows] == [*EXPERT_FORMATS, HIGH_NIBBLE]
    for row in rows:
        assert 0 < row["utilisation_single"] < row["utilisation_stream"] <= 1
        assert row["cycles_per_token"] < row["cycles_per_token_single"]
    write(rows, tmp_path)
    assert (tmp_path / "bench.md").read_text().count("\n| ") == len(rows) + 1
