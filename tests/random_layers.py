"""Random MoE layers of any shape and temper, seeded by the caller's generator."""

import numpy as np

from sw_model.moe import Expert, MoELayer


def random_matrix(rng: np.random.Generator, rows: int, columns: int, wild: bool) -> np.ndarray:
    """Of unit gain; ``wild``: rows and blocks of very different size, some of them zero."""
    w = rng.standard_normal((rows, columns)) * columns**-0.5
    if wild:
        w *= 2.0 ** rng.integers(-14, 4, (rows, 1))
        blocks = -(-columns // 32)
        size = 2.0 ** rng.integers(-10, 1, (rows, blocks)) * (rng.random((rows, blocks)) > 0.1)
        w *= np.repeat(size, 32, axis=1)[:, :columns]
        w[rng.random(rows) < 0.05] = 0
    return w.astype(np.float32)


def random_layer(
    rng: np.random.Generator,
    *,
    hidden: int = 64,
    width: int = 32,
    experts: int = 4,
    top_k: int = 2,
    renormalise: bool = True,
    shared: int = 0,
    gated: bool = False,
    wild: bool = False,
) -> MoELayer:
    """``shared``: width of the base expert, 0 for none; ``gated``: it has a gate."""

    def expert(wide: int) -> Expert:
        gate, up = (random_matrix(rng, wide, hidden, wild) for _ in range(2))
        return Expert(gate=gate, up=up, down=random_matrix(rng, hidden, wide, wild))

    return MoELayer(
        router=random_matrix(rng, experts, hidden, False),
        experts=tuple(expert(width) for _ in range(experts)),
        shared=expert(shared) if shared else None,
        shared_gate=random_matrix(rng, 1, hidden, False)[0] if gated else None,
        top_k=top_k,
        renormalise=renormalise,
    )


def random_tokens(rng: np.random.Generator, tokens: int, hidden: int) -> np.ndarray:
    """Ordinary tokens, and between the first of them one each: wide range, zero, tiny, huge, sparse."""
    x = rng.standard_normal((tokens, hidden))
    tempers = [
        2.0 ** rng.integers(-14, 14, hidden),
        np.zeros(hidden),
        np.full(hidden, 2.0**-130),
        np.full(hidden, 2.0**55),
        (rng.random(hidden) < 0.05) * 1.0,
    ]
    for row, temper in zip(range(1, tokens, 2), tempers, strict=False):
        x[row] *= temper
    return x.astype(np.float32)
