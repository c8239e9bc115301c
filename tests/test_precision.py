"""Fake quantisation against the quantiser and the golden model, and the rule that enters a format."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sw_model import golden  # noqa: E402
from sw_model.checkpoint import Checkpoint  # noqa: E402
from sw_model.config import load_config  # noqa: E402
from sw_model.formats import WEIGHT_FORMATS, pad_blocks, quantise_act8, quantise_weights, unpack_float32  # noqa: E402
from sw_model.quantised import quantise  # noqa: E402
from sw_model.scale_search import search_scales  # noqa: E402
from sw_model.training.model import Model, ModelConfig, load_checkpoint, save_checkpoint  # noqa: E402
from sw_model.training.precision import (  # noqa: E402
    Precision,
    fake_act8,
    fake_weights,
    gradient_ratio,
    macro_weights,
    rounded,
)

CONFIG = load_config("base")
SHAPE = ModelConfig(
    layers=1, hidden=64, heads=2, experts=4, top_k=2, intermediate=32, shared_intermediate=64, context=32
)


@pytest.mark.parametrize("name", ["int4", "int8", "fp8"])
def test_weights_are_the_quantisers(name):
    fmt = WEIGHT_FORMATS[name]
    rng = np.random.default_rng(1)
    w = rng.normal(size=(300, 96)) * np.exp2(rng.integers(-12, 3, (300, 3))).repeat(32, axis=1)
    w[3, :32] = 0
    w = w.astype(np.float32)
    want = quantise_weights(w, fmt, spread=CONFIG.spread(fmt), ideal=search_scales(w, fmt)).to_float()
    got = fake_weights(torch.from_numpy(w), name).numpy()
    same = np.isclose(got, want, rtol=1e-6, atol=0).reshape(300, 3, 32).all(axis=2)
    assert same.mean() > 0.99  # float32 ties tell two candidates apart otherwise here and there
    assert np.abs(got - w).sum() == pytest.approx(np.abs(want - w).sum(), rel=1e-3)


def test_activations_are_the_array_s():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 96)) * np.exp2(rng.integers(-14, 3, (200, 3))).repeat(32, axis=1)
    x[5] = 0
    x = x.astype(np.float32)
    parts = unpack_float32(pad_blocks(x))
    want = quantise_act8(parts, parts.top.max(axis=(1, 2)), spread=CONFIG.activation_spread).to_float()
    got = fake_act8(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(got[:5], want[:5])
    np.testing.assert_array_equal(got[6:], want[6:])
    assert not got[5].any()


def test_gradient_passes_straight_through():
    x = torch.randn(4, 64, requires_grad=True)
    (fake_act8(x) * 3).sum().backward()
    assert torch.equal(x.grad, torch.full((4, 64), 3.0))


@pytest.mark.parametrize("name", ["int4", "fp8"])
def test_a_rounded_block_is_near_the_golden_model(name, tmp_path):
    torch.manual_seed(3)
    source = Model(SHAPE)
    with torch.no_grad():
        for parameter in source.layers[0].moe.parameters():
            parameter.normal_(std=0.2)
    save_checkpoint(source.state_dict(), SHAPE, tmp_path)
    x = torch.randn(100, 64)
    layer = quantise(Checkpoint.open(tmp_path).moe_layer(0), name, CONFIG)
    want = golden.run(layer, x.numpy(), CONFIG).y
    model = load_checkpoint(tmp_path)
    plain = model.layers[0].moe(x)[0].detach().numpy()
    model.layers[0].moe.act8 = True
    with rounded(model, name), torch.no_grad():
        got = model.layers[0].moe(x)[0].numpy()

    def error(y):
        return np.square(y - want).mean() / np.square(want).mean()

    assert error(got) < 0.02 * error(plain)


def test_rounded_lets_the_update_go_to_the_float_weights():
    torch.manual_seed(4)
    model = Model(SHAPE)
    before = {name: p.detach().clone() for name, p in macro_weights(model).items()}
    assert len(before) == 6
    tokens = torch.randint(1, 99, (2, 16))
    with rounded(model, "int4"):
        down = model.layers[0].moe.down
        assert not torch.equal(down, before["layers.0.moe.down"])
        torch.testing.assert_close(fake_weights(down.mT, "int4").mT, down, atol=2e-3, rtol=0.2)
        model(tokens)[0].square().sum().backward()
    for name, p in macro_weights(model).items():
        assert torch.equal(p, before[name])
        assert p.grad is not None


def test_the_rule_measures_rounding_against_what_batches_differ_by():
    torch.manual_seed(5)
    model = Model(SHAPE)
    batches = [torch.randint(1, 99, (8, 16)) for _ in range(2)]

    def loss(number):
        return torch.nn.functional.cross_entropy(
            model(batches[number][:, :-1])[0].flatten(0, 1), batches[number][:, 1:].flatten()
        )

    ratios = [gradient_ratio(model, loss, None, name) for name in ("int8", "fp8", "int4")]
    assert 0 < ratios[0] < ratios[1] < ratios[2]
    assert gradient_ratio(model, loss, "int4", "int4") == 0
    assert all(p.grad is None for p in model.parameters())


def test_formats_are_entered_by_the_rule_or_at_the_latest():
    rule = Precision(("fp8", "int4"), patience=2, tolerance=0.1, latest=0.9)
    assert (rule.format, rule.next) == (None, "fp8")
    for step, (ratio, rate) in enumerate([(0.05, 1), (0.2, 1), (0.2, 0.4), (0.05, 1)]):
        rule.decide(step, ratio, rate)
    assert (rule.format, rule.next) == ("fp8", "int4")
    assert [row["entered"] for row in rule.log] == [False, False, False, True]
    rule.force(9, 0.89)
    assert rule.format == "fp8"
    rule.force(10, 0.9)
    assert (rule.format, rule.next) == ("int4", None)
    assert rule.log[-1] == {"step": 10, "next": "int4", "ratio": None, "rate": None, "entered": True}
