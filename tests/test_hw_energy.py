"""The governor in hardware equals its model, token by token, over random budgets and energies."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from amaranth_bench import clock, simulate

from hw.energy.governor import Governor
from sw_model.energy import governor as model
from sw_model.energy.governor import ENERGY_BITS, LEAST_BUDGET, MODES


def tokens(rng: np.random.Generator, budget: int, kind: int) -> Any:
    """Energies around the budget: mild, wild, far over it, far under, and now and then an extreme."""
    mean = budget * (1.0, 1.0, 1.4, 0.6)[kind]
    spread = budget * (0.15, 0.9, 0.3, 0.3)[kind]
    while True:
        energy = int(np.clip(rng.normal(mean, spread), 0, (1 << ENERGY_BITS) - 1))
        yield (
            int(rng.choice([0, budget, 9 * budget, (1 << ENERGY_BITS) - 1]))
            if rng.random() < 0.02
            else energy
        )


@pytest.mark.parametrize("seed", range(4))
def test_governor_equals_its_model(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dut = Governor()
    seen = set()

    async def bench(ctx: Any) -> None:
        for trial in range(24):
            budget = int(2 ** rng.uniform(12, 24)) if trial > 1 else (LEAST_BUDGET, (1 << 24) - 1)[trial]
            r = model.registers(budget, last_mode=int(rng.integers(0, MODES)))
            r = replace(r, lambda_max=int(rng.choice([2048, 700, 1])))
            s = model.start(r)
            for f in fields(r):
                ctx.set(getattr(dut, f.name), int(getattr(r, f.name)))
            ctx.set(dut.start, 1)
            await clock(ctx)
            ctx.set(dut.start, 0)
            energies = tokens(rng, budget, trial % 4)
            for _ in range(40):
                energy = next(energies)
                ctx.set(dut.energy, energy)
                ctx.set(dut.done, 1)
                await clock(ctx)
                ctx.set(dut.done, 0)
                ctx.set(dut.energy, int(rng.integers(1 << ENERGY_BITS)))
                for _ in range(dut.LATENCY - 1 + int(rng.integers(3))):
                    await clock(ctx)
                s = model.step(s, r, np.asarray(energy))
                got = tuple(ctx.get(getattr(dut, n)) for n in ("credit", "lam", "cap", "mode", "high"))
                want = tuple(int(getattr(s, n)) for n in ("credit", "lam", "cap", "mode", "later"))
                assert got == want, (trial, budget, energy)
                seen.add((want[2], want[3], int(s.turned)))
        assert {cap for cap, *_ in seen} == {0, 1, 255} and {mode for _, mode, _ in seen} == set(range(MODES))

    simulate(dut, bench)


def test_start_drops_a_token_on_its_way() -> None:
    dut = Governor()
    r = model.registers(5000)

    async def bench(ctx: Any) -> None:
        for f in fields(r):
            ctx.set(getattr(dut, f.name), int(getattr(r, f.name)))
        for late in range(dut.LATENCY + 2):
            ctx.set(dut.energy, 20_000)
            ctx.set(dut.done, 1)
            await clock(ctx)
            ctx.set(dut.done, 0)
            for _ in range(late):
                await clock(ctx)
            ctx.set(dut.start, 1)
            await clock(ctx)
            ctx.set(dut.start, 0)
            for _ in range(dut.LATENCY + 2):
                await clock(ctx)
            assert [ctx.get(p) for p in (dut.credit, dut.lam, dut.cap, dut.mode, dut.high)] == [
                0,
                0,
                255,
                0,
                0,
            ]

    simulate(dut, bench)
