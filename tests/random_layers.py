"""Random MoE layers of any shape, rule and temper, with gates and tokens for them; seeded by the caller."""

from typing import Any

import numpy as np

from sw_model.gate import Q_MAX, Q_MIN, Gate, SideBand
from sw_model.moe import Activation, Expert, MoELayer, RouterRule

#: The rules of the families, on small shapes: what :func:`random_layer` takes.
RULES: dict[str, dict[str, Any]] = {
    "mixtral": {"renormalise": True},
    "olmoe": {"renormalise": False},
    "qwen2_moe": {"renormalise": False, "shared": 64, "gated": True},
    "qwen3_moe": {"experts": 7, "renormalise": True},
    "deepseek": {"renormalise": False, "shared": 32},
    "deepseek_v2": {
        "experts": 8,
        "renormalise": False,
        "shared": 32,
        "groups": 4,
        "top_groups": 2,
        "scale": 16.0,
    },
    "deepseek_v3": {
        "experts": 8,
        "renormalise": True,
        "shared": 32,
        "scoring": "sigmoid",
        "selection_bias": True,
        "groups": 4,
        "top_groups": 2,
        "group_score": "top2",
        "scale": 2.5,
    },
    "sigmoid": {"scoring": "sigmoid", "renormalise": False, "groups": 2, "top_groups": 1, "experts": 6},
    "gpt_oss": {"hidden": 32, "renormalise": True, "router_bias": True, "expert_bias": True, "clamped": True},
}

#: How the rows and blocks of a matrix differ.
TEMPERS = ("tame", "rows", "wild")


def random_matrix(rng: np.random.Generator, rows: int, columns: int, temper: str) -> np.ndarray:
    """Of unit gain; "rows": rows of different size, one of them zeros; "wild": blocks too, some zeros."""
    w = rng.standard_normal((rows, columns)) * columns**-0.5
    if temper == "rows":
        w *= 2.0 ** rng.integers(-6, 3, (rows, 1))
        w[rng.integers(rows)] = 0
    if temper == "wild":
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
    shared: int = 0,
    gated: bool = False,
    router_bias: bool = False,
    selection_bias: bool = False,
    expert_bias: bool = False,
    clamped: bool = False,
    limit: float = 1.5,
    temper: str = "tame",
    router_gain: float = 1.0,
    top_k: int = 2,
    renormalise: bool = True,
    **rule: Any,
) -> MoELayer:
    """``shared``: width of the base expert, 0 for none; ``gated``: it has a gate; ``rule``: of the router."""

    def vector(n: int, size: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(n) * size).astype(np.float32)

    def expert(wide: int) -> Expert:
        gate, up = (random_matrix(rng, wide, hidden, temper) for _ in range(2))
        down = random_matrix(rng, hidden, wide, temper)
        if not expert_bias:
            return Expert(gate=gate, up=up, down=down)
        biases = {"gate_bias": vector(wide), "up_bias": vector(wide), "down_bias": vector(hidden)}
        return Expert(gate=gate, up=up, down=down, **biases)

    return MoELayer(
        router=random_matrix(rng, experts, hidden, "tame") * np.float32(router_gain),
        rule=RouterRule(top_k=top_k, renormalise=renormalise, **rule),
        experts=tuple(expert(width) for _ in range(experts)),
        router_bias=vector(experts) if router_bias else None,
        selection_bias=vector(experts, 0.3) if selection_bias else None,
        activation=Activation.CLAMPED if clamped else Activation.SILU,
        limit=limit,
        shared=expert(shared) if shared else None,
        shared_gate=random_matrix(rng, 1, hidden, "tame")[0] if gated else None,
    )


def random_q(rng: np.random.Generator, size: float, shape: Any = None, mean: float = 0.0) -> Any:
    """Q7.8 numbers of about ``size`` around ``mean``; now and then one at an end of the range."""
    value = np.rint((rng.standard_normal(shape) * size + mean) * 256)
    value = np.where(rng.random(shape) < 0.05, rng.choice([Q_MIN, Q_MAX], shape), value)
    value = np.clip(value, Q_MIN, Q_MAX).astype(np.int64)
    return int(value) if shape is None else value


def random_gate(
    rng: np.random.Generator, layer: MoELayer, *, domains: int = 3, rows: bool = True, density: bool = True
) -> Gate:
    """A gate that removes some candidates on every level; ``rows``: domains told apart by the router."""
    k = layer.rule.top_k
    taus = np.sort(rng.normal(0, 0.6, k)) - 0.8
    return Gate(
        tau=tuple(int(t) for t in np.rint(taus * 256)),
        phi=random_q(rng, 0.5, mean=-3),
        psi=random_q(rng, 0.5, mean=-3),
        info=random_q(rng, 0.1),
        entropy=random_q(rng, 0.5),
        density=random_q(rng, 0.5),
        lam=random_q(rng, 0.5),
        cap=int(rng.choice([0, 1, k, 255], p=[0.05, 0.15, 0.4, 0.4])),
        domain_bias=random_q(rng, 0.7, (domains, layer.n_experts)),
        cost=random_q(rng, 1.0, layer.n_experts),
        miss=random_q(rng, 1.0, layer.n_experts),
        density_row=random_matrix(rng, 1, layer.hidden, "tame")[0] if density else None,
        domain_rows=random_matrix(rng, domains, layer.hidden, "tame") if rows else None,
        fallback=None if layer.shared is not None else rng.standard_normal(layer.hidden).astype(np.float32),
    )


def random_side(rng: np.random.Generator, tokens: int, domains: int) -> SideBand:
    """Information of any size, half of the tokens tagged."""
    tag = np.where(rng.random(tokens) < 0.5, rng.integers(0, domains, tokens), -1)
    return SideBand(info=rng.integers(0, 256, tokens), tag=tag)


def random_tokens(rng: np.random.Generator, tokens: int, hidden: int) -> np.ndarray:
    """Ordinary tokens, and between the first of them one each: ragged, zero, tiny, huge, sparse, subnormal,
    one-hot, of the widest range."""
    x = rng.standard_normal((tokens, hidden))
    tempers = [
        2.0 ** rng.integers(-14, 14, hidden),
        np.zeros(hidden),
        np.full(hidden, 2.0**-130),
        np.full(hidden, 2.0**55),
        (rng.random(hidden) < 0.05) * 1.0,
        np.full(hidden, 2.0**-140),
        np.eye(1, hidden, hidden - 1)[0],
        2.0 ** rng.integers(-30, 30, hidden),
    ]
    for row, temper in zip(range(1, tokens, 2), tempers, strict=False):
        x[row] *= temper
    return x.astype(np.float32)
