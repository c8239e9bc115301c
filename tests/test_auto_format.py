"""Formats by measurement: both budgets are met, wider formats go where they earn most, and search pays."""

from functools import cache

import numpy as np
import pytest
from random_layers import random_layer
from test_golden_accuracy import outliers, sqnr_db
from test_golden_exact import CONFIG

from sw_model import golden, reference
from sw_model.auto_format import FormatChoice, choose_formats, importance_of
from sw_model.errors import ExpertileError
from sw_model.formats import EXPERT_FORMATS, SCALE_BITS
from sw_model.moe import MoELayer
from sw_model.quantised import ExpertFormats, QuantisedLayer, quantise


@cache
def _layer() -> tuple[MoELayer, np.ndarray]:
    """Three experts of very different say: the down projections grow from the first to the last."""
    rng = np.random.default_rng(1)
    layer = random_layer(rng, hidden=64, width=64, experts=3, shared=32, gated=True)
    for e, expert in enumerate(layer.experts):
        expert.down[:] *= 4.0 ** (e - 1)
    return layer, outliers(rng, 64, 64)


def stored_bits(layer: QuantisedLayer) -> float:
    """Bits a weight, counted in the matrices themselves."""
    matrices = [m for e in layer.everyone for m in (e.gate_up, e.down)]
    blocks = sum(m.rows * m.blocks for m in matrices)
    return sum(m.rows * m.blocks * (32 * m.fmt.bits + SCALE_BITS) for m in matrices) / blocks / 32


def check(choice: FormatChoice) -> QuantisedLayer:
    layer, x = _layer()
    assert len(choice.formats) == 4
    q = quantise(layer, choice.formats, CONFIG, importance_of(layer, x))
    assert choice.bits == pytest.approx(stored_bits(q), abs=1e-9)
    y = golden.run(q, x, CONFIG).y
    assert choice.sqnr_db == pytest.approx(sqnr_db(y, reference.run(layer, x).y), abs=1e-6)
    return q


@pytest.mark.parametrize("most_bits", [4.625, 5.0, 5.7, 6.6, 8.625, 12.0])
def test_size_budget(most_bits: float) -> None:
    choice = choose_formats(*_layer(), CONFIG, most_bits=most_bits)
    check(choice)
    assert 4 + SCALE_BITS / 32 <= choice.bits <= most_bits
    if most_bits < 8:  # the smallest matrix of 8 more would not fit
        assert choice.bits > most_bits - 0.6


def test_more_bits_are_better() -> None:
    choices = [choose_formats(*_layer(), CONFIG, most_bits=b) for b in (4.625, 5.5, 6.5, 7.5, 8.625)]
    sqnr = [c.sqnr_db for c in choices]
    assert sqnr == sorted(sqnr) and sqnr[-1] > sqnr[0] + 10
    # Half of the bits in between buy more than half of the way for the expert that says most.
    wide = {f for f in EXPERT_FORMATS.values() if f.bits == 8}
    last = choices[1].formats[2]
    assert {last.gate_up, last.down} & {f.name for f in wide}
    first = choices[1].formats[0]
    assert not {first.gate_up, first.down} & {f.name for f in wide}


@pytest.mark.parametrize("least", [10.0, 18.0, 24.0, 30.0])
def test_quality_budget(least: float) -> None:
    choice = choose_formats(*_layer(), CONFIG, least_sqnr_db=least)
    check(choice)
    assert choice.sqnr_db >= least
    widest = choose_formats(*_layer(), CONFIG, most_bits=12.0)
    assert choice.bits <= widest.bits
    if least < 20:
        assert choice.bits < widest.bits - 1


def test_budgets_that_cannot_be_met() -> None:
    for budget, message in (
        ({}, "give one budget"),
        ({"most_bits": 5.0, "least_sqnr_db": 20.0}, "give one budget"),
        ({"most_bits": 4.6}, r"4\.6 bits a weight cannot be met; the least is 4\.625"),
        ({"least_sqnr_db": 80.0}, r"80\.0 dB cannot be met; all at eight bits give 3\d\.\d dB"),
    ):
        with pytest.raises(ExpertileError, match=message) as error:
            choose_formats(*_layer(), CONFIG, **budget)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("fmt", ["int4", "mxfp4"])
def test_calibrated_search_lowers_the_error_of_the_output(fmt: str) -> None:
    """On tokens that it has not seen, against a search that knows nothing of the activations."""
    layer, _ = _layer()
    rng = np.random.default_rng(2)
    x = outliers(rng, 256, 64)
    seen, unseen = x[:128], x[128:]
    exact = reference.run(layer, unseen).y
    blind, calibrated = (
        sqnr_db(golden.run(quantise(layer, fmt, CONFIG, i), unseen, CONFIG).y, exact)
        for i in (None, importance_of(layer, seen))
    )
    assert calibrated > blind + 0.3


def test_importance() -> None:
    layer, x = _layer()
    found = importance_of(layer, x)
    routed = reference.route(layer, x.astype(np.float64))[0]
    for e, i in enumerate(found):
        mine = x[(routed == e).any(axis=1)] if e < 3 else x
        assert i.gate_up is not None and i.down is not None
        assert i.gate_up == pytest.approx((mine.astype(np.float64) ** 2).mean(axis=0))
        assert i.down.shape == (layer.everyone[e].intermediate,) and (i.down >= 0).all()


def test_wrong_number_of_formats() -> None:
    with pytest.raises(ExpertileError, match="2 formats for 4 experts"):
        quantise(_layer()[0], [ExpertFormats(gate_up="int8", down="int4")] * 2, CONFIG)
