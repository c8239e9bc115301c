"""Clamp, SwiGLU and combine: streams at any pace, against the model and against fractions."""

from fractions import Fraction
from typing import Any

import exact_moe
import numpy as np
import pytest
from amaranth_bench import PACES, Sink, Source, raw, simulate, transfer
from test_formats import log2_floor, power, rounded
from test_hw_numerics import as_items, numbers

from hw.pe.clamp import Clamp
from hw.pe.combine import Combine
from hw.pe.swiglu import SwiGlu
from sw_model import golden
from sw_model.config import HardwareConfig
from sw_model.formats import TOP_MIN, Scaled, normalise, unpack_float32
from sw_model.moe import Activation


def products(gate: Scaled, up: Scaled, alpha: int) -> Scaled:
    """(gate * up) * sigmoid(alpha gate) in fractions, each product rounded to 24 bits."""
    out = []
    for i in range(len(gate.mag)):
        g, u = (exact_moe.value(v.sign[i], v.top[i], v.mag[i]) for v in (gate, up))
        s = round(Fraction(exact_moe.sigmoid(g, Fraction(alpha, 1 << 16)), 1 << 8))
        h = exact_moe.round24(exact_moe.round24(g * u) * Fraction(s, 1 << 16))
        top = log2_floor(abs(h)) if h else TOP_MIN
        out.append((h < 0, top, int(abs(h) / power(top - 23)) if h else 0))
    sign, top, mag = (np.array(part) for part in zip(*out, strict=True))
    return Scaled(sign=sign, top=top, mag=mag)


@pytest.mark.parametrize("enable", [False, True])
@pytest.mark.parametrize("limit", [7.0, 1.5, 63.0, 0.01])
def test_clamp(limit: float, enable: bool) -> None:
    """Gates and ups around the limit, far beyond it, tiny ones and zeros; or all unchanged."""
    rng = np.random.default_rng(5)
    n = 320
    most = unpack_float32(np.array([limit], np.float32))
    gate, up = numbers(rng, n, -30, 12), numbers(rng, n, -30, 12)
    for a in (gate, up):
        a.top[:60] = most.top[0]
        a.mag[:60] = np.clip(most.mag[0] + rng.integers(-1, 2, 60), 1 << 23, (1 << 24) - 1)
        a.top[60:90], a.mag[60:90] = rng.integers(-300, 300, 30), (1 << 24) - 1
    sign, top, mag = gate.sign, gate.top, gate.mag
    limited = golden.clamp(gate, most, both=False)
    shifted = golden.to_fixed(golden.clamp(up, most, both=True), golden.UP_FRACTION) + (
        1 << golden.UP_FRACTION
    )
    moved = normalise(shifted, -golden.UP_FRACTION)
    want_gate, want_up = (limited, moved) if enable else (gate, up)
    assert not enable or (limited.mag != mag).any()
    dut = Clamp(user=3)
    pairs = zip(as_items(Scaled(sign=sign, top=top, mag=mag)), as_items(up), strict=True)
    items = [raw(dut.i, gate=g, up=u, user=i % 8) for i, (g, u) in enumerate(pairs)]
    want = list(zip(as_items(want_gate), as_items(want_up), strict=True))

    async def bench(ctx: Any) -> None:
        ctx.set(dut.enable, enable)
        ctx.set(dut.limit, {"sign": 0, "top": int(most.top[0]), "mag": int(most.mag[0])})
        for part, (offer, accept) in enumerate(PACES):
            chunk = range(part * n // 4, (part + 1) * n // 4)
            sink = Sink(dut.o, len(chunk), accept)
            await transfer(ctx, rng, [Source(dut.i, items[chunk[0] : chunk[-1] + 1], offer)], [sink])
            if offer == accept == 1:
                assert sink.cycles == [enable * dut.LATENCY + i for i in range(len(chunk))]
            for i, p in zip(chunk, sink.got, strict=True):
                got = tuple({"sign": x.sign, "top": x.top, "mag": x.mag} for x in (p.gate, p.up))
                assert got == want[i] and p.user == i % 8, (i, items[i])

    simulate(dut, bench)


@pytest.mark.parametrize("activation", Activation, ids=lambda a: a.value)
def test_swiglu(activation: Activation) -> None:
    """Gates from far below to far above the sigmoid's range, zeros, and carries of both roundings."""
    rng = np.random.default_rng(1)
    n = 480
    gate, up = numbers(rng, n, -15, 5), numbers(rng, n, -280, 280)
    gate.top[::5] = np.where(gate.mag[::5] > 0, rng.integers(-280, 280, len(gate.top[::5])), gate.top[::5])
    order = rng.permutation(n)
    up = Scaled(sign=up.sign[order], top=up.top[order], mag=up.mag[order])
    up.mag[3::7], up.top[3::7] = (1 << 24) - 1, 1
    # Products just below a power of two, which the first rounding carries over.
    gate.mag[4::7] |= 1 << 23
    up.mag[4::7], up.top[4::7], gate.top[4::7] = ((1 << 47) - 1) // gate.mag[4::7], 3, 2
    assert (gate.mag * up.mag > (1 << 47) - (1 << 22)).sum() > 10
    # Products of few bits, many of them ties.
    gate.mag[5::7] = rng.integers(1 << 12, 1 << 13, len(gate.mag[5::7])) << 11
    up.mag[5::7], up.top[5::7] = rng.integers(1 << 12, 1 << 13, len(up.mag[5::7])) << 11, 0
    want = products(gate, up, golden.ALPHA[activation])
    assert (want.mag == 0).sum() > 50 and (want.mag != 0).sum() > 200
    if activation is Activation.SILU:
        whole = golden.activate(gate, up, activation, 7.0)
        assert np.array_equal(whole.mag, want.mag) and np.array_equal(whole.top, want.top)
    dut = SwiGlu(user=3)
    pairs = zip(as_items(gate), as_items(up), strict=True)
    items = [raw(dut.i, gate=g, up=u, user=i % 8) for i, (g, u) in enumerate(pairs)]

    async def bench(ctx: Any) -> None:
        ctx.set(dut.alpha, golden.ALPHA[activation])
        for part, (offer, accept) in enumerate(PACES):
            chunk = range(part * n // 4, (part + 1) * n // 4)
            sink = Sink(dut.o, len(chunk), accept)
            await transfer(ctx, rng, [Source(dut.i, items[chunk[0] : chunk[-1] + 1], offer)], [sink])
            if offer == accept == 1:
                assert sink.cycles == [dut.LATENCY + i for i in range(len(chunk))]
            for i, p in zip(chunk, sink.got, strict=True):
                number = (p.number.top, p.number.mag, p.user)
                assert number == (want.top[i], want.mag[i], i % 8), (i, gate.top[i], up.top[i])
                # A zero has no sign that matters: its code is 0.
                assert p.number.mag == 0 or p.number.sign == want.sign[i]

    simulate(dut, bench)


def combine_config(**overrides: int) -> HardwareConfig:
    shape = {
        "tiles": 8,
        "words": 64,
        "scales": 64,
        "max_hidden": 32,
        "max_intermediate": 32,
        "max_experts": 8,
    }
    return HardwareConfig(name="combine", **{**shape, "max_top_k": 4, **overrides})


def random_acc(rng: np.random.Generator, config: HardwareConfig) -> int:
    kind = rng.random()
    if kind < 0.1:
        return int(rng.choice([-1, 1])) * config.down_bound
    if kind < 0.2:
        return 0
    return int(rng.integers(-config.down_bound, config.down_bound + 1)) >> int(rng.integers(config.acc_bits))


def random_weight(rng: np.random.Generator) -> int:
    return int(rng.choice([0, 1, 1 << 16, (1 << 23) - 1, rng.integers(1 << 16), rng.integers(1 << 23)]))


def check_combine(config: HardwareConfig, shapes: list[tuple[int, int]], paces: tuple, seed: int) -> None:
    """Tokens of (hidden, slots), one after the other without a pause."""
    rng = np.random.default_rng(seed)
    dut = Combine(config)
    down_base = int(rng.integers(1, 200))
    items, want = [], []
    for hidden, slots in shapes:
        base = int(rng.integers(-420, 40)) - down_base - config.acc_bits
        sums = [Fraction(0)] * hidden
        for slot in range(slots):
            weight = random_weight(rng)
            rows: list[dict[str, int]] = []
            for r in range(hidden):
                acc, exp = random_acc(rng, config), down_base + int(rng.integers(config.down_spread + 1))
                if slot and rng.random() < 0.1:  # cancel what is there, as far as this slot can
                    acc, exp = (
                        int(max(-config.down_bound, min(config.down_bound, -sums[r] / (1 << 16)))),
                        down_base,
                    )
                sums[r] += acc * weight * power(exp - down_base)
                info = {"weight": weight, "first": slot == 0, "final": slot == slots - 1, "base": base}
                rows.append({"acc": acc, "row_exp": exp})
                if len(rows) == config.drain or r == hidden - 1:
                    noise = [{"acc": -1, "row_exp": 0}] * (config.drain - len(rows))
                    at = {"index": r // config.drain * config.drain, "last": r == hidden - 1}
                    items.append(raw(dut.i, rows=rows + noise, count=len(rows), info=info, **at))
                    rows = []
        scale = power(base + down_base - 16)
        want += [(rounded(s * scale), int(r == hidden - 1)) for r, s in enumerate(sums)]

    async def bench(ctx: Any) -> None:
        ctx.set(dut.down_base, down_base)
        for offer, accept in paces:
            sink = Sink(dut.o, len(want), accept)
            await transfer(ctx, rng, [Source(dut.i, items, offer)], [sink])
            assert [(p.bits, p.last) for p in sink.got] == want

    simulate(dut, bench)


@pytest.mark.parametrize("drain", [1, 2, 4, 8])
def test_combine(drain: int) -> None:
    config = combine_config(drain=drain)
    shapes = [(32, 5), (32, 1), (7, 3), (2, 5), (2, 5), (3, 2), (31, 4), (2, 1), (32, 2)]
    check_combine(config, shapes, PACES, seed=2)


@pytest.mark.parametrize("drain", [1, 2, 4, 8])
def test_combine_two_rows_a_pass(drain: int) -> None:
    """The least hidden size, passes queued up behind a slow sink: no row reads a sum before it is written."""
    check_combine(combine_config(drain=drain), [(2, 3), (2, 2), (2, 5), (2, 1), (2, 2)] * 3, PACES, seed=3)


@pytest.mark.parametrize("sign", [1, -1])
def test_combine_reaches_its_width(sign: int) -> None:
    """All slots at the accumulator's bound, full weight and largest alignment."""
    config = combine_config()
    dut = Combine(config)
    largest = (1 << 23) - 1
    total = sign * config.down_bound * (largest << config.down_spread) * config.max_slots
    assert abs(total).bit_length() + 1 == config.combine_bits
    row = {"acc": sign * config.down_bound, "row_exp": 1 + config.down_spread}
    items = []
    for slot in range(config.max_slots):
        info = {"weight": largest, "first": slot == 0, "final": slot == config.max_slots - 1, "base": -100}
        items += [raw(dut.i, rows=[row], count=1, index=r, info=info) for r in range(4)]

    async def bench(ctx: Any) -> None:
        ctx.set(dut.down_base, 1)
        sink = Sink(dut.o, 4)
        await transfer(ctx, np.random.default_rng(0), [Source(dut.i, items)], [sink])
        assert [p.bits for p in sink.got] == [rounded(total * power(1 - 100 - 16))] * 4

    simulate(dut, bench)
