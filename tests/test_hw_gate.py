"""The gate level by level: entropy, density, domain, cost, admission; and the table of contexts."""

from typing import Any

import numpy as np
import pytest
from amaranth_bench import clock, simulate
from random_layers import random_q
from test_hw_router import config

from hw.pe.contexts import CONTEXT, ContextTable
from hw.router.admission import Admission
from hw.router.cost import Cost
from hw.router.density import Density
from hw.router.domain import Domain
from hw.router.entropy import Entropy
from sw_model import golden
from sw_model.gate import Q_MAX, Q_MIN, Gate, SideBand, admit, entropy, entropy_scale, saturate


@pytest.mark.parametrize("most", [2, 12, 60])
def test_entropy(most: int) -> None:
    """Even scores, one winner, everything in between, also far beyond the distance that p can tell."""
    rng = np.random.default_rng(most)
    dut = Entropy(config(max_experts=most, max_top_k=1))

    async def bench(ctx: Any) -> None:
        for trial in range(60):
            experts = int(rng.integers(1, most + 1)) if trial % 3 else most
            logits = rng.integers(-(1 << 5 + trial % 19), 1 << 5 + trial % 19, (1, experts))
            if trial % 10 == 0:
                logits[:] = 5
            distance = logits.max(axis=1, keepdims=True) - logits
            p = golden.exp2_neg(distance)
            ctx.set(dut.clear, 1)
            await clock(ctx)
            ctx.set(dut.clear, 0)
            ctx.set(dut.scale, entropy_scale(experts))
            far = np.minimum(distance >> 8, (1 << 14) - 1)
            for a, d in zip(p[0].tolist(), far[0].tolist(), strict=True):
                while rng.random() < 0.2:
                    ctx.set(dut.valid, 0)
                    ctx.set(dut.p, 1 << 24)
                    await clock(ctx)
                ctx.set(dut.valid, 1)
                ctx.set(dut.p, a)
                ctx.set(dut.distance, d)
                await clock(ctx)
            ctx.set(dut.valid, 0)
            ctx.set(dut.start, 1)
            cycles, done, h = 0, 0, 0
            while not done:
                done, h = await clock(ctx, dut.done, dut.h)
                ctx.set(dut.start, 0)
                cycles += 1
                assert cycles < 25
            assert h == entropy(p, distance, experts)[0], logits

    simulate(dut, bench)


@pytest.mark.parametrize("k", [1, 4])
def test_density(k: int) -> None:
    """Random and extreme operands, a set a cycle."""
    rng = np.random.default_rng(k)
    dut = Density(k)
    n = 400
    names = ("row", "entropy", "info_weight", "entropy_weight")
    values = {name: random_q(rng, 3.0, n) for name in names}
    info = rng.integers(0, 256, n)
    taus = random_q(rng, 20.0, (n, k))
    for name in names:
        values[name][:20] = rng.choice([Q_MIN, Q_MAX], 20)
    total = (
        values["info_weight"] * (info << 5)
        + values["entropy_weight"] * values["entropy"]
        + values["row"] * 256
        + 128
    )
    d = saturate(total >> 8)
    taus[20:60] = d[20:60, None] + rng.integers(-1, 2, (40, k)).clip(
        Q_MIN - d[20:60, None], Q_MAX - d[20:60, None]
    )
    assert (d == Q_MIN).any() and (d == Q_MAX).any()
    want = list(zip(d.tolist(), (d[:, None] >= taus).sum(axis=1).tolist(), strict=True))

    async def bench(ctx: Any) -> None:
        got = []
        for i in range(n + dut.LATENCY):
            at = min(i, n - 1)
            for name in names:
                ctx.set(getattr(dut, name), int(values[name][at]))
            ctx.set(dut.info, int(info[at]))
            # The thresholds are registers: they meet the density of the cycle before.
            ctx.set(dut.tau, taus[max(0, min(i - 1, n - 1))].tolist())
            got.append(await clock(ctx, dut.density, dut.allowed))
        assert got[dut.LATENCY :] == want

    simulate(dut, bench)


@pytest.mark.parametrize(("domains", "experts"), [(8, 12), (1, 8), (5, 3)])
def test_domain(domains: int, experts: int) -> None:
    """A tag wins over the scores, ties go to the lowest, without scores it is the first."""
    rng = np.random.default_rng(domains)
    cfg = config(max_domains=domains, max_experts=experts, max_top_k=1)
    row = 1 << max(1, (experts - 1).bit_length())
    dut = Domain(cfg)
    table = random_q(rng, 50.0, (domains, row))

    async def bench(ctx: Any) -> None:
        for address in rng.permutation(table.size).tolist():
            ctx.set(dut.load_addr, address)
            ctx.set(dut.load_data, int(table.flat[address]) & 0xFFFF)
            ctx.set(dut.load_en, 1)
            await clock(ctx)
        ctx.set(dut.load_en, 0)
        for trial in range(60):
            ctx.set(dut.clear, 1)
            await clock(ctx)
            ctx.set(dut.clear, 0)
            scores = rng.integers(-2, 3, domains) * [1, 1 << 29, -(1 << 29)][trial % 3]
            scores = scores if trial % 5 else scores[:0]
            for score in scores.tolist():
                ctx.set(dut.valid, 0)
                ctx.set(dut.score, (1 << 31) - 1)
                for _ in range(int(rng.integers(3))):
                    await clock(ctx)
                ctx.set(dut.valid, 1)
                ctx.set(dut.score, score)
                await clock(ctx)
            ctx.set(dut.valid, 0)
            tagged, tag = bool(trial % 4 == 0), int(rng.integers(domains))
            ctx.set(dut.tag, tag)
            ctx.set(dut.tag_valid, tagged)
            domain = tag if tagged else int(scores.argmax()) if len(scores) else 0
            for e in range(experts):
                ctx.set(dut.expert, e)
                await clock(ctx)
                assert ctx.get(dut.bias) == table[domain, e]

    simulate(dut, bench)


def test_cost() -> None:
    """All are resident after reset; sums saturate on both sides; a snapshot is written between batches."""
    rng = np.random.default_rng(4)
    dut = Cost(config())
    costs, misses = (np.array([*random_q(rng, 60.0, 8), Q_MIN, Q_MAX, Q_MAX, Q_MIN]) for _ in range(2))
    misses[8:] = Q_MIN, Q_MAX, 1, -1

    async def bench(ctx: Any) -> None:
        for e in rng.permutation(12).tolist():
            ctx.set(dut.load_addr, e)
            ctx.set(dut.load_data, int(misses[e] & 0xFFFF) << 16 | int(costs[e] & 0xFFFF))
            ctx.set(dut.load_en, 1)
            await clock(ctx)
        ctx.set(dut.load_en, 0)
        resident = np.ones(12, bool)
        for batch in range(4):
            if batch:
                resident = rng.random(12) < 0.5 if batch < 3 else np.zeros(12, bool)
                for e, here in enumerate(resident.tolist()):
                    ctx.set(dut.load_addr, e)
                    ctx.set(dut.load_data, here | int(rng.integers(1 << 30)) << 1)
                    ctx.set(dut.resident_en, 1)
                    await clock(ctx)
                ctx.set(dut.resident_en, 0)
            order, seen = rng.permutation(12).tolist(), []
            for e in [*order, *[0] * dut.LATENCY]:
                ctx.set(dut.expert, e)
                seen.append((await clock(ctx, dut.cost))[0])
            want = saturate(costs + np.where(resident, 0, misses))
            assert seen[dut.LATENCY :] == want[order].tolist(), batch

    simulate(dut, bench)


@pytest.mark.parametrize("max_k", [1, 2, 3, 4])
def test_admission(max_k: int) -> None:
    """Random registers, tables and candidates as the model admits them: ties, weights of 0, saturated sums,
    everything removed, nothing removed, fewer candidates than places."""
    rng = np.random.default_rng(max_k)
    dut = Admission(config(max_top_k=max_k))
    seen = np.zeros(6, int)

    async def bench(ctx: Any) -> None:
        for trial in range(250):
            k = int(rng.integers(1, max_k + 1))
            experts = rng.permutation(12)[:k]
            weights = np.sort(rng.integers(0, 1 << int(rng.integers(1, 24)), k))[::-1].copy()
            size = float(rng.choice([0.3, 3.0, 100.0]))
            bias, cost = random_q(rng, size, 12), random_q(rng, size, 12)
            if trial % 5 == 0:  # ties
                weights[:], bias[:] = weights[0], bias[0]
            if trial % 7 == 0:
                bias[:] = rng.choice([Q_MIN, Q_MAX], 12)
            d = random_q(rng, size)
            open_gate = trial % 6 == 0
            gate = Gate(
                tau=tuple(np.sort(random_q(rng, size, k)).tolist()),
                phi=Q_MIN if open_gate else random_q(rng, size, mean=-2),
                psi=Q_MIN if open_gate else random_q(rng, size, mean=-2),
                density=random_q(rng, size),
                lam=random_q(rng, size),
                cap=int(rng.choice([0, 1, 2, k, 255])),
                domain_bias=bias[None],
                cost=cost,
                miss=np.zeros(12, np.int64),
            )
            want = admit(
                gate, experts=experts[None], weights=weights[None], density_row=np.array([d]),
                domain=np.zeros(1, np.int64), h=np.zeros(1, np.int64), side=SideBand.empty(1),
                resident=np.ones(12, bool),
            )  # fmt: skip
            assert want.density[0] == d
            ctx.set(
                dut.i,
                {
                    "count": k,
                    "expert": [*experts.tolist(), *rng.integers(0, 12, max_k - k).tolist()],
                    "weight": [*weights.tolist(), *rng.integers(0, 1 << 23, max_k - k).tolist()],
                },
            )
            ctx.set(dut.density, d)
            ctx.set(dut.allowed, int((d >= np.array(gate.tau)).sum()))
            for name in ("phi", "psi", "lam", "cap"):
                ctx.set(getattr(dut, name), getattr(gate, name))
            ctx.set(dut.density_weight, gate.density)
            for _ in range(int(rng.integers(3))):
                await clock(ctx)
            ctx.set(dut.start, 1)
            done, cycles = 0, 0
            lines: list[int] = [0] * (max(Domain.LATENCY, Cost.LATENCY) + 1)
            while not done:
                # The tables answer as the gate's do.
                lines = [ctx.get(dut.expert), *lines[:-1]]
                done, _ = await clock(ctx, dut.done, dut.expert)
                ctx.set(dut.bias, int(bias[lines[Domain.LATENCY - 1]]))
                ctx.set(dut.cost, int(cost[lines[Cost.LATENCY - 1]]))
                ctx.set(dut.start, 0)
                cycles += 1
                assert cycles <= 2 * k + 12
            o = ctx.get(dut.o)
            kept = want.kept[0]
            assert o.count == kept.sum(), (trial, gate)
            got = [(o.expert[j], o.weight[j]) for j in range(o.count)]
            assert got == list(zip(experts[kept].tolist(), weights[kept].tolist(), strict=True))
            removed = ctx.get(dut.removed)
            counts = [int((want.removed == level).sum()) for level in range(1, 5)]
            assert [removed[level] for level in range(4)] == counts
            seen[:4] += counts
            seen[4] += kept.all()
            seen[5] += not kept.any()

    simulate(dut, bench)
    assert (seen > 5).all()


def test_contexts() -> None:
    """Every expert's entry and the base expert's behind them, written in any order; fields as packed."""
    rng = np.random.default_rng(6)
    cfg = config(max_experts=12)
    baked = [int.from_bytes(rng.bytes(16), "little") for _ in range(13)]
    dut = ContextTable(cfg, baked)

    async def bench(ctx: Any) -> None:
        entries = list(baked)
        for step in range(80):
            write = int(rng.integers(13)) if step > 20 else None
            if write is not None:
                entries[write] = int.from_bytes(rng.bytes(16), "little")
                ctx.set(dut.write_addr, write)
                ctx.set(dut.write_data, entries[write])
            ctx.set(dut.write_en, write is not None)
            await clock(ctx)
            ctx.set(dut.write_en, 0)
            e = int(rng.integers(13))
            ctx.set(dut.read_addr, e)
            await clock(ctx)
            context, value = ctx.get(dut.context), entries[e]
            for i, place in enumerate((context.gate_up, context.down)):
                limbs = value >> 64 * i
                assert (place.word, place.format, place.split, place.scale) == (
                    limbs & 0xFFFFFF, limbs >> 24 & 0xF, limbs >> 28 & 0xF, limbs >> 32 & 0xFFFFFFFF,
                )  # fmt: skip

    simulate(dut, bench)
    assert CONTEXT.size == 128
