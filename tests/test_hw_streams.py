"""Skid buffer and serialiser: everything arrives, in order, at full speed and at any pace."""

from typing import Any

import numpy as np
import pytest
from amaranth.lib import data
from amaranth_bench import PACES, Sink, Source, clock, raw, simulate, transfer

from hw.pe.serialiser import Serialiser
from hw.skid import Skid


def test_skid() -> None:
    rng = np.random.default_rng(1)
    dut = Skid(data.StructLayout({"item": 8}))
    items = rng.integers(0, 256, 200).tolist()

    async def bench(ctx: Any) -> None:
        for offer, accept in PACES:
            sink = Sink(dut.o, len(items), accept)
            await transfer(ctx, rng, [Source(dut.i, items, offer)], [sink])
            assert [p.item for p in sink.got] == items
            if offer == accept == 1:
                assert sink.cycles == [1 + i for i in range(len(items))]
        # Room for two, whatever comes after.
        ctx.set(dut.o.ready, 0)
        ctx.set(dut.i.valid, 1)
        assert [(await clock(ctx, dut.i.ready))[0] for _ in range(4)] == [1, 1, 0, 0]

    simulate(dut, bench)


@pytest.mark.parametrize("lanes", [2, 4])
def test_serialiser(lanes: int) -> None:
    rng = np.random.default_rng(lanes)
    dut = Serialiser(8, lanes, user=3)
    beats, want = [], []
    for _ in range(100):
        count, last, user = int(rng.integers(1, lanes + 1)), int(rng.integers(2)), int(rng.integers(8))
        items = rng.integers(0, 256, lanes).tolist()
        beats.append(raw(dut.i, items=items, count=count, last=last, user=user))
        want += [(item, int(last and i == count - 1), user) for i, item in enumerate(items[:count])]

    async def bench(ctx: Any) -> None:
        for offer, accept in PACES:
            sink = Sink(dut.o, len(want), accept)
            await transfer(ctx, rng, [Source(dut.i, beats, offer)], [sink])
            assert [(p.item, p.last, p.user) for p in sink.got] == want
            if offer == accept == 1:
                assert sink.cycles == [1 + i for i in range(len(want))]

    simulate(dut, bench)
