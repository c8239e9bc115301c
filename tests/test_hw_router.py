"""Router components against the model's routing: scores, order, softmax, and all of it together."""

from typing import Any

import numpy as np
import pytest
from amaranth_bench import clock, simulate
from test_hw_numerics import as_items, numbers

from hw.router.exp2 import Exp2
from hw.router.router import Router
from hw.router.scores import ToLogit
from hw.router.topk import TopK
from hw.router.weights import SoftmaxWeights
from sw_model import golden
from sw_model.config import HardwareConfig
from sw_model.formats import MAG_BITS, Scaled, normalise
from sw_model.golden import LOGIT_MAX


def scaled(logits: np.ndarray) -> Scaled:
    """Unpacked numbers whose logits (Q15.16) are exactly these; they must fit 24 bits."""
    s = normalise(logits.astype(np.int64), -16)
    assert np.array_equal(golden.to_logit(s), logits)
    return s


def test_to_logit() -> None:
    """Every exponent of the range, saturation on both sides, ties of the rounding."""
    rng = np.random.default_rng(1)
    parts = [numbers(rng, 600, -20, 17), numbers(rng, 60, -600, 600)]
    ties = rng.integers(-18, 15, 300)
    drop = np.clip(MAG_BITS - 1 - 16 - ties, 0, 24)  # bits of the magnitude below 2**-16
    mag = rng.integers(1 << 23, 1 << 24, 300) >> drop << drop | (1 << drop) >> 1 | 1 << 23
    parts.append(Scaled(sign=rng.random(300) < 0.5, top=ties, mag=mag))
    x = Scaled(**{k: np.concatenate([getattr(p, k) for p in parts]) for k in ("sign", "top", "mag")})
    want = golden.to_logit(x).tolist()
    assert {LOGIT_MAX, -LOGIT_MAX, 0} <= set(want)
    dut = ToLogit()

    async def bench(ctx: Any) -> None:
        got = []
        for item in as_items(x) + [{"sign": 0, "top": 0, "mag": 0}] * dut.LATENCY:
            ctx.set(dut.x, item)
            got.append((await clock(ctx, dut.logit))[0])
        assert got[dut.LATENCY :] == want

    simulate(dut, bench)


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
    dut = TopK(experts=experts, k=k)
    pools = [
        lambda n: rng.integers(-3, 4, n),
        lambda n: rng.integers(-LOGIT_MAX, LOGIT_MAX + 1, n),
        lambda n: rng.choice([-LOGIT_MAX, LOGIT_MAX], n),
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
                    ctx.set(dut.score, LOGIT_MAX)
                    await clock(ctx)
                ctx.set(dut.valid, 1)
                ctx.set(dut.score, score)
                ctx.set(dut.expert, e)
                await clock(ctx)
            ctx.set(dut.valid, 0)
            best = [ctx.get(dut.best[j]) for j in range(k)]
            order = sorted(range(n), key=lambda e: (-scores[e], e))[:k]
            assert [b.valid for b in best] == [1] * len(order) + [0] * (k - len(order))
            assert [(b.score, b.expert) for b in best if b.valid] == [(scores[e], e) for e in order]

    simulate(dut, bench)


def score_sets(rng: np.random.Generator, experts: int) -> list[np.ndarray]:
    """Logits (Q15.16, 24 bits) from even to far apart; ties; both extremes."""
    sets = [rng.integers(-(1 << s), 1 << s, experts) for s in (4, 10, 16, 17, 18, 19, 20, 22)]
    sets += [np.zeros(experts, np.int64), np.full(experts, -5 << 16), np.arange(experts) << 16]
    sets += [rng.choice([-(1 << 16), 0, 1 << 16], experts) for _ in range(4)]
    apart = np.full(experts, -(1 << 30))
    apart[int(rng.integers(experts))] = 1 << 30
    return [*sets, apart]


@pytest.mark.parametrize("renormalise", [False, True], ids=["all", "chosen"])
@pytest.mark.parametrize(("experts", "k"), [(8, 4), (5, 3), (16, 2), (1, 1)])
def test_softmax_weights(experts: int, k: int, renormalise: bool) -> None:
    """Also with fewer experts and a smaller k than built for, as the layer's registers say."""
    rng = np.random.default_rng(experts)
    dut = SoftmaxWeights(experts=experts, k=k)

    async def bench(ctx: Any) -> None:
        ctx.set(dut.renormalise, renormalise)
        for trial, scores in enumerate(score_sets(rng, experts)):
            n = experts if trial % 2 else int(rng.integers(1, experts + 1))
            used = int(rng.integers(1, min(k, n) + 1))
            logits = scores[:n]
            chosen, weights = golden.route(logits[None], used, renormalise)
            for e, score in enumerate(logits.tolist()):
                ctx.set(dut.score, score)
                ctx.set(dut.score_index, e)
                ctx.set(dut.score_valid, 1)
                await clock(ctx)
            ctx.set(dut.score_valid, 0)
            ctx.set(dut.score, LOGIT_MAX)
            for j in range(k):  # places beyond ``used`` hold other candidates
                e = int(chosen[0, j]) if j < used else int(rng.integers(n))
                ctx.set(dut.best[j], {"score": int(logits[e]), "expert": e, "valid": 1})
            ctx.set(dut.experts, n)
            ctx.set(dut.top_k, used)
            ctx.set(dut.start, 1)
            done, cycles = False, 0
            while not done:
                (done,) = await clock(ctx, dut.done)
                ctx.set(dut.start, 0)
                cycles += 1
                assert cycles <= used + n * (not renormalise) + 21 * used + 10
            got = [ctx.get(dut.weights[j]) for j in range(used)]
            assert got == weights[0].tolist(), (logits.tolist(), used)

    simulate(dut, bench)


@pytest.mark.parametrize("max_k", [1, 2, 4])
def test_router(max_k: int) -> None:
    """Tokens one after the other with changing layers: experts, weights and gate as the model has them."""
    rng = np.random.default_rng(max_k)
    config = HardwareConfig(
        name="router", tiles=2, words=64, scales=64, max_hidden=32, max_intermediate=32, max_experts=8,
        max_top_k=max_k,
    )  # fmt: skip
    dut = Router(config)

    async def bench(ctx: Any) -> None:
        for trial in range(36):
            experts = config.max_experts if trial % 3 else int(rng.integers(1, 9))
            top_k = int(rng.integers(1, min(max_k, experts) + 1))
            renormalise, gated = bool(rng.integers(2)), bool(rng.integers(2))
            rows = numbers(rng, experts + gated, *[(-3, 3), (-20, 0), (5, 20)][trial % 3])
            if trial % 4 == 0:  # ties
                rows.mag[:experts], rows.top[:experts], rows.sign[:experts] = (
                    1 << 23,
                    trial % 5,
                    trial % 8 == 0,
                )
            logits = golden.to_logit(rows)[None, :experts]
            chosen, weights = golden.route(logits, top_k, renormalise)
            gate = golden.sigmoid(rows)[-1] if gated else 1 << 16
            for name, value in (
                ("experts", experts),
                ("top_k", top_k),
                ("renormalise", renormalise),
                ("shared_gated", gated),
            ):
                ctx.set(getattr(dut, name), value)
            for r, number in enumerate(as_items(rows)):
                while rng.random() < 0.3:
                    ctx.set(dut.i.valid, 0)
                    await clock(ctx)
                ctx.set(dut.i.payload, {"number": number, "last": r == experts + gated - 1})
                ctx.set(dut.i.valid, 1)
                await clock(ctx)
            ctx.set(dut.i.valid, 0)
            for _ in range(200):
                (done,) = await clock(ctx, dut.done)
                if done:
                    break
            for _ in range(int(rng.integers(4))):
                assert await clock(ctx, dut.done) == (1,)
            route = ctx.get(dut.route)
            assert [route.expert[j] for j in range(top_k)] == chosen[0].tolist()
            assert [route.weight[j] for j in range(top_k)] == weights[0].tolist()
            assert route.shared == gate
            ctx.set(dut.ack, 1)
            await clock(ctx)
            ctx.set(dut.ack, 0)
            assert await clock(ctx, dut.done) == (0,)

    simulate(dut, bench)
