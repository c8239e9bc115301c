"""Router components against the model's routing: order, groups, choice, softmax and sigmoid weights."""

from typing import Any

import numpy as np
import pytest
from amaranth_bench import clock, simulate
from test_hw_numerics import numbers

from hw.router.choice import SCORE_BITS, Choice
from hw.router.exp2 import Exp2
from hw.router.groups import GroupFilter
from hw.router.topk import TopK
from hw.router.weights import RoutingWeights
from sw_model import golden
from sw_model.config import HardwareConfig
from sw_model.formats import Scaled
from sw_model.moe import RouterRule

MOST = (1 << (SCORE_BITS - 1)) - 1


def config(**changes: int) -> HardwareConfig:
    shape = {"tiles": 2, "words": 64, "scales": 64, "max_hidden": 32, "max_intermediate": 32}
    return HardwareConfig(name="router", **{**shape, "max_experts": 12, "max_top_k": 4, **changes})


def test_exp2() -> None:
    rng = np.random.default_rng(2)
    whole = np.array([0, 1, 23, 24, 25, 26, 30, 31, 32, 33, 63, 64, 65535])
    d = np.concatenate([(whole[:, None] << 16 | rng.integers(0, 1 << 16, (1, 30))).ravel(), whole << 16])
    d = np.concatenate([d, rng.integers(0, 32 << 16, 300), [(1 << 32) - 2]])
    want = golden.exp2_neg(d).tolist()
    dut = Exp2()

    async def bench(ctx: Any) -> None:
        got = []
        for value in [*d.tolist(), *[0] * dut.LATENCY]:
            ctx.set(dut.d, value)
            got.append((await clock(ctx, dut.y))[0])
        assert got[dut.LATENCY :] == want

    simulate(dut, bench)


@pytest.mark.parametrize(("experts", "k"), [(8, 2), (8, 1), (4, 4), (16, 3), (1, 1)])
def test_topk(experts: int, k: int) -> None:
    """Random orders with ties and extremes, a gap now and then; at times fewer candidates than places."""
    rng = np.random.default_rng(experts + k)
    dut = TopK(score_bits=SCORE_BITS, candidates=experts, k=k)
    pools = [
        lambda n: rng.integers(-3, 4, n),
        lambda n: rng.integers(-MOST, MOST + 1, n),
        lambda n: rng.choice([-MOST, MOST], n),
        np.arange,
        lambda n: -np.arange(n),
    ]

    async def bench(ctx: Any) -> None:
        for trial in range(40):
            n = int(rng.integers(1, experts + 1)) if trial % 4 == 0 else experts
            scores = pools[trial % len(pools)](n).tolist()
            ctx.set(dut.clear, 1)
            ctx.set(dut.valid, int(rng.integers(2)))  # what comes with a clear is forgotten
            await clock(ctx)
            ctx.set(dut.clear, 0)
            for e, score in enumerate(scores):
                while rng.random() < 0.2:
                    ctx.set(dut.valid, 0)
                    ctx.set(dut.score, MOST)
                    await clock(ctx)
                ctx.set(dut.valid, 1)
                ctx.set(dut.score, score)
                ctx.set(dut.index, e)
                await clock(ctx)
            ctx.set(dut.valid, 0)
            best = [ctx.get(dut.best[j]) for j in range(k)]
            order = sorted(range(n), key=lambda e: (-scores[e], e))[:k]
            assert [b.valid for b in best] == [1] * len(order) + [0] * (k - len(order))
            assert [(b.score, b.index) for b in best if b.valid] == [(scores[e], e) for e in order]

    simulate(dut, bench)


SCORES = [
    lambda rng, n: rng.integers(-3, 4, n),
    lambda rng, n: rng.integers(-MOST, MOST + 1, n),
    lambda rng, n: rng.choice([-MOST, MOST], n),
    lambda rng, n: np.zeros(n, dtype=np.int64),
    lambda rng, n: rng.integers(0, 1 << 24, n),
]


def random_rule(
    rng: np.random.Generator, most_experts: int, most_k: int, **options: Any
) -> tuple[int, RouterRule]:
    """A number of experts and a rule over them."""
    while True:
        experts = int(rng.integers(1, most_experts + 1))
        groups = int(rng.choice([g for g in range(1, 9) if experts % g == 0]))
        top_groups = int(rng.integers(1, groups + 1))
        top2 = experts // groups >= 2 and bool(rng.integers(2))
        sigmoid = top2 or bool(rng.integers(2))
        top_k = int(rng.integers(1, min(most_k, experts // groups * top_groups) + 1))
        rule = RouterRule(
            top_k=top_k,
            renormalise=bool(rng.integers(2)),
            scoring="sigmoid" if sigmoid else "softmax",
            scale=float(rng.choice([1.0, 2.5, 16.0, 63.9, 0.01])),
            groups=groups,
            top_groups=top_groups,
            group_score="top2" if top2 else "max",
        )
        if all(getattr(rule, name) == value for name, value in options.items()):
            return experts, rule


def groups_of(scores: np.ndarray, rule: RouterRule) -> set[int]:
    """The chosen groups, in Python's integers."""
    parts = [sorted(g, reverse=True) for g in scores.reshape(rule.groups, -1).tolist()]
    score = [p[0] if rule.group_score == "max" else sum(p[:2]) for p in parts]
    return set(sorted(range(rule.groups), key=lambda g: (-score[g], g))[: rule.top_groups])


def test_group_filter() -> None:
    rng = np.random.default_rng(3)
    dut = GroupFilter(config(), SCORE_BITS)

    async def bench(ctx: Any) -> None:
        for trial in range(120):
            experts, rule = random_rule(rng, 12, 4)
            scores = SCORES[trial % len(SCORES)](rng, experts)
            size = experts // rule.groups
            ctx.set(dut.clear, 1)
            await clock(ctx)
            ctx.set(dut.clear, 0)
            ctx.set(dut.top2, rule.group_score == "top2")
            ctx.set(dut.top_groups, rule.top_groups)
            for e, score in enumerate(scores.tolist()):
                while rng.random() < 0.2:
                    ctx.set(dut.valid, 0)
                    ctx.set(dut.score, MOST)
                    ctx.set(dut.group_last, 1)
                    await clock(ctx)
                ctx.set(dut.valid, 1)
                ctx.set(dut.score, score)
                ctx.set(dut.group_last, e % size == size - 1)
                await clock(ctx)
            ctx.set(dut.valid, 0)
            for _ in range(dut.LATENCY - 1):
                await clock(ctx)
            chosen = ctx.get(dut.chosen)
            assert {g for g in range(8) if chosen >> g & 1} == groups_of(scores, rule), (scores, rule)

    simulate(dut, bench)


@pytest.mark.parametrize("max_k", [1, 4])
def test_choice(max_k: int) -> None:
    """Tokens one after the other; rows that are no experts' may follow the scores; gaps anywhere."""
    rng = np.random.default_rng(max_k)
    dut = Choice(config(max_top_k=max_k))

    async def bench(ctx: Any) -> None:
        for trial in range(120):
            experts, rule = random_rule(rng, 12, max_k)
            scores = SCORES[trial % len(SCORES)](rng, experts)
            for name in ("groups", "top_groups"):
                ctx.set(getattr(dut, name), getattr(rule, name))
            ctx.set(dut.experts, experts)
            ctx.set(dut.top2, rule.group_score == "top2")
            more = int(rng.integers(3))
            for e in range(experts + more):
                while rng.random() < 0.2:
                    ctx.set(dut.valid, 0)
                    ctx.set(dut.last, 0)
                    await clock(ctx)
                ctx.set(dut.valid, e < experts)
                ctx.set(dut.last, e == experts + more - 1)
                ctx.set(dut.expert, e)
                ctx.set(dut.score, int(scores[e]) if e < experts else MOST)
                assert await clock(ctx, dut.done) == (0,)
            ctx.set(dut.valid, 0)
            ctx.set(dut.last, 0)
            cycles, done = 0, 0
            while not done:
                (done,) = await clock(ctx, dut.done)
                cycles += 1
                assert cycles <= experts + GroupFilter.LATENCY + 3
            best = [ctx.get(dut.best[j]) for j in range(rule.top_k)]
            assert all(b.valid for b in best)
            got = [b.index for b in best]
            assert got == golden.choose(scores[None], rule)[0].tolist(), (scores, rule)
            assert [b.score for b in best] == scores[got].tolist()

    simulate(dut, bench)


def rows_of(rng: np.random.Generator, n: int, trial: int) -> Scaled:
    """Router rows from even to far apart, ties and saturated ones."""
    rows = numbers(rng, n, *[(-3, 3), (-20, 0), (5, 20), (-2, 1)][trial % 4])
    if trial % 5 == 0:
        rows.mag[:], rows.top[:], rows.sign[:] = 1 << 23, trial % 7, trial % 2
    return rows


@pytest.mark.parametrize("max_k", [1, 3, 4])
def test_routing_weights(max_k: int) -> None:
    """Softmax and sigmoid, renormalised or not, scaled; every p on its way to the entropy."""
    rng = np.random.default_rng(10 + max_k)
    dut = RoutingWeights(config(max_top_k=max_k), SCORE_BITS)

    async def bench(ctx: Any) -> None:
        for trial in range(60):
            experts, rule = random_rule(rng, 12, max_k, groups=1)
            rows = rows_of(rng, experts, trial)
            part = Scaled(sign=rows.sign[None], top=rows.top[None], mag=rows.mag[None])
            routing = golden.route(part, rule, None)
            sigmoid, everyone = rule.scoring == "sigmoid", bool(trial % 2)
            logits = golden.to_fixed(rows, golden.LOGIT_FRACTION)
            values = golden.sigmoid(rows) if sigmoid else logits
            for name in ("renormalise", "top_k"):
                ctx.set(getattr(dut, name), getattr(rule, name))
            ctx.set(dut.experts, experts)
            ctx.set(dut.sigmoid, sigmoid)
            ctx.set(dut.scale, golden.fixed_scale(rule.scale))
            ctx.set(dut.everyone, everyone)
            ctx.set(dut.restart, 1)
            await clock(ctx)
            ctx.set(dut.restart, 0)
            for e, value in enumerate(values.tolist()):
                ctx.set(dut.value, value)
                ctx.set(dut.expert, e)
                ctx.set(dut.valid, 1)
                await clock(ctx)
                while rng.random() < 0.2:
                    ctx.set(dut.valid, 0)
                    ctx.set(dut.value, (1 << 31) - 1)
                    await clock(ctx)
            ctx.set(dut.valid, 0)
            for j in range(max_k):  # places beyond ``top_k`` hold anything
                e = int(routing.experts[0, j]) if j < rule.top_k else int(rng.integers(12))
                ctx.set(dut.best[j], {"score": int(rng.integers(100)), "index": e, "valid": 1})
            ctx.set(dut.start, 1)
            done, cycles, heard, told = False, 0, [], 0
            while not done:
                done, valid, p, far, all_told = await clock(
                    ctx, dut.done, dut.p_valid, dut.p, dut.distance, dut.p_done
                )
                told += all_told
                if valid:
                    assert not told
                    heard.append((p, far))
                ctx.set(dut.start, 0)
                cycles += 1
                assert cycles <= rule.top_k + experts + 21 * rule.top_k + 10
            weights = [ctx.get(dut.weights[j]) for j in range(rule.top_k)]
            assert weights == routing.weights[0].tolist(), (logits.tolist(), rule)
            assert told == 1
            if not sigmoid and (everyone or not rule.renormalise):
                distance = logits.max() - logits
                want = zip(golden.exp2_neg(distance), np.minimum(distance >> 8, (1 << 14) - 1), strict=True)
                assert heard == list(want)
            else:
                assert heard == []

    simulate(dut, bench)
