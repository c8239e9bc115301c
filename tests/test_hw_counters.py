"""Every event is counted once, whenever it comes; what the host reads is of one cycle."""

from typing import Any

import numpy as np
import pytest
from amaranth_bench import clock, simulate

from hw.energy.counters import Counters


@pytest.mark.parametrize("most", [[1, 1, 1], [1, 5, 300, 2, 1, 9, 1]], ids=len)
def test_counters_equal_sums(most: list[int]) -> None:
    """Random events, clears and holds; events go on while the host reads."""
    rng = np.random.default_rng(len(most))
    dut = Counters({f"N{i}": n for i, n in enumerate(most)})
    sums = np.zeros(len(most), dtype=np.int64)
    live = True
    behind = 2 * len(most) + 3

    async def step(ctx: Any, busy: float) -> None:
        events = rng.integers(0, most, endpoint=True) * (rng.random(len(most)) < busy)
        for name, n in zip(dut._most, events.tolist(), strict=True):
            ctx.set(dut.events[name], n)
        clear = bool(rng.random() < 0.005) and live
        ctx.set(dut.clear, clear)
        await clock(ctx)
        sums[:] = 0 if clear else sums + events

    async def read(ctx: Any, busy: float) -> np.ndarray:
        found = []
        for i in range(len(most)):
            ctx.set(dut.addr, i)
            ctx.set(dut.en, 1)
            await step(ctx, busy)
            ctx.set(dut.en, 0)
            ctx.set(dut.addr, 0)
            found.append(ctx.get(dut.value))
            await step(ctx, busy)
        return np.array(found)

    async def bench(ctx: Any) -> None:
        nonlocal live
        for trial in range(60):
            busy = (1.0, 0.1, 0.5)[trial % 3]
            for _ in range(int(rng.integers(1, 80))):
                await step(ctx, busy)
            live = False  # nothing is cleared while the host looks
            ctx.set(dut.hold, 1)
            least = sums.copy()
            for _ in range(behind):
                if ctx.get(dut.held):
                    break
                before = sums.copy()
                await step(ctx, busy)
            assert ctx.get(dut.held)
            found = await read(ctx, busy)
            assert (least <= found).all() and (found <= before).all()
            assert (await read(ctx, busy) == found).all()
            ctx.set(dut.hold, 0)
            for _ in range(behind):  # without hold they follow
                await step(ctx, 0.0)
            assert (await read(ctx, 0.0) == sums).all()
            live = True

    simulate(dut, bench)
