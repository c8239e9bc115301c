"""Benches in Amaranth's own simulator: streams at a seeded random pace, checked for the rules of transfer."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from amaranth.hdl import Value
from amaranth.sim import Simulator

#: Share of cycles in which a source offers, and in which a sink accepts: free running, each slow, both slow.
PACES = ((1.0, 1.0), (0.3, 1.0), (1.0, 0.3), (0.6, 0.6))


def simulate(
    dut: Any,
    bench: Callable[[Any], Awaitable[None]],
    *others: Callable[[Any], Awaitable[None]],
    **clocks: float,
) -> None:
    """Run ``bench(ctx)`` on ``dut`` until it returns, ``others`` beside it; ``clocks``: periods, in cycles,
    of further domains."""
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    for domain, period in clocks.items():
        sim.add_clock(period * 1e-6, domain=domain, phase=0.17e-6)
    sim.add_testbench(bench)
    for other in others:
        sim.add_testbench(other, background=True)
    sim.run()


async def clock(ctx: Any, *signals: Any) -> tuple:
    """One cycle; the values that ``signals`` have at its end, before the edge moves them."""
    return (await ctx.tick().sample(*signals))[2:]


def raw(stream: Any, **fields: Any) -> int:
    """A payload of ``stream`` as an integer, for :class:`Source`."""
    return stream.payload.shape().const(fields).as_bits()


@dataclass
class Source:
    """Offers ``items`` (integers, see :func:`raw`) on ``stream``; once offered, an item stays until taken."""

    stream: Any
    items: Sequence[int]
    rate: float = 1.0
    sent: int = 0
    offered: bool = False


@dataclass
class Sink:
    """Takes ``count`` items from ``stream``; checks that what is offered stays until it is taken.

    At ``rate`` 1 it is always ready; below, it waits for an item before it is, as the rules of streams allow.
    """

    stream: Any
    count: int
    rate: float = 1.0
    got: list[Any] = field(default_factory=list)
    cycles: list[int] = field(default_factory=list)
    held: int | None = None


async def transfer(
    ctx: Any,
    rng: np.random.Generator,
    sources: Iterable[Source],
    sinks: Iterable[Sink],
    *,
    watch: Sequence[Any] = (),
    each: Callable[..., None] | None = None,
    limit: int = 20000,
) -> int:
    """Cycle until every source is empty and every sink has its count; returns the cycles it took.

    ``each(*watch values)`` is called every cycle. A sink that gets more than its count fails the test, as far
    as the surplus comes before the others are done.
    """
    sources, sinks = list(sources), list(sinks)
    probes: list[Any] = [s.stream.ready for s in sources]
    for sink in sinks:
        probes += [sink.stream.valid, Value.cast(sink.stream.payload)]
    for cycle in range(limit):
        if all(s.sent == len(s.items) for s in sources) and all(len(s.got) >= s.count for s in sinks):
            for source in sources:
                ctx.set(source.stream.valid, 0)
            for sink in sinks:
                assert len(sink.got) == sink.count, "more items than expected"
                ctx.set(sink.stream.ready, 0)
            return cycle
        for s in sources:
            if not s.offered and s.sent < len(s.items) and rng.random() < s.rate:
                s.offered = True
                ctx.set(Value.cast(s.stream.payload), s.items[s.sent])
            ctx.set(s.stream.valid, s.offered)
        ready = []
        for s in sinks:
            before = ctx.get(s.stream.valid)
            ready.append(bool(s.rate == 1 or (before and rng.random() < s.rate)))
            ctx.set(s.stream.ready, ready[-1])
            assert ctx.get(s.stream.valid) == before, "valid depends on ready"
        values = await clock(ctx, *probes, *watch)
        for s, taken in zip(sources, values, strict=False):
            if s.offered and taken:
                s.offered, s.sent = False, s.sent + 1
        at = len(sources)
        for s, accept in zip(sinks, ready, strict=True):
            valid, payload = values[at : at + 2]
            at += 2
            if s.held is not None:
                assert valid and payload == s.held, "an offered item was withdrawn or changed"
            s.held = payload if valid and not accept else None
            if valid and accept:
                s.got.append(s.stream.payload.shape().from_bits(payload))
                s.cycles.append(cycle)
        if each is not None:
            each(*values[at:])
    raise AssertionError(f"no end after {limit} cycles")
