"""Paging against a model of its own: least recently used, requests, addresses, any pace of the host."""

from collections import OrderedDict, deque
from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator
from amaranth_bench import clock

from hw.pe.paging import Paging
from sw_model.config import HardwareConfig
from sw_model.pages import PageTable

EXPERTS, TOP_K, DEPTH = 12, 3, 8
CONFIG = HardwareConfig(
    name="paging", tiles=2, words=4096, scales=4096, max_hidden=32, max_intermediate=32, max_experts=EXPERTS,
    max_top_k=TOP_K, page_slots=DEPTH,
)  # fmt: skip


class Lru:
    """What a textbook has: an ordered dictionary, the least recently used first."""

    def __init__(self, slots: int) -> None:
        self.where: OrderedDict[Any, int] = OrderedDict((f"free{s}", s) for s in reversed(range(slots)))

    def token(self, experts: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
        """Experts found, in the order of use, and what has to be loaded: (expert, slot)."""
        found = [e for e in experts if e in self.where]
        for e in found:
            self.where.move_to_end(e)
        loads = []
        for e in experts:
            if e not in found:
                oldest = next(k for k in self.where if k not in experts)
                self.where[e] = self.where.pop(oldest)
                loads.append((e, self.where[e]))
        return found, loads


def tokens(rng: np.random.Generator, count: int) -> list[list[int]]:
    """Some experts much oftener than others, now and then none."""
    share = rng.dirichlet(np.full(EXPERTS, 0.5))
    share = (share + 0.01) / (share + 0.01).sum()
    return [
        rng.choice(EXPERTS, int(rng.integers(TOP_K + 1)), replace=False, p=share).tolist()
        for _ in range(count)
    ]


@pytest.mark.parametrize("slots", [TOP_K, 4, 7, DEPTH])
def test_the_table_is_lru(slots: int) -> None:
    """The specification, against the textbook."""
    table, lru = PageTable(slots), Lru(slots)
    for experts in tokens(np.random.default_rng(slots), 2000):
        assert table.use(experts) == lru.token(experts)[1]
        assert table.experts == {e for e in lru.where if not isinstance(e, str)}
        assert table.mask(EXPERTS).tolist() == [e in table.experts for e in range(EXPERTS)]


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("slots", [TOP_K, 5, DEPTH])
def test_hardware_is_lru(slots: int, in_flight: int) -> None:
    """Routes come while up to one token before still holds its pages; pages come when it pleases the host."""
    rng = np.random.default_rng(10 * slots + in_flight)
    dut = Paging(CONFIG)
    lru = Lru(slots)
    size, base = (17, 36), (1000, 200)
    asked: deque[tuple[int, int]] = deque()  # taken by the host, not yet loaded
    requests: list[tuple[int, int]] = []
    loaded: set[int] = set()
    holds: deque[list[int]] = deque()  # tokens whose experts are in use
    stream = tokens(rng, 150)

    async def host(ctx: Any) -> None:
        """Takes requests, and loads the pages of some of them out of order."""
        while True:
            ready = bool(rng.random() < 0.4)
            ctx.set(dut.request.ready, ready)
            valid, request = await clock(ctx, dut.request.valid, dut.request.payload)
            if ready and valid:
                asked.append((request.expert, request.slot))
                requests.append((request.expert, request.slot))
            ctx.set(dut.request.ready, 0)
            if asked and rng.random() < 0.1:
                expert, slot = asked[which := int(rng.integers(len(asked)))]
                del asked[which]
                ctx.set(dut.page, expert)
                ctx.set(dut.locate, 1)
                await clock(ctx)
                ctx.set(dut.locate, 0)
                while not (await clock(ctx, dut.located))[0]:
                    pass
                place = ctx.get(dut.location)
                assert place.wanted
                assert (place.word, place.scale) == (base[0] + slot * size[0], base[1] + slot * size[1])
                for _ in range(int(rng.integers(30))):
                    await clock(ctx)
                ctx.set(dut.page_done, 1)
                await clock(ctx)
                ctx.set(dut.page_done, 0)
                loaded.add(expert)

    async def release(ctx: Any) -> None:
        """Tokens end, in order, once all of their experts were there."""
        while True:
            await clock(ctx)
            if holds and set(holds[0]) <= loaded and rng.random() < 0.1:
                holds.popleft()
                ctx.set(dut.release, 1)
                await clock(ctx)
                ctx.set(dut.release, 0)

    async def bench(ctx: Any) -> None:
        for name, value in zip(("slot_words", "slot_scales"), size, strict=True):
            ctx.set(getattr(dut, name), value)
        for name, value in zip(("base_words", "base_scales"), base, strict=True):
            ctx.set(getattr(dut, name), value)
        ctx.set(dut.slots, slots)
        events = [0, 0]

        async def cycle(*signals: Any) -> tuple:
            hit, miss, *values = await clock(ctx, dut.hit, dut.miss, *signals)
            events[0] += hit
            events[1] += miss
            return tuple(values)

        total = 0
        for experts in stream:
            while len(holds) >= in_flight:
                await cycle()
            found, loads = lru.token(experts)
            evicted = {e for e in loaded if e not in lru.where}
            ctx.set(dut.i.count, len(experts))
            weights = {e: int(rng.integers(1 << 16)) for e in experts}
            for j, e in enumerate(experts):
                ctx.set(dut.i.expert[j], e)
                ctx.set(dut.i.weight[j], weights[e])
            before, known = list(events), set(loaded)
            ctx.set(dut.i_done, 1)
            while not (await cycle(dut.o_done))[0]:
                pass
            loaded.difference_update(evicted)
            holds.append(experts)
            assert [events[0] - before[0], events[1] - before[1]] == [len(found), len(loads)]
            order = found + [e for e, _ in loads]
            while True:
                o, here = await cycle(dut.o, dut.here)
                assert o.count == len(experts)
                assert [o.expert[j] for j in range(o.count)] == order
                assert [o.weight[j] for j in range(o.count)] == [weights[e] for e in order]
                ready = [here >> j & 1 for j in range(o.count)]
                assert all(e in loaded or not r for e, r in zip(order, ready, strict=True))
                assert all(r for e, r in zip(order, ready, strict=True) if e in found and e in known)
                if all(ready) and rng.random() < 0.5:
                    break
            ctx.set(dut.ack, 1)
            ctx.set(dut.i_done, 0)
            await cycle()
            ctx.set(dut.ack, 0)
            total += len(loads)
            assert len(requests) == total and requests[total - len(loads) :] == loads
        assert total > 20 and events == [sum(map(len, stream)) - total, total]

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(host, background=True)
    simulator.add_testbench(release, background=True)
    simulator.add_testbench(bench)
    simulator.run()


def test_without_slots_the_route_passes() -> None:
    dut = Paging(CONFIG)

    async def bench(ctx: Any) -> None:
        ctx.set(dut.i.count, 2)
        ctx.set(dut.i.expert[1], 7)
        for done in (0, 1, 0):
            ctx.set(dut.i_done, done)
            assert ctx.get(dut.o_done) == done
            assert ctx.get(dut.here) == (1 << TOP_K) - 1
            assert ctx.get(dut.o) == ctx.get(dut.i)
            await clock(ctx)
        assert not ctx.get(dut.request.valid)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def test_flush_forgets_all_pages() -> None:
    dut = Paging(CONFIG)

    async def token(ctx: Any, expert: int) -> int:
        """Misses of a token with one expert, loaded at once."""
        ctx.set(dut.i.count, 1)
        ctx.set(dut.i.expert[0], expert)
        ctx.set(dut.i_done, 1)
        misses = done = 0
        while not done:
            miss, done = await clock(ctx, dut.miss, dut.o_done)
            misses += miss
        ctx.set(dut.page, expert)
        for signal in (dut.page_done, dut.release):
            ctx.set(signal, 1)
            await clock(ctx)
            ctx.set(signal, 0)
        ctx.set(dut.ack, 1)
        ctx.set(dut.i_done, 0)
        await clock(ctx)
        ctx.set(dut.ack, 0)
        return misses

    async def bench(ctx: Any) -> None:
        ctx.set(dut.slots, 4)
        ctx.set(dut.request.ready, 1)
        for flush in range(3):
            assert [await token(ctx, e) for e in (0, 5, 0, 5, 3)] == [1, 1, 0, 0, 1], flush
            ctx.set(dut.flush, 1)
            await clock(ctx)
            ctx.set(dut.flush, 0)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
