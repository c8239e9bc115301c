"""Distillation's loss, and the adversary."""

import math

import pytest

torch = pytest.importorskip("torch")

from sw_model.training.adversary import Adversary  # noqa: E402
from sw_model.training.distil import Teacher, losses  # noqa: E402
from sw_model.training.model import Model, ModelConfig, save_checkpoint  # noqa: E402

SHAPE = ModelConfig(
    layers=2, hidden=32, heads=1, experts=2, top_k=1, intermediate=32, shared_intermediate=32, context=16
)


def test_loss_by_hand():
    logits = torch.tensor([[[0.0, math.log(3)]]])  # the student thinks 1/4, 3/4
    teacher = torch.tensor([[[0.5, 0.5]]])
    loss, nats = losses(logits, torch.tensor([[0]]), teacher, 0.4)
    assert float(nats) == pytest.approx(math.log(4))
    cross = -0.5 * (math.log(1 / 4) + math.log(3 / 4))
    assert float(loss) == pytest.approx(0.6 * math.log(4) + 0.4 * cross)
    assert losses(logits, torch.tensor([[0]]), None, 0.4)[0] == nats


def test_loss_is_least_at_the_teachers_own_distribution():
    torch.manual_seed(1)
    teacher = torch.rand(1, 3, 7).softmax(dim=-1)
    logits = teacher.log().requires_grad_()
    loss, _ = losses(logits, torch.zeros(1, 3, dtype=torch.long), teacher, 1.0)
    loss.backward()
    assert logits.grad.abs().max() < 1e-6


def test_teacher_answers_as_the_model_does(tmp_path):
    torch.manual_seed(2)
    save_checkpoint(Model(SHAPE).state_dict(), SHAPE, tmp_path)
    teacher = Teacher(tmp_path, torch.device("cpu"))
    tokens = torch.randint(0, 256, (2, 9))
    with torch.no_grad():
        want = teacher.model(tokens)[0].softmax(dim=-1)
    torch.testing.assert_close(teacher(tokens), want)
    assert not teacher(tokens).requires_grad


def test_adversary_learns_to_tell_and_shows_the_way():
    torch.manual_seed(3)
    adversary = Adversary(16, width=16, rate=1e-2)
    tokens = torch.randint(0, 16, (8, 20))
    teacher = torch.nn.functional.one_hot(tokens.roll(-1, 1), 16) * 0.5 + 0.5 / 16
    logits = torch.zeros(8, 20, 16, requires_grad=True)
    for _ in range(60):
        told = adversary.learn(tokens, teacher, logits.softmax(dim=-1))
    assert told > 0.9
    first = adversary.fooled(tokens, logits.softmax(dim=-1))
    first.backward()
    assert all(p.grad is None and p.requires_grad for p in adversary.parameters())
    better = logits.detach() - 5 * logits.grad / logits.grad.abs().max()
    assert adversary.fooled(tokens, better.softmax(dim=-1)) < first


def test_adversary_looks_back_only():
    torch.manual_seed(4)
    adversary = Adversary(16, width=8)
    tokens, p = torch.randint(0, 16, (1, 20)), torch.rand(1, 20, 16).softmax(dim=-1)
    other = tokens.clone()
    other[0, 12:] = (other[0, 12:] + 1) % 16
    torch.testing.assert_close(adversary(tokens, p)[0, :12], adversary(other, p)[0, :12])
