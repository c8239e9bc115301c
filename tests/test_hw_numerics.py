"""Numeric components against the model's functions, streams at any pace."""

from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import data
from amaranth_bench import PACES, Sink, Source, clock, raw, simulate, transfer

from hw.numerics.fixed import ToFixed
from hw.numerics.float32 import Float32Pack, unpack
from hw.numerics.log2 import Log2
from hw.numerics.normalise import Normalise
from hw.numerics.sigmoid import Sigmoid
from hw.numerics.table import Table
from sw_model import formats, golden, tables
from sw_model.formats import MAG_BITS, Scaled
from sw_model.gate import log2_fixed
from sw_model.moe import Activation


def wide_integers(rng: np.random.Generator, width: int, n: int) -> list[int]:
    """Signed integers of every length up to ``width`` bits, the extremes and ties of 24 bits among them."""
    values = [0, 1, -1, (1 << (width - 1)) - 1, 1 - (1 << (width - 1))]
    while len(values) < n:
        length = int(rng.integers(1, width))
        value = int.from_bytes(rng.bytes(16), "little") % (1 << length) | 1 << (length - 1)
        if length > 25 and rng.random() < 0.4:  # a tie, or next to one
            low = length - 24
            value = (value >> low << low) + (1 << low >> 1) + int(rng.integers(-1, 2))
        if length > 25 and rng.random() < 0.1:  # rounds up to the next power of two
            value = (1 << length) - 1 - int(rng.integers(4))
        values.append(-value if rng.random() < 0.5 else value)
    return values


@pytest.mark.parametrize("width", [2, 12, 24, 25, 26, 27, 42, 55, 63])
def test_normalise(width: int) -> None:
    rng = np.random.default_rng(width)
    n = 600
    dut = Normalise(width, user=3)
    values, exps = wide_integers(rng, width, n), rng.integers(-600, 600, n).tolist()
    values = [max(-(1 << (width - 1)), min((1 << (width - 1)) - 1, v)) for v in values]
    expected = formats.normalise(np.array(values), np.array(exps))
    items = [
        raw(dut.i, value=v, exp=e, user=i % 8) for i, (v, e) in enumerate(zip(values, exps, strict=True))
    ]

    async def bench(ctx: Any) -> None:
        for part, (offer, accept) in enumerate(PACES):
            chunk = range(part * n // 4, (part + 1) * n // 4)
            sink = Sink(dut.o, len(chunk), accept)
            cycles = await transfer(ctx, rng, [Source(dut.i, [items[i] for i in chunk], offer)], [sink])
            if offer == accept == 1:
                assert sink.cycles[0] == dut.LATENCY and cycles == len(chunk) + dut.LATENCY
            for i, p in zip(chunk, sink.got, strict=True):
                want = (expected.sign[i], expected.top[i], expected.mag[i], i % 8)
                assert (p.number.sign, p.number.top, p.number.mag, p.user) == want, (values[i], exps[i])

    simulate(dut, bench)


@pytest.mark.parametrize("width", [2, 26, 27, 40, 64, 85])
def test_float32_pack(width: int) -> None:
    rng = np.random.default_rng(width)
    n = 1200
    dut = Float32Pack(width)
    values = [max(-(1 << (width - 1)), min((1 << (width - 1)) - 1, v)) for v in wide_integers(rng, width, n)]
    # Aim the leading one at every region: far out, infinity, normal, the edges, subnormal, zero.
    aims = [-900, -151, -150, -149, -140, -127, -126, -125, 0, 126, 127, 128, 900]
    exps = [int(rng.choice(aims)) - abs(v).bit_length() + 1 for v in values]
    mags = [abs(v) for v in values]
    expected = formats.pack_float32(
        np.array([v < 0 for v in values]),
        np.array([m >> 32 for m in mags], dtype=np.int64),
        np.array([m & 0xFFFFFFFF for m in mags], dtype=np.int64),
        np.array(exps),
    ).view(np.uint32)
    assert len(set(expected.tolist())) >= 20
    items = [
        raw(dut.i, value=v, exp=e, last=i % 3 == 0) for i, (v, e) in enumerate(zip(values, exps, strict=True))
    ]

    async def bench(ctx: Any) -> None:
        for part, (offer, accept) in enumerate(PACES):
            chunk = range(part * n // 4, (part + 1) * n // 4)
            sink = Sink(dut.o, len(chunk), accept)
            await transfer(ctx, rng, [Source(dut.i, [items[i] for i in chunk], offer)], [sink])
            if offer == accept == 1:
                assert sink.cycles == list(range(dut.LATENCY, dut.LATENCY + len(chunk)))
            for i, p in zip(chunk, sink.got, strict=True):
                assert (p.bits, p.last) == (expected[i], i % 3 == 0), (values[i], exps[i])

    simulate(dut, bench)


def test_unpack_float32() -> None:
    x = np.array([0, 1, 0x7FFFFF, 0x800000, 0x3F800000, 0x7F7FFFFF, 0x12345678], dtype=np.uint32)
    x = np.concatenate([x, x | 0x80000000])
    expected = formats.unpack_float32(x.view(np.float32))
    m, bits = Module(), Signal(32)
    out = Signal(data.StructLayout({"sign": 1, "top": 11, "mag": 24}))
    m.d.comb += [out[k].eq(v) for k, v in unpack(bits).items()]
    tick = Signal()
    m.d.sync += tick.eq(~tick)

    async def bench(ctx: Any) -> None:
        for i, word in enumerate(x.tolist()):
            ctx.set(bits, word)
            got = ctx.get(out)
            assert (got.sign, got.top, got.mag) == (
                expected.sign[i],
                expected.top[i] & 0x7FF,
                expected.mag[i],
            )

    simulate(m, bench)


async def lookups(ctx: Any, rng: np.random.Generator, dut: Any, arg: Any, args: list) -> list[int]:
    """Results of ``args`` fed one a move, with random standstill in between."""
    out, moves = [], 0
    while len(out) < len(args):
        move = bool(rng.random() < 0.8)
        ctx.set(dut.move, move)
        # While nothing moves the argument must not matter.
        ctx.set(arg, args[moves] if move and moves < len(args) else args[0])
        (y,) = await clock(ctx, dut.y)
        if move:
            if moves >= dut.LATENCY:
                out.append(y)
            moves += 1
    return out


@pytest.mark.parametrize("table", [tables.SIGMOID, tables.EXP2, tables.LOG2], ids=lambda t: t.name)
def test_table(table: tables.LinearTable) -> None:
    rng = np.random.default_rng(5)
    step = 1 << table.frac_bits
    knots = np.arange(0, 1 << table.arg_bits, step)
    args = np.concatenate([knots, knots + step - 1, rng.integers(0, 1 << table.arg_bits, 300)])
    dut = Table(table)

    async def bench(ctx: Any) -> None:
        got = await lookups(ctx, rng, dut, dut.arg, args.tolist())
        assert got == table(args).tolist()

    simulate(dut, bench)


def numbers(rng: np.random.Generator, n: int, low: int, high: int) -> Scaled:
    """Unpacked numbers with exponents low .. high, zeros and the least and largest mantissa among them."""
    mag = rng.integers(1 << 23, 1 << 24, n)
    mag[::7], mag[1::7] = 1 << 23, (1 << 24) - 1
    top = rng.integers(low, high + 1, n)
    mag[2::7], top[2::7] = 0, formats.TOP_MIN
    return Scaled(sign=rng.random(n) < 0.5, top=top, mag=mag)


def as_items(s: Scaled) -> list[dict[str, int]]:
    rows = zip(s.sign.tolist(), s.top.tolist(), s.mag.tolist(), strict=True)
    return [{"sign": int(a), "top": b, "mag": c} for a, b, c in rows]


def joined(*parts: Scaled) -> Scaled:
    return Scaled(**{k: np.concatenate([getattr(p, k) for p in parts]) for k in ("sign", "top", "mag")})


@pytest.mark.parametrize("activation", Activation, ids=lambda a: a.value)
def test_sigmoid(activation: Activation) -> None:
    rng = np.random.default_rng(6)
    x = joined(numbers(rng, 1500, -21, 5), numbers(rng, 200, -600, 600))
    alpha = golden.ALPHA[activation]
    dut = Sigmoid()
    expected = golden.sigmoid(x, alpha).tolist()
    most = max(expected)
    assert {1 << 23, (1 << 24) - most} <= set(expected) and most > (1 << 24) - 4

    async def bench(ctx: Any) -> None:
        ctx.set(dut.alpha, alpha)
        assert await lookups(ctx, rng, dut, dut.x, as_items(x)) == expected

    simulate(dut, bench)


@pytest.mark.parametrize("fraction", [0, 8, 16, 24, 30])
def test_to_fixed(fraction: int) -> None:
    """Every exponent of the range, saturation on both sides, ties of the rounding; moves and standstill."""
    rng = np.random.default_rng(fraction)
    ties = rng.integers(-2 - fraction, 31 - fraction, 200)
    drop = np.clip(MAG_BITS - 1 - fraction - ties, 0, 24)  # bits of the magnitude below the LSB
    mag = rng.integers(1 << 23, 1 << 24, 200) >> drop << drop | (1 << drop) >> 1 | 1 << 23
    tie = Scaled(sign=rng.random(200) < 0.5, top=ties, mag=mag)
    x = joined(numbers(rng, 500, -4 - fraction, 33 - fraction), numbers(rng, 60, -600, 600), tie)
    want = golden.to_fixed(x, fraction).tolist()
    assert {golden.FIXED_MAX, -golden.FIXED_MAX, 0} <= set(want)
    dut = ToFixed(fraction)

    async def bench(ctx: Any) -> None:
        assert await lookups(ctx, rng, dut, dut.x, as_items(x)) == want

    simulate(dut, bench)


@pytest.mark.parametrize(("width", "fraction"), [(23, 16), (28, 24), (25, 0), (8, 3), (40, 24)])
def test_log2(width: int, fraction: int) -> None:
    """Every power of two and its neighbours, random numbers of every length."""
    rng = np.random.default_rng(width)
    powers = [1 << k for k in range(width)]
    values = {v for p in powers for v in (p - 1, p, p + 1)} | set(rng.integers(1, 1 << width, 300).tolist())
    values |= {
        int(v) >> int(k)
        for v, k in zip(rng.integers(1, 1 << width, 300), rng.integers(0, width, 300), strict=True)
    }
    xs = sorted(v for v in values if 0 < v < 1 << width)
    want = log2_fixed(np.array(xs), fraction).tolist()
    exact = np.log2(np.array(xs) / 2.0**fraction) * 256
    assert np.abs(np.array(want) - exact).max() < 1
    dut = Log2(width, fraction)

    async def bench(ctx: Any) -> None:
        got = []
        for x in [*xs, *[1] * dut.LATENCY]:
            ctx.set(dut.x, x)
            got.append((await clock(ctx, dut.y))[0])
        assert got[dut.LATENCY :] == want

    simulate(dut, bench)
