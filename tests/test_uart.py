# amaranth: UnusedElaboratable=no
"""The serial line: loopback, a sender off its rate, noise, and overrun."""

import pytest
from amaranth.hdl import Module
from amaranth.sim import Simulator

from hw.host.uart import UartReceiver, UartTransmitter

BYTES = [0x00, 0xFF, 0x55, 0xAA, 0x01, 0x80, *b"expert"]


def simulate(module, *testbenches):
    simulator = Simulator(module)
    simulator.add_clock(1e-6)
    for testbench in testbenches[:-1]:
        simulator.add_testbench(testbench, background=True)
    simulator.add_testbench(testbenches[-1])
    simulator.run()


async def ticks(ctx, count):
    """Plain ticks: a background testbench may be left in the middle of them when the simulation ends."""
    for _ in range(count):
        await ctx.tick()


async def put(ctx, stream, payloads):
    for payload in payloads:
        ctx.set(stream.payload, payload)
        ctx.set(stream.valid, 1)
        await ctx.tick().until(stream.ready)
    ctx.set(stream.valid, 0)


async def get(ctx, stream, count):
    ctx.set(stream.ready, 1)
    found = []
    for _ in range(count):
        (payload,) = await ctx.tick().sample(stream.payload).until(stream.valid)
        found.append(payload)
    ctx.set(stream.ready, 0)
    return found


async def send_bits(ctx, line, byte, period, stop=1):
    """``period`` may be a fraction of a cycle more or less than the receiver's."""
    at = 0.0
    for bit in (0, *((byte >> i) & 1 for i in range(8)), stop):
        ctx.set(line, bit)
        at, before = at + period, at
        await ticks(ctx, int(at) - int(before))
    ctx.set(line, 1)


@pytest.mark.parametrize("divisor", [4, 5, 16])
def test_loopback(divisor):
    m = Module()
    m.submodules.tx = tx = UartTransmitter(divisor)
    m.submodules.rx = rx = UartReceiver(divisor)
    m.d.comb += rx.rx.eq(tx.tx)
    found = []

    async def source(ctx):
        await put(ctx, tx.i, BYTES)

    async def sink(ctx):
        found.extend(await get(ctx, rx.o, len(BYTES)))

    simulate(m, source, sink)
    assert found == BYTES


@pytest.mark.parametrize("error", [-0.04, 0.04])
def test_a_sender_off_its_rate(error):
    rx = UartReceiver(25)
    found = []

    async def line(ctx):
        for byte in BYTES:
            await send_bits(ctx, rx.rx, byte, 25 * (1 + error))

    async def sink(ctx):
        found.extend(await get(ctx, rx.o, len(BYTES)))

    simulate(rx, line, sink)
    assert found == BYTES


def test_noise_overrun_and_break():
    rx = UartReceiver(8)
    errors = []

    async def watch(ctx):
        async for *_, error in ctx.tick().sample(rx.error):
            errors.append(error)

    async def line(ctx):
        ctx.set(rx.rx, 0)  # a glitch, shorter than half a bit
        await ticks(ctx, 2)
        ctx.set(rx.rx, 1)
        await ticks(ctx, 20)
        assert not sum(errors) and not ctx.get(rx.o.valid)
        await send_bits(ctx, rx.rx, 0x41, 8)
        await send_bits(ctx, rx.rx, 0x42, 8)  # nobody took the first
        await ticks(ctx, 8)
        assert sum(errors) == 1
        assert await get(ctx, rx.o, 1) == [0x41]
        await send_bits(ctx, rx.rx, 0x43, 8, stop=0)
        ctx.set(rx.rx, 0)  # and goes on: a break
        await ticks(ctx, 300)
        ctx.set(rx.rx, 1)
        await ticks(ctx, 8)
        assert sum(errors) == 2 and not ctx.get(rx.o.valid)
        await send_bits(ctx, rx.rx, 0x44, 8)
        await ticks(ctx, 8)
        assert await get(ctx, rx.o, 1) == [0x44]

    simulate(rx, watch, line)


def test_the_line_is_idle_at_one():
    tx = UartTransmitter(4)

    async def bench(ctx):
        for _ in range(50):
            assert ctx.get(tx.tx) == 1
            await ctx.tick()

    simulate(tx, bench)


@pytest.mark.parametrize("part", [UartReceiver, UartTransmitter])
def test_divisor(part):
    with pytest.raises(ValueError, match="divisor"):
        part(3)
