"""Training with the gate on: the mask, its derivative, the budget."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sw_model import reference_gate  # noqa: E402
from sw_model.checkpoint import Checkpoint  # noqa: E402
from sw_model.gate import Gate, SideBand, to_q  # noqa: E402
from sw_model.training.gated_model import GatedModel  # noqa: E402
from sw_model.training.model import Model, ModelConfig, load_checkpoint, save_checkpoint  # noqa: E402

SHAPE = ModelConfig(
    layers=2, hidden=64, heads=2, experts=4, top_k=2, intermediate=32, shared_intermediate=32, context=32
)


@pytest.fixture
def model():
    torch.manual_seed(3)
    source = Model(SHAPE)
    with torch.no_grad():
        for layer in source.layers:
            layer.moe.router.weight.mul_(20)
            layer.moe.down.mul_(20)
    return source


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, 127, (10, 32), generator=generator), torch.arange(10) % 5


def used(model, tokens, domain):
    return model.gated(tokens, domain, torch.ones(len(tokens)))[2]


def test_open_gate_is_the_model(model, batch):
    gated = GatedModel.of(model, domains=5)
    want, _ = model(batch[0])
    for on in (torch.ones(10), torch.zeros(10)):
        torch.testing.assert_close(gated.gated(*batch, on)[0], want)
    torch.testing.assert_close(gated(batch[0])[0], want)


def test_without_a_gate_at_all_it_is_the_model_too(model, batch):
    gated = GatedModel.of(model, domains=5)
    logits, _, experts = gated.gated(*batch, None)
    torch.testing.assert_close(logits, model(batch[0])[0])
    assert experts.tolist() == [2.0, 2.0]


def test_weights_of_a_fresh_model_are_drawn_as_without_a_gate():
    gated = GatedModel(SHAPE, domains=5)
    moe = gated.layers[1].moe
    assert float(moe.gate.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert not moe.density.weight.any()


def test_settled_gate_hits_its_target_and_ungated_rows_are_left_alone(model, batch):
    gated = GatedModel.of(model, domains=5)
    gated.settle(*batch, 1.2)
    torch.testing.assert_close(used(gated, *batch), torch.full((2,), 1.2), atol=0.01, rtol=0)
    on = (torch.arange(10) < 5).float()
    got = gated.gated(*batch, on)[0]
    want = model(batch[0])[0]
    torch.testing.assert_close(got[5:], want[5:])
    assert (got[:5] - want[:5]).abs().max() > 1e-3


def test_price_pays_for_what_is_used_over_the_target(model, batch):
    gated = GatedModel.of(model, domains=5)
    gated.settle(*batch, 1.6)
    for _ in range(60):
        for layer, mean in zip(gated.layers, used(gated, *batch), strict=True):
            layer.moe.pay(mean - 1.2, 0.3)
    torch.testing.assert_close(used(gated, *batch), torch.full((2,), 1.2), atol=0.05, rtol=0)


def test_gradient_reaches_the_gate_and_keeps_the_budget(model, batch):
    gated = GatedModel.of(model, domains=5)
    gated.settle(*batch, 1.2)
    moe = gated.layers[0].moe
    x = torch.randn(320, 64, generator=torch.Generator().manual_seed(2))
    domain = batch[1].repeat_interleave(32)
    moe.settle(x, domain, 1.2)
    y, _, _ = moe.gated(x, domain, torch.ones(320))
    y.square().mean().backward()
    assert moe.density.weight.grad.norm() > 0
    # A row that raises all scores alike must be worth nothing: psi would follow.
    same = torch.cat([x[:, :63], torch.ones(320, 1)], dim=1)
    moe.zero_grad()
    moe.settle(same, domain, 1.2)
    moe.gated(same, domain, torch.ones(320))[0].square().mean().backward()
    gradient = moe.density.weight.grad[0]
    assert abs(gradient[63]) < 1e-4 * gradient.norm()


def test_the_mask_is_level_3_of_the_gate(model, batch, tmp_path):
    gated = GatedModel.of(model, domains=5)
    with torch.no_grad():
        for layer in gated.layers:
            layer.moe.density.weight.normal_(std=0.1)
    gated.settle(*batch, 1.2)
    save_checkpoint(gated.checkpoint_state(), SHAPE, tmp_path)
    layer = Checkpoint.open(tmp_path).moe_layer(1)
    moe, tokens = load_checkpoint(tmp_path).layers[1].moe, 320
    gate_of = gated.layers[1].moe
    gate = Gate(
        tau=(-32768,) * 2,
        psi=int(to_q(float(gate_of.psi))),
        density=256,
        domain_bias=to_q(gate_of.loudness.numpy()),
        cost=np.zeros(4, np.int64),
        miss=np.zeros(4, np.int64),
        density_row=gate_of.density.weight.detach().numpy()[0],
    )
    x = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(4))
    domain = np.arange(tokens) % 5
    experts, _, d = reference_gate.decide(
        layer, gate, x.double().numpy(), SideBand(info=np.zeros(tokens, np.int64), tag=domain)
    )
    with torch.no_grad():
        _, mask, weight = moe.route(x)
        score = gate_of.scores(x, weight, torch.from_numpy(domain))
    keep = ((score >= gate_of.psi) & (mask > 0)).numpy()
    want = np.zeros_like(keep)
    np.put_along_axis(want, experts, d.kept, axis=1)
    assert (keep == want).all(axis=1).mean() > 0.97  # Q7.8 tips what lies at the threshold
    assert 0.2 < keep.mean() * 2 < 0.9
