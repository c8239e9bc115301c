"""Calibration: the target is hit on the golden model's integers, whatever the layer; tables say the truth."""

from dataclasses import replace

import numpy as np
import pytest

from sw_model import golden, reference_gate
from sw_model.calibration import Settings, Tokens, calibrate, open_gate, order_statistic, set_thresholds
from sw_model.checkpoint import Checkpoint
from sw_model.config import load_config
from sw_model.decoder import Decoder
from sw_model.errors import ExpertileError
from sw_model.gate import Q_MAX, Q_MIN
from sw_model.gate_study import mutual_information
from sw_model.lockstep import Lockstep, bits, pieces
from sw_model.model_gate import Batch, calibrate_text, measure, ungated
from sw_model.moe import Expert, MoELayer, RouterRule

CONFIG = load_config("tiny")
H, I, E = 32, 32, 6


def layer(*, seed=0, k=2, shared=True, scoring="softmax"):
    rng = np.random.default_rng(seed)

    def expert(loud=1.0):
        gate, up, down = rng.standard_normal((3, I, H)).astype(np.float32) * H**-0.5
        return Expert(gate=gate, up=up, down=np.float32(loud) * down.T)

    return MoELayer(
        router=rng.standard_normal((E, H)).astype(np.float32) * np.float32(0.4),
        experts=tuple(expert(2.0 ** (e / 2)) for e in range(E)),
        shared=expert() if shared else None,
        shared_gate=None,
        rule=RouterRule(top_k=k, renormalise=True, scoring=scoring),
    )


def tokens(count=400, seed=1, domains=2):
    """Domains lie apart along one direction, so that rows can tell them."""
    rng = np.random.default_rng(seed)
    domain = rng.integers(0, domains, count)
    x = rng.standard_normal((count, H))
    x[np.arange(count), domain] += 4
    return Tokens(x=x.astype(np.float32), domain=domain, info=rng.integers(0, 120, count), domains=domains)


def mean_experts(quantised, t):
    return golden.run(quantised, t.x, CONFIG, t.side).decisions.kept.sum(axis=1).mean()


@pytest.mark.parametrize("target", [0.8, 1.2, 2.0])
@pytest.mark.parametrize("kind", [{}, {"shared": False}, {"scoring": "sigmoid"}])
def test_target_is_hit(target, kind):
    t = tokens()
    settings = Settings(target=target, level1=0, level2=0)
    assert mean_experts(calibrate(layer(**kind), t, settings, CONFIG), t) == pytest.approx(target, abs=0.01)


def test_target_is_hit_with_all_levels_and_on_other_tokens():
    t = tokens(2000)
    quantised = calibrate(layer(), t, Settings(target=1.2), CONFIG)
    assert mean_experts(quantised, t) == pytest.approx(1.2, abs=0.01)
    assert mean_experts(quantised, tokens(2000, seed=9)) == pytest.approx(1.2, abs=0.1)
    d = golden.run(quantised, t.x, CONFIG, t.side).decisions
    assert {1, 2, 3} <= set(np.unique(d.removed))


def test_all_candidates_stay_at_top_k_without_lower_levels():
    quantised = calibrate(layer(), tokens(), Settings(target=2, level1=0, level2=0), CONFIG)
    assert quantised.gate.psi == Q_MIN
    t = tokens(seed=5)
    off = replace(quantised, gate=None)
    np.testing.assert_array_equal(golden.run(quantised, t.x, CONFIG).y, golden.run(off, t.x, CONFIG).y)


def test_the_empty_set_answers_with_the_mean():
    t, moe = tokens(), layer(shared=False)
    quantised = calibrate(moe, t, Settings(target=0.3), CONFIG)
    result = golden.run(quantised, t.x, CONFIG, t.side)
    empty = ~result.decisions.kept.any(axis=1)
    assert empty.any() and not empty.all()
    for y in result.y[empty]:
        np.testing.assert_allclose(y, quantised.gate.fallback, atol=0.02)
    everything = golden.run(replace(quantised, gate=None), t.x, CONFIG).y
    np.testing.assert_allclose(quantised.gate.fallback, everything.mean(axis=0), atol=0.05)


def test_tables():
    gate = open_gate(layer(), tokens(4000), Settings())
    assert (np.diff(gate.domain_bias, axis=1) > 0).all()  # as built: half an octave from expert to expert
    np.testing.assert_allclose(gate.domain_bias[:, -1] - gate.domain_bias[:, 0], 128 * (E - 1), atol=150)
    quantised = calibrate(layer(), tokens(), Settings(), CONFIG)
    d = golden.run(quantised, tokens(seed=3).x, CONFIG).decisions
    assert (d.domain == tokens(seed=3).domain).mean() > 0.95
    np.testing.assert_array_equal(quantised.gate.cost, 256)  # all experts are alike
    assert (quantised.gate.miss > 256).all()  # to load one takes longer than to run it
    serial = replace(CONFIG, body="asic", act_bits=2)  # runs take four times as long, loads do not
    slow = calibrate(layer(), tokens(), Settings(), serial).gate
    np.testing.assert_array_equal(slow.cost, 256)
    np.testing.assert_allclose(4 * slow.miss, quantised.gate.miss, atol=4)


def test_a_trained_row_takes_the_fitted_ones_place():
    row = np.full(H, 0.25, np.float32)
    gate = open_gate(layer(), tokens(), Settings(), row)
    np.testing.assert_array_equal(gate.density_row, row)
    assert (gate.info, gate.entropy) == (0, 0)


@pytest.mark.parametrize("kind", [{}, {"shared": False}, {"scoring": "sigmoid", "k": 1}])
def test_float_gate_agrees(kind):
    """Q7.8 and INT16 rounding may tip a decision that lies within a few hundredths of an octave."""
    t, moe = tokens(), layer(**kind)
    k = moe.rule.top_k
    quantised = calibrate(moe, t, Settings(target=0.6 * k), CONFIG)
    want = golden.run(quantised, t.x, CONFIG, t.side)
    got = reference_gate.run(moe, quantised.gate, t.x, t.side)
    same = (got.experts == want.experts).all(axis=1)
    assert same.mean() > 0.99
    np.testing.assert_allclose(got.decisions.density[same], want.decisions.density[same] / 256, atol=0.05)
    alike = (got.decisions.removed == want.decisions.removed).all(axis=1) & same
    assert alike.mean() > 0.95
    error = np.sum((got.y - want.y)[alike] ** 2) / np.sum(got.y[alike] ** 2)
    assert error < 1e-3


def test_order_statistic_and_ties():
    worth = np.array([5, 4, 4, 4, 1])
    assert [order_statistic(worth, n) for n in (0, 1, 2, 3, 4, 5, 6)] == [Q_MAX, 5, 5, 4, 4, Q_MIN, Q_MIN]


@pytest.mark.parametrize("target", [0, -1, 2.1])
def test_bad_targets(target):
    with pytest.raises(ExpertileError, match="top_k of 2"):
        calibrate(layer(), tokens(), Settings(target=target), CONFIG)


def test_thresholds_may_be_set_again():
    t = tokens()
    quantised = calibrate(layer(), t, Settings(target=1.2), CONFIG)
    other = set_thresholds(quantised, t, Settings(target=0.9), CONFIG)
    assert mean_experts(other, t) == pytest.approx(0.9, abs=0.01)
    np.testing.assert_array_equal(other.router.codes, quantised.router.codes)


def test_lockstep_is_the_decoder(tiny_checkpoint):
    checkpoint = Checkpoint.open(tiny_checkpoint)

    def moe(n, x):
        return x * np.float32(0.5 + n)

    texts = [np.frombuffer(t, np.uint8).astype(np.int64) for t in (b"\0first text", b"\0second, longer")]
    together = Lockstep(checkpoint, moe).forward_all(texts)
    for ids, logits in zip(texts, together, strict=True):
        np.testing.assert_allclose(Decoder(checkpoint, moe).forward(ids), logits, atol=1e-5)
    cost = bits(together[0], texts[0])
    p = np.exp(together[0][0].astype(float))
    assert cost[0] == pytest.approx(-np.log2(p[ord("f")] / p.sum()))
    with pytest.raises(ExpertileError, match="positions"):
        Lockstep(checkpoint, moe).forward_all([np.zeros(97, np.int64)])


def test_pieces_come_from_all_texts():
    cut = pieces([b"a" * 50, b"b" * 50, b"c"], 40, 11, 0)
    assert [len(p) for p in cut] == [11] * 4
    assert b"".join(bytes(p.astype(np.uint8)) for p in cut).count(b"a") == 20
    assert pieces([b"a"], 40, 11, None) == []


def test_a_whole_model(tiny_checkpoint):
    checkpoint = Checkpoint.open(tiny_checkpoint)
    rng = np.random.default_rng(4)
    texts = {
        n: [bytes(rng.integers(c, c + 20, 300).astype(np.uint8))] for n, c in (("low", 40), ("high", 90))
    }
    gate, layers = calibrate_text(checkpoint, texts, Settings(), CONFIG, total=280, length=70)
    assert gate.domains == ("low", "high") and sorted(gate.layers) == checkpoint.moe_layers
    figures = measure(checkpoint, gate, layers, texts, CONFIG, total=280, length=70)
    for mean in figures.mean_experts.values():  # the very tokens it was calibrated on
        assert mean == pytest.approx(1.2, abs=0.02)
    report = figures.as_dict()
    assert set(report["bits_per_byte"]["gated"]) == {"low", "high"}
    assert report["layers"]["1"]["removed_by_level"]["cost"] > 0
    same = measure(checkpoint, gate, ungated(layers) | layers, texts, CONFIG, total=64, length=32)
    assert same.tokens < figures.tokens
    with pytest.raises(ExpertileError, match="no text"):
        Batch.of({"none": [b""]}, checkpoint, total=10, length=10)


def test_mutual_information():
    domain = np.repeat([0, 1], 500)
    assert mutual_information(domain[:, None], domain, 2) == pytest.approx(1, abs=0.01)
    random = np.random.default_rng(2).integers(0, 2, (1000, 1))
    assert mutual_information(random, domain, 2) < 0.01
    assert mutual_information(np.where(random, domain[:, None], -1), domain, 2) == pytest.approx(1, abs=0.01)
