"""The filter by semantic entropy: clusters, their entropy, and what is taken."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sw_model.training import semantic_entropy as se  # noqa: E402
from sw_model.training.model import Model, ModelConfig  # noqa: E402

SHAPE = ModelConfig(
    layers=1, hidden=32, heads=1, experts=2, top_k=1, intermediate=32, shared_intermediate=32, context=256
)


def test_clusters_form_around_leaders():
    # 1 is like 0; 2 is like 1 only, which leads nothing; 3 is like both leaders and joins the first.
    alike = np.eye(4, dtype=bool)
    for i, j in ((0, 1), (1, 2), (0, 3), (2, 3)):
        alike[i, j] = alike[j, i] = True
    assert se.clusters(alike[None]).tolist() == [[0, 0, 2, 0]]


def test_entropy_of_clusters():
    label = np.array([[0, 0, 0, 0], [0, 0, 2, 2], [0, 1, 2, 3]])
    assert se.entropies(label).tolist() == [0.0, 1.0, 2.0]


def test_groups_find_what_lies_together():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 3, 90)
    label = se.groups(rng.normal(size=(90, 8)) + 9 * np.eye(8)[truth], 3, seed=2)
    pairs = {(int(t), int(n)) for t, n in zip(truth, label, strict=True)}
    assert len(pairs) == len({t for t, _ in pairs}) == len({n for _, n in pairs}) == 3


def test_budgets_grow_with_bytes_and_the_root_of_the_score():
    size = [np.array([100, 300]), np.array([400, 400])]
    score = [np.array([4.0, 4.0]), np.array([1.0, 1.0])]
    # Weights 400 * 2 and 800 * 1 halve what there is to give.
    assert se.budgets(size, score, 0.25) == pytest.approx([150, 150])
    assert se.budgets(size, score, 0.7) == pytest.approx([380, 420])


def test_choice_gives_each_group_its_share_in_the_order_given():
    size, label = np.full(8, 10), np.array([0, 0, 0, 0, 1, 1, 1, 1])
    assert se.choose(size, label, [3, 7, 2, 6, 1, 5, 0, 4], 40) == [2, 3, 6, 7]
    # Three of eight: the first group is given two, so the second has one.
    assert se.choose(size, label, [3, 7, 2, 6, 1, 5, 0, 4], 30) == [2, 3, 7]
    # What does not fit by half is passed over.
    assert se.choose(np.array([90, 10, 20, 80]), np.zeros(4, int), [0, 1, 2, 3], 40) == [1, 2]


def test_subjects_are_mean_states_and_padding_is_none():
    torch.manual_seed(2)
    model = Model(SHAPE).eval()
    documents = [b"first document", b"a second, longer document" * 3]
    both = se.subjects(model, documents)
    assert both.shape == (2, 32)
    np.testing.assert_allclose(both[0], se.subjects(model, documents[:1])[0], atol=1e-5)


def test_scores_are_entropies_of_what_the_model_writes():
    torch.manual_seed(1)
    model = Model(SHAPE).eval()
    documents = [bytes([65 + n]) * 300 for n in range(3)] + [b"x" * 100]
    first, again = (se.scores(model, documents, seed=2) for _ in range(2))
    assert first.tolist() == again.tolist()
    assert first[3] == 0
    assert (first[:3] > 0).all()
    assert (first <= 3).all()
