"""The filter by semantic entropy: clusters, their entropy, and what is taken."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sw_model.training import semantic_entropy as se  # noqa: E402
from sw_model.training.model import Model, ModelConfig  # noqa: E402


def test_clusters_form_around_leaders():
    # 1 is like 0; 2 is like 1 only, which leads nothing; 3 is like both leaders and joins the first.
    alike = np.eye(4, dtype=bool)
    for i, j in ((0, 1), (1, 2), (0, 3), (2, 3)):
        alike[i, j] = alike[j, i] = True
    assert se.clusters(alike[None]).tolist() == [[0, 0, 2, 0]]


def test_entropy_of_clusters():
    label = np.array([[0, 0, 0, 0], [0, 0, 2, 2], [0, 1, 2, 3]])
    assert se.entropies(label).tolist() == [0.0, 1.0, 2.0]


def test_choice_keeps_the_budget_and_passes_over_repetition():
    words = [f"word{n}" for n in range(400)]
    one, two = (" ".join(words[s : s + 100]).encode() for s in (0, 150))
    documents = [one, one[:400], two, b"short"]
    assert se.choose(documents, [0, 1, 2, 3], 1e9, overlap=0.5) == [0, 2, 3]
    assert se.choose(documents, [0, 1, 2, 3], 1e9, overlap=None) == [0, 1, 2, 3]
    assert se.choose(documents, [2, 0, 1, 3], len(two) + 1, overlap=None) == [0, 2]


def test_scores_are_entropies_of_what_the_model_writes():
    torch.manual_seed(1)
    shape = ModelConfig(
        layers=1, hidden=32, heads=1, experts=2, top_k=1, intermediate=32, shared_intermediate=32, context=256
    )
    model = Model(shape).eval()
    documents = [bytes([65 + n]) * 300 for n in range(3)] + [b"x" * 100]
    first, again = (se.scores(model, documents, seed=2) for _ in range(2))
    assert first.tolist() == again.tolist()
    assert first[3] == 0
    assert (first[:3] > 0).all()
    assert (first <= 3).all()
