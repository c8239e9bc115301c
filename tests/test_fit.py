"""A configuration made to measure holds its layer, and nothing smaller does."""

from dataclasses import replace

import numpy as np
import pytest

from sw_model import compiler, golden
from sw_model.errors import ExpertileError
from sw_model.fit import fitting_config
from sw_model.moe import Activation, Expert, MoELayer, RouterRule
from sw_model.quantised import quantise


def layer(hidden: int, wide: int, experts: int, *, biased: bool = False, shared: int = 0) -> MoELayer:
    rng = np.random.default_rng(hidden)

    def f(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) / 8

    def expert(width: int) -> Expert:
        bias = {"gate_bias": f(width), "up_bias": f(width), "down_bias": f(hidden)} if biased else {}
        return Expert(gate=f(width, hidden), up=f(width, hidden), down=f(hidden, width), **bias)

    return MoELayer(
        router=f(experts, hidden),
        rule=RouterRule(top_k=2, renormalise=True),
        experts=tuple(expert(wide) for _ in range(experts)),
        router_bias=f(experts) if biased else None,
        activation=Activation.CLAMPED if biased else Activation.SILU,
        shared=expert(shared) if shared else None,
    )


def test_base_where_it_fits() -> None:
    assert fitting_config(layer(64, 32, 4), "int8").name == "base"


@pytest.mark.parametrize("fmt", ["int8", "int4", "fp8", "mxfp4"])
@pytest.mark.parametrize(
    "shape",
    [
        {"hidden": 300, "wide": 40, "experts": 3, "shared": 90},
        {"hidden": 100, "wide": 290, "experts": 3, "biased": True},
        {"hidden": 33, "wide": 8, "experts": 20},
    ],
)
def test_made_to_measure(shape: dict, fmt: str) -> None:
    moe = layer(**shape)
    config = fitting_config(moe, fmt)
    assert config.name == "fitted"
    quantised = quantise(moe, fmt, config)
    image = compiler.compile(quantised, config)
    assert image.words.shape[:2] == (config.tiles, config.words)
    assert image.scales.shape == (config.tiles, config.scales)
    x = np.random.default_rng(1).standard_normal((3, moe.hidden), dtype=np.float32)
    assert np.isfinite(golden.run(quantised, x, config).y).all()
    for name, less in (("words", 1), ("max_hidden", 32), ("max_experts", 1)):
        smaller = replace(config, **{name: getattr(config, name) - less})
        with pytest.raises(ExpertileError, match=name):
            compiler.compile(quantise(moe, fmt, smaller), smaller)


def test_too_large_for_any() -> None:
    with pytest.raises(ExpertileError, match="max_top_k"):
        moe = layer(32, 8, 20)
        fitting_config(replace(moe, rule=RouterRule(top_k=12, renormalise=True)), "int8")
