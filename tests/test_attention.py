"""Sparse attention against a walk over keys in plain Python, and in the decoder."""

import numpy as np
import pytest

from sw_model import attention, reference
from sw_model.attention import LEVELS, Sparse, visible
from sw_model.checkpoint import Checkpoint
from sw_model.decoder import Decoder

SMALL = (None, Sparse(window=5, sinks=2, block=4, top=2), Sparse(window=1, sinks=0, block=3, top=1))


@pytest.fixture(params=range(len(SMALL)))
def level(request, monkeypatch):
    monkeypatch.setattr(attention, "LEVELS", SMALL)
    return request.param


def walk(q, keys, t, sparse):
    """Keys that one query q [d] at position t sees, and how many vectors are read for it."""
    if sparse is None:
        return set(range(t + 1)), 2 * (t + 1)
    near = {k for k in range(t + 1) if k < sparse.sinks or t - k < sparse.window}
    blocks = {}
    for first in range(0, len(keys), sparse.block):
        last = first + sparse.block - 1
        if t - last >= sparse.window:
            blocks[first] = float(np.mean(keys[first : last + 1], axis=0) @ q)
    best = sorted(blocks, key=lambda b: (-blocks[b], b))[: sparse.top]
    seen = near | {b + i for b in best for i in range(sparse.block)}
    return seen, 2 * len(seen) + len(blocks)


def test_visible_is_the_walk(level):
    rng = np.random.default_rng(level)
    for tokens, seen in ((1, 1), (1, 9), (3, 23), (17, 17), (6, 40)):
        q, keys = rng.standard_normal((2, 3, tokens, 8)), rng.standard_normal((2, seen, 8))
        mask, reads = visible(q, keys, level)
        want = np.zeros(tokens, dtype=int)
        for group, head, i in np.ndindex(2, 3, tokens):
            t = seen - tokens + i
            at, count = walk(q[group, head, i], keys[group], t, SMALL[level])
            assert set(np.flatnonzero(mask[group, head, i])) == at
            want[i] += count
        np.testing.assert_array_equal(reads, want)


def test_equal_blocks_go_to_the_earlier(monkeypatch):
    monkeypatch.setattr(attention, "LEVELS", SMALL)
    mask, _ = visible(np.ones((1, 1, 1, 2)), np.ones((1, 12, 2)), 2)
    assert np.flatnonzero(mask[0, 0, 0]).tolist() == [0, 1, 2, 11]


def decoder(folder):
    checkpoint = Checkpoint.open(folder)
    layers = {n: checkpoint.moe_layer(n) for n in checkpoint.moe_layers}
    return Decoder(checkpoint, lambda n, x: reference.run(layers[n], x).y.astype(np.float32))


def test_pieces_give_what_the_whole_gives(level, tiny_checkpoint):
    ids = np.random.default_rng(3).integers(0, 256, 40)
    whole, parts = decoder(tiny_checkpoint), decoder(tiny_checkpoint)
    whole.sparse_attention = parts.sparse_attention = level
    logits = whole.forward(ids)
    pieces, reads = [], []
    for piece in np.split(ids, [7, 8, 30]):
        pieces.append(parts.forward(piece))
        reads.append(parts.attention_reads)
    np.testing.assert_allclose(np.concatenate(pieces), logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.concatenate(reads), whole.attention_reads)


def test_the_level_may_change_between_tokens(tiny_checkpoint, monkeypatch):
    """What is not read stays: back at level 0 nothing of the past is missing."""
    monkeypatch.setattr(attention, "LEVELS", SMALL)
    ids = np.random.default_rng(4).integers(0, 256, 30)
    d = decoder(tiny_checkpoint)
    full = d.forward(ids)
    shape = d.shape
    every = 2 * shape.layers * shape.heads * np.arange(1, 31)
    np.testing.assert_array_equal(d.attention_reads, every)
    d.reset()
    d.forward(ids[:20])
    d.sparse_attention = 2
    sparse = d.forward(ids[20:])
    assert (d.attention_reads < every[20:]).all()
    assert not np.allclose(sparse, full[20:], atol=1e-3)
    d.sparse_attention = 0
    d.reset()
    d.forward(ids[:20])
    np.testing.assert_allclose(d.forward(ids[20:]), full[20:], rtol=1e-4, atol=1e-4)


def test_levels_read_less_and_less():
    q, keys = np.ones((1, 1, 1, 4)), np.ones((1, 1000, 4))
    reads = [int(visible(q, keys, level)[1][0]) for level in range(len(LEVELS))]
    assert reads == sorted(reads, reverse=True) and len(set(reads)) == len(LEVELS) == 4
