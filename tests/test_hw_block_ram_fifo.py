"""The FIFO whose items lie in block RAM: all arrive, in order, whatever the clocks and the pace."""

from typing import Any

import numpy as np
import pytest
from amaranth_bench import clock, simulate

from hw.pe.block_ram_fifo import BlockRamFIFO

DEPTH = 8


@pytest.mark.parametrize("period", [0.53, 1.9])
@pytest.mark.parametrize(("offer", "accept"), [(1.0, 1.0), (0.2, 1.0), (1.0, 0.2), (0.5, 0.5)])
def test_order(offer: float, accept: float, period: float) -> None:
    rng = np.random.default_rng(1)
    dut = BlockRamFIFO(width=9, depth=DEPTH, r_domain="out", w_domain="sync")
    items = rng.integers(0, 1 << 9, 60).tolist()
    got: list[int] = []
    taken: list[int] = []

    async def write(ctx: Any) -> None:
        for item in items:
            while rng.random() >= offer:
                await clock(ctx)
            ctx.set(dut.w_data, item)
            ctx.set(dut.w_en, 1)
            while not (await clock(ctx, dut.w_rdy))[0]:
                assert ctx.get(dut.w_level) == DEPTH
            ctx.set(dut.w_en, 0)
            ctx.set(dut.w_data, item ^ 1)
        while len(got) < len(items):
            await clock(ctx)

    async def read(ctx: Any) -> None:
        cycle, held = 0, None
        while True:
            ready = rng.random() < accept
            ctx.set(dut.r_en, ready)
            _, _, valid, data = await ctx.tick("out").sample(dut.r_rdy, dut.r_data)
            assert held is None or (valid and data == held)
            held = data if valid and not ready else None
            if valid and ready:
                got.append(data)
                taken.append(cycle)
            cycle += 1

    simulate(dut, write, read, out=period)
    assert got == items
    if offer == accept == 1 and period > 1:  # the reader is the slower one, and takes all that it can
        assert np.diff(taken).tolist() == [2] * (len(items) - 1)


def test_holds_what_it_says() -> None:
    """Nobody reads: as many items as it is deep, and the one on its way out."""
    dut = BlockRamFIFO(width=4, depth=DEPTH, r_domain="out", w_domain="sync")

    async def bench(ctx: Any) -> None:
        ctx.set(dut.w_en, 1)
        accepted = sum([(await clock(ctx, dut.w_rdy))[0] for _ in range(40)])
        assert accepted == DEPTH + 1 and ctx.get(dut.w_level) == DEPTH

    simulate(dut, bench, out=0.7)
