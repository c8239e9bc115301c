"""Block quantiser and activation buffer: tokens in, blocks out, as the model quantises them."""

from typing import Any

import numpy as np
import pytest
from amaranth_bench import clock, simulate

from hw.numerics.quantiser import BlockQuantiser
from hw.pe.activations import ActivationBuffer
from sw_model import formats
from sw_model.formats import BLOCK, TOP_MIN, Scaled

SPREAD, ROUTER_SPREAD, BLOCKS = 10, 4, 4
Element = tuple[bool, int, int]  # sign, top, mag
Vector = list[Element]


def elements(x: np.ndarray) -> Vector:
    s = formats.unpack_float32(x)
    return list(zip(s.sign.tolist(), s.top.tolist(), s.mag.tolist(), strict=True))


ALONE: list[Vector] = []  # a token without vectors: the constants alone
CONSTANTS: Vector = [(False, top, 1 << 23) for top in (0, -2, -4, -6)]


def expected(token: list[Vector], floor: int, constants: bool) -> tuple[list[tuple[int, ...]], int]:
    """(lane, block, code8, code16, shift8, shift16) of every element, and the token's top."""

    def fill(v: Vector) -> Vector:
        return v + [(False, floor, 0)] * (-len(v) % BLOCK)

    filled = [e for v in token for e in fill(v) + (fill(CONSTANTS) if constants else [])] or fill(CONSTANTS)
    sign, top, mag = (np.array(part).reshape(1, -1, BLOCK) for part in zip(*filled, strict=True))
    x = Scaled(sign=sign.astype(bool), top=top, mag=mag)
    token_top = top.max(axis=(1, 2))
    a8 = formats.quantise_act8(x, token_top, spread=SPREAD)
    a16 = formats.quantise_act16(x, token_top, spread=ROUTER_SPREAD)
    codes = zip(a8.codes.ravel().tolist(), a16.codes.ravel().tolist(), strict=True)
    rows = [
        (i % BLOCK, i // BLOCK, c8, c16, int(a8.shift[0, i // BLOCK]), int(a16.shift[0, i // BLOCK]))
        for i, (c8, c16) in enumerate(codes)
    ]
    return rows, int(token_top[0])


async def feed(
    ctx: Any,
    dut: BlockQuantiser,
    tokens: list[list[Vector]],
    rng: np.random.Generator,
    offer: float,
    grant: float,
    late: bool,
) -> tuple[list[list[tuple[int, ...]]], list[int]]:
    """Elements of all tokens in; what comes out by token, and the token tops at each ``done``.

    ``late``: the number of vectors becomes known at a random time, the latest when the token has waited for
    it; a token without vectors is always announced when its turn has come.
    """
    items = [
        (n, {"number": dict(zip(("sign", "top", "mag"), e, strict=True)), "last": i == len(v) - 1})
        for n, t in enumerate(tokens)
        for v in t
        for i, e in enumerate(v)
    ]
    sent, offered, known, waited = 0, False, False, 0
    out: list[list[tuple[int, ...]]] = [[]]
    tops: list[int] = []
    for _ in range(14 * len(items) + 3000):
        now = len(tops)  # the token that is collected or given out
        token = tokens[now]
        whole = sent == len(items) or items[sent][0] > now  # no more elements of it
        if not known:
            waited = waited + 1 if whole else 0
            known = not late or waited > 60 or rng.random() < 0.01
        ctx.set(dut.vectors, max(1, len(token)) if known else int(rng.integers(256)))
        ctx.set(dut.vectors_known, known)
        ctx.set(dut.alone, known and not token)
        # The next token may wait behind a token that is known; nothing comes while the constants are alone.
        following = bool(token) and known and sent < len(items) and items[sent][0] == now + 1
        if not offered and (following or not whole) and rng.random() < offer:
            offered = True
            ctx.set(dut.i.payload, items[sent][1])
        ctx.set(dut.i.valid, offered)
        ctx.set(dut.grant, rng.random() < grant)
        ready, valid, code, done, top = await clock(
            ctx, dut.i.ready, dut.code_valid, dut.code, dut.done, dut.token_top
        )
        if offered and ready:
            assert items[sent][0] == now, "an element of the next token was taken"
            offered, sent = False, sent + 1
        if valid:
            code16 = 256 * code.high + code.low
            out[-1].append((code.lane, code.block, code.code8, code16, code.shift8, code.shift16))
        if done:
            assert valid and known
            tops.append(top)
            out.append([])
            known = False
        if len(tops) == len(tokens):
            ctx.set(dut.grant, 1)
            ctx.set(dut.vectors_known, 0)
            ctx.set(dut.alone, 0)
            for _ in range(8):  # nothing follows
                valid, _done = await clock(ctx, dut.code_valid, dut.done)
                assert not valid
            return out[:-1], tops
    raise AssertionError("tokens do not come out")


def check(
    tokens: list[list[Vector]],
    floor: int,
    offer: float = 1.0,
    grant: float = 1.0,
    *,
    constants: bool = False,
    late: bool = False,
    blocks: int = BLOCKS,
) -> None:
    dut = BlockQuantiser(blocks=blocks, spread=SPREAD, router_spread=ROUTER_SPREAD, floor=floor)

    async def bench(ctx: Any) -> None:
        ctx.set(dut.constants, constants)
        out, tops = await feed(ctx, dut, tokens, np.random.default_rng(0), offer, grant, late)
        for token, got, top in zip(tokens, out, tops, strict=True):
            want, want_top = expected(token, floor, constants)
            assert top == want_top
            assert got == want

    simulate(dut, bench)


@pytest.mark.parametrize(("offer", "grant"), [(1.0, 1.0), (0.4, 1.0), (1.0, 0.05), (0.5, 0.1)])
@pytest.mark.parametrize("constants", [False, True])
def test_float32_tokens(offer: float, grant: float, constants: bool) -> None:
    """One vector a token, of every kind: wide range, tiny, zero, subnormal, one element, ragged, full."""
    rng = np.random.default_rng(7)
    xs = [rng.standard_normal(n) * 2.0 ** rng.integers(-15, 10, n) for n in (100, 128, 1, 32, 33)]
    xs += [rng.standard_normal(70) * 2.0**-135, np.zeros(40), rng.standard_normal(64) * 2.0**127 / 8]
    xs += [np.array([2.0**-149]), (1 + (2 * np.arange(128) + 1) / 256) * -1.0, np.full(31, 1.999999)]
    xs[0][::7] = 0
    tokens = [[elements(x.astype(np.float32))] for x in xs]
    check(tokens, -126, offer, grant, constants=constants, blocks=BLOCKS + constants)


def test_every_tie_and_carry() -> None:
    """Mantissas around each rounding boundary of 6 and 13 bits, in blocks of one exponent."""
    rng = np.random.default_rng(8)
    tokens = []
    for _ in range(6):
        mag = (rng.integers(1 << 13, 1 << 14, 128) << 10) + rng.choice([0, 511, 512, 513, 1023], 128)
        mag[::5] = (rng.integers(1 << 6, 1 << 7, 26) << 17) + rng.choice([0, 65535, 65536, 65537], 26)
        mag[0], mag[1] = (1 << 24) - 1, 1 << 23
        tops = np.where(rng.random(128) < 0.5, 0, rng.integers(-12, 1, 128))
        tokens.append([list(zip((rng.random(128) < 0.5).tolist(), tops.tolist(), mag.tolist(), strict=True))])
    check(tokens, -126)


@pytest.mark.parametrize("constants", [False, True])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("offer", [1.0, 0.5])
def test_tokens_of_several_vectors(offer: float, late: bool, constants: bool) -> None:
    """h of several experts: each vector is filled up to a block, all share one largest exponent."""
    rng = np.random.default_rng(9)

    def vector(n: int, low: int, high: int) -> Vector:
        mag = rng.integers(1 << 23, 1 << 24, n)
        top = rng.integers(low, high + 1, n)
        zero = rng.random(n) < 0.2
        mag[zero], top[zero] = 0, TOP_MIN
        return list(zip((rng.random(n) < 0.5).tolist(), top.tolist(), mag.tolist(), strict=True))

    tokens = [
        [vector(32, -5, 0), vector(32, -20, -15), vector(64, -8, 5)],
        [vector(40, 0, 3), vector(5, -3, 0), vector(1, 9, 9)],
        [vector(1, -570, -570)],
        [[(False, TOP_MIN, 0)] * 33, vector(31, -580, -560)],
        [[(False, TOP_MIN, 0)] * 20, [(False, TOP_MIN, 0)] * 64],
        [vector(96, 500, 570), vector(32, -600, -590)],
        ALONE,
        [vector(33, -1, 1), vector(33, -1, 1)],
        ALONE,
        ALONE,
        [vector(5, -1, 1)],
    ]
    check(tokens, TOP_MIN, offer, late=late, constants=constants, blocks=2 * BLOCKS)


def test_speed_and_grant() -> None:
    """An element a cycle in and out; nothing comes without a grant, and no element is taken meanwhile."""
    dut = BlockQuantiser(blocks=2, spread=SPREAD, router_spread=ROUTER_SPREAD, floor=-126)

    async def bench(ctx: Any) -> None:
        ctx.set(dut.i.valid, 1)
        ctx.set(dut.vectors, 1)
        ctx.set(dut.vectors_known, 1)
        for i in range(64):
            ctx.set(dut.i.payload, {"number": {"top": i, "mag": 1 << 23}, "last": i == 63})
            (ready,) = await clock(ctx, dut.i.ready)
            assert ready
        for _ in range(30):
            assert await clock(ctx, dut.i.ready, dut.code_valid) == (0, 0)
        ctx.set(dut.grant, 1)
        await clock(ctx)
        ctx.set(dut.grant, 0)
        seen = [await clock(ctx, dut.i.ready, dut.code_valid, dut.done) for _ in range(64 + dut.LATENCY)]
        assert [valid for _, valid, _ in seen] == [0] * dut.LATENCY + [1] * 64
        assert [done for *_, done in seen] == [0] * (dut.LATENCY + 63) + [1]
        assert not any(ready for ready, *_ in seen)
        assert (await clock(ctx, dut.i.ready)) == (1,)

    simulate(dut, bench)


@pytest.mark.parametrize("sets", [("code8", "high", "low"), ("code8",)], ids="-".join)
@pytest.mark.parametrize(("blocks", "banks", "columns"), [(3, 2, 1), (5, 1, 1), (1, 1, 1), (6, 2, 4)])
def test_activation_buffer(blocks: int, banks: int, columns: int, sets: tuple[str, ...]) -> None:
    """What was written an element at a time reads back a block a column at a time; banks do not mix."""
    rng = np.random.default_rng(blocks)
    dut = ActivationBuffer(blocks=blocks, banks=banks, sets=sets, columns=columns)
    extra = {"code8": 0, "high": 8, "low": 0}
    stored: dict[tuple[int, int], dict[str, Any]] = {}

    def random_block(bank: int, block: int) -> list[dict[str, int]]:
        codes = {n: rng.integers(-128, 128, BLOCK).tolist() for n in ("code8", "high", "low")}
        shifts = {"shift8": int(rng.integers(0, 32)), "shift16": int(rng.integers(0, 13))}
        stored[bank, block] = {**codes, **shifts}
        lanes = range(BLOCK)
        return [{"lane": i, "block": block, **{n: c[i] for n, c in codes.items()}, **shifts} for i in lanes]

    async def write(ctx: Any, bank: int) -> None:
        ctx.set(dut.write_bank, bank)
        for block in range(blocks):
            for element in random_block(bank, block):
                while rng.random() < 0.2:
                    ctx.set(dut.code_valid, 0)
                    ctx.set(dut.code, {k: 0 for k in element})  # noise that must not be stored
                    await clock(ctx)
                ctx.set(dut.code, element)
                ctx.set(dut.code_valid, 1)
                await clock(ctx)
        ctx.set(dut.code_valid, 0)

    async def read(ctx: Any, bank: int) -> None:
        splits = range(columns.bit_length())
        wanted = [(s, b, w) for b in range(blocks) for s in range(len(sets)) for w in splits] * 2
        rng.shuffle(wanted)
        seen = []
        for s, b, w in [*wanted, *[(0, 0, 0)] * dut.LATENCY]:
            ctx.set(dut.read_set, int(s))
            ctx.set(dut.read_bank, bank)
            ctx.set(dut.read_block, int(b))
            ctx.set(dut.split, int(w))
            seen.append(await clock(ctx, dut.act, dut.shift))
        for (s, first, w), (act, shift) in zip(wanted, seen[dut.LATENCY :], strict=True):
            name = sets[int(s)]
            got = np.frombuffer(act.to_bytes(columns * BLOCK, "little"), dtype=np.int8).reshape(
                columns, BLOCK
            )
            for c in range(columns):
                block = stored.get((bank, int(first) + c % (1 << int(w))))
                if block is not None:  # beyond the last block it may be anything
                    assert got[c].tolist() == block[name]
                    up = block["shift8" if name == "code8" else "shift16"] + extra[name]
                    assert shift >> 5 * c & 31 == up & 31

    async def bench(ctx: Any) -> None:
        for bank in range(banks):
            await write(ctx, bank)
        for bank in range(banks):
            await read(ctx, bank)
        await write(ctx, 0)
        for bank in range(banks):
            await read(ctx, bank)

    simulate(dut, bench)
