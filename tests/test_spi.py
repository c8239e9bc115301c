# amaranth: UnusedElaboratable=no
"""SPI: the peripheral pin by pin, and the byte link through it, bit errors included."""

import random

import pytest
from amaranth.sim import Simulator
from link_bench import CAPACITY, link_verilog
from test_link import talk

from driver.link import Link
from driver.spi_pipe import SpiPipe
from hw.host.frames import FLAG
from hw.host.spi import LEAST_DIVISOR, SpiPort
from sim.build import build_spi
from sim.spi_line import SpiLine


async def transfer(ctx, port, data, bits=None, half=4):
    """A host in mode 0; ``bits``: stop after so many."""
    came, left = [], 8 * len(data) if bits is None else bits
    ctx.set(port.cs_n, 0)
    await ctx.tick().repeat(LEAST_DIVISOR)
    for byte in data:
        value = 0
        for i in reversed(range(8)):
            if not left:
                break
            left -= 1
            ctx.set(port.copi, byte >> i & 1)
            await ctx.tick().repeat(half)
            value = value << 1 | ctx.get(port.cipo)
            ctx.set(port.sck, 1)
            await ctx.tick().repeat(half)
            ctx.set(port.sck, 0)
        came.append(value)
    await ctx.tick().repeat(LEAST_DIVISOR)
    ctx.set(port.cs_n, 1)
    await ctx.tick().repeat(LEAST_DIVISOR)
    return came


def simulate(testbench, offered=(), ready=True):
    """Run ``testbench(ctx, port)``; returns the bytes out of ``o``, errors, how many of ``offered`` went."""
    port = SpiPort()
    got, counts = [], {"errors": 0, "taken": 0}

    async def watch(ctx):
        ctx.set(port.o.ready, ready)
        left = list(offered)
        while True:
            ctx.set(port.i.valid, bool(left))
            ctx.set(port.i.payload, left[0] if left else 0)
            _, _, valid, byte, error, take = await ctx.tick().sample(
                port.o.valid, port.o.payload, port.error, port.i.ready
            )
            if valid and ready:
                got.append(byte)
            counts["errors"] += error
            if take and left:
                left.pop(0)
                counts["taken"] += 1

    async def host(ctx):
        await testbench(ctx, port)

    simulator = Simulator(port)
    simulator.add_clock(1e-6)
    simulator.add_testbench(watch, background=True)
    simulator.add_testbench(host)
    simulator.run()
    return got, counts["errors"], counts["taken"]


@pytest.mark.parametrize("half", [4, 5, 9])
def test_bytes_both_ways(half):
    data = [0x01, 0x80, 0x55, 0xAA, FLAG, 0x00, 0xFF, 0xC3]
    answer = [0x12, 0x7D, 0xFE, 0x01]

    async def host(ctx, port):
        assert await transfer(ctx, port, data, half=half) == answer + [FLAG] * 4

    assert simulate(host, answer) == (data, 0, 4)


def test_flags_in_a_row_are_one():
    async def host(ctx, port):
        await transfer(ctx, port, [FLAG] * 5 + [1, FLAG, FLAG])
        await transfer(ctx, port, [FLAG, 2, FLAG])

    assert simulate(host)[0] == [FLAG, 1, FLAG, 2, FLAG]


def test_nothing_is_lost_between_transfers():
    async def host(ctx, port):
        for part in ([0x11, 0x22], [0x33], [0x44, FLAG]):
            assert await transfer(ctx, port, [0] * len(part)) == part

    assert simulate(host, [0x11, 0x22, 0x33, 0x44])[1:] == (0, 4)


def test_a_transfer_that_breaks_off():
    async def host(ctx, port):
        await transfer(ctx, port, [0xFF, 0xFF], bits=11)
        assert await transfer(ctx, port, [0x3C]) == [0x33]  # 0x22 had begun, and is lost

    assert simulate(host, [0x11, 0x22, 0x33]) == ([0xFF, 0x3C], 0, 3)


def test_overrun_is_told():
    async def host(ctx, port):
        await transfer(ctx, port, [1, 2, FLAG, FLAG])

    assert simulate(host, ready=False)[1] == 2  # the second flag would not have been passed on


@pytest.mark.sim
@pytest.mark.parametrize(
    ("noise", "frames"), [(0.0, 500), (5e-4, 1000), pytest.param(2e-4, 10_000, marks=pytest.mark.slow)]
)
def test_nothing_is_lost(noise, frames):
    line = SpiLine(
        build_spi(link_verilog(spi=True)), divisor=LEAST_DIVISOR, clock_mhz=1.0, noise=noise, seed=1
    )
    link = Link(SpiPipe(line), timeout=2e-2)
    assert link.capacity == CAPACITY
    assert talk(link, frames, random.Random(12)) >= frames
    assert link.retries == 0 if noise == 0 else link.retries > 100 * frames * noise
    link.close()


def test_noise_is_a_probability():
    with pytest.raises(ValueError, match="below 1"):
        SpiLine(None, divisor=8, clock_mhz=1.0, noise=1.0)
