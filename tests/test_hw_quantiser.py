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


NOISE = {"sign": 1, "top": 500, "mag": (1 << 24) - 1}


async def feed(
    ctx: Any,
    dut: BlockQuantiser,
    tokens: list[list[Vector]],
    rng: np.random.Generator,
    offer: float,
    grant: float,
    late: bool,
    take: int,
) -> tuple[list[list[tuple[int, ...]]], list[int]]:
    """Elements of all tokens in; what comes out by token, and the token tops at each ``done``.

    ``late``: the number of vectors becomes known at a random time, the latest when the token has waited for
    it; a token without vectors is always announced when its turn has come. The next token's elements wait
    behind a token that is known, and are taken while it is given out.
    """

    def beat(v: Vector, at: int) -> dict[str, Any]:
        part = [dict(zip(("sign", "top", "mag"), e, strict=True)) for e in v[at : at + take]]
        numbers = part + [NOISE] * (take - len(part))
        return {"numbers": numbers, "count": len(part), "last": at + take >= len(v)}

    items = [(n, beat(v, at)) for n, t in enumerate(tokens) for v in t for at in range(0, len(v), take)]
    sent, offered, known, waited, now = 0, False, False, 0, 0  # now: the token that is collected
    out: list[list[tuple[int, ...]]] = [[]]
    tops: list[int] = []
    for _ in range(16 * take * len(items) + 3000):
        whole = sent == len(items) or items[sent][0] > now  # no more elements of it
        if not known and now < len(tokens):
            waited = waited + 1 if whole else 0
            known = not late or waited > 60 or rng.random() < 0.01
        token = tokens[now] if known else []
        ctx.set(dut.vectors.valid, known)
        ctx.set(dut.vectors.payload.count, max(1, len(token)) if known else int(rng.integers(256)))
        ctx.set(dut.vectors.payload.alone, known and not token)
        following = bool(token) and sent < len(items) and items[sent][0] == now + 1
        if not offered and (following or not whole) and rng.random() < offer:
            offered = True
            ctx.set(dut.i.payload, items[sent][1])
        ctx.set(dut.i.valid, offered)
        ctx.set(dut.grant, rng.random() < grant)
        ready, taken, valid, code, done, top = await clock(
            ctx, dut.i.ready, dut.vectors.ready, dut.code_valid, dut.code, dut.done, dut.token_top
        )
        if offered and ready:
            assert items[sent][0] == now, "an element of the next token was taken"
            offered, sent = False, sent + 1
        if valid:
            for j in range(len(code.code8)):
                code16 = 256 * code.high[j] + code.low[j]
                out[-1].append((code.lane + j, code.block, code.code8[j], code16, code.shift8, code.shift16))
        if known and taken:
            assert whole
            now, known = now + 1, False
        if done:
            assert valid and now > len(tops)
            tops.append(top)
            out.append([])
        if len(tops) == len(tokens):
            ctx.set(dut.grant, 1)
            ctx.set(dut.vectors.valid, 0)
            for _ in range(8):  # nothing follows
                valid, _done = await clock(ctx, dut.code_valid, dut.done)
                assert not valid
            return out[:-1], tops
    raise AssertionError("tokens do not come out")


#: (elements in, elements out) a cycle.
WIDTHS = ((1, 1), (1, 2), (2, 4), (4, 4))


def check(
    tokens: list[list[Vector]],
    floor: int,
    offer: float = 1.0,
    grant: float = 1.0,
    *,
    constants: bool = False,
    late: bool = False,
    blocks: int = BLOCKS,
    widths: tuple[int, int] = (1, 1),
    ahead: int = 0,
) -> None:
    take, give = widths
    dut = BlockQuantiser(
        blocks=blocks, spread=SPREAD, router_spread=ROUTER_SPREAD, floor=floor, take=take, give=give,
        ahead=ahead,
    )  # fmt: skip

    async def bench(ctx: Any) -> None:
        ctx.set(dut.constants, constants)
        out, tops = await feed(ctx, dut, tokens, np.random.default_rng(0), offer, grant, late, take)
        for token, got, top in zip(tokens, out, tops, strict=True):
            want, want_top = expected(token, floor, constants)
            assert top == want_top
            assert got == want

    simulate(dut, bench)


@pytest.mark.parametrize(("offer", "grant"), [(1.0, 1.0), (0.4, 1.0), (1.0, 0.05), (0.5, 0.1)])
@pytest.mark.parametrize("constants", [False, True])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_float32_tokens(offer: float, grant: float, constants: bool, widths: tuple[int, int]) -> None:
    """One vector a token, of every kind: wide range, tiny, zero, subnormal, one element, ragged, full."""
    rng = np.random.default_rng(7)
    xs = [rng.standard_normal(n) * 2.0 ** rng.integers(-15, 10, n) for n in (100, 128, 1, 32, 33)]
    xs += [rng.standard_normal(70) * 2.0**-135, np.zeros(40), rng.standard_normal(64) * 2.0**127 / 8]
    xs += [np.array([2.0**-149]), (1 + (2 * np.arange(128) + 1) / 256) * -1.0, np.full(31, 1.999999)]
    xs[0][::7] = 0
    tokens = [[elements(x.astype(np.float32))] for x in xs]
    check(tokens, -126, offer, grant, constants=constants, blocks=BLOCKS + constants, widths=widths)


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_every_tie_and_carry(widths: tuple[int, int]) -> None:
    """Mantissas around each rounding boundary of 6 and 13 bits, in blocks of one exponent."""
    rng = np.random.default_rng(8)
    tokens = []
    for _ in range(6):
        mag = (rng.integers(1 << 13, 1 << 14, 128) << 10) + rng.choice([0, 511, 512, 513, 1023], 128)
        mag[::5] = (rng.integers(1 << 6, 1 << 7, 26) << 17) + rng.choice([0, 65535, 65536, 65537], 26)
        mag[0], mag[1] = (1 << 24) - 1, 1 << 23
        tops = np.where(rng.random(128) < 0.5, 0, rng.integers(-12, 1, 128))
        tokens.append([list(zip((rng.random(128) < 0.5).tolist(), tops.tolist(), mag.tolist(), strict=True))])
    check(tokens, -126, widths=widths)


@pytest.mark.parametrize("constants", [False, True])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("offer", [1.0, 0.5])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_tokens_of_several_vectors(
    offer: float, late: bool, constants: bool, widths: tuple[int, int]
) -> None:
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
    options = {"late": late, "constants": constants, "blocks": 2 * BLOCKS, "widths": widths}
    check(tokens, TOP_MIN, offer, **options, ahead=3 * constants)


@pytest.mark.parametrize(("take", "give"), WIDTHS)
def test_speed_and_grant(take: int, give: int) -> None:
    """A beat a cycle in and out; nothing comes without a grant, and the next token is taken meanwhile."""
    dut = BlockQuantiser(
        blocks=2, spread=SPREAD, router_spread=ROUTER_SPREAD, floor=-126, take=take, give=give, ahead=2
    )

    async def fill(ctx: Any) -> None:
        ctx.set(dut.i.valid, 1)
        for i in range(64 // take):
            numbers = [{"top": i, "mag": 1 << 23}] * take
            ctx.set(dut.i.payload, {"numbers": numbers, "count": take, "last": i == 64 // take - 1})
            (ready,) = await clock(ctx, dut.i.ready)
            assert ready
        ctx.set(dut.i.valid, 0)

    async def bench(ctx: Any) -> None:
        ctx.set(dut.vectors.payload.count, 1)
        ctx.set(dut.vectors.valid, 1)
        await fill(ctx)
        await clock(ctx)
        await fill(ctx)
        for _ in range(30):
            assert await clock(ctx, dut.i.ready, dut.code_valid) == (0, 0)  # both tokens' room is full
        ctx.set(dut.grant, 1)
        await clock(ctx)
        ctx.set(dut.grant, 0)
        beats = 64 // give
        seen = [await clock(ctx, dut.i.ready, dut.code_valid, dut.done) for _ in range(beats + dut.LATENCY)]
        assert [valid for _, valid, _ in seen] == [0] * dut.LATENCY + [1] * beats
        assert [done for *_, done in seen] == [0] * (dut.LATENCY + beats - 1) + [1]
        assert seen[-1][0]

    simulate(dut, bench)


def test_discarded_tokens_leave_nothing() -> None:
    """Of huge tokens cut short anywhere between good ones, also while another waits or is given out."""
    rng = np.random.default_rng(10)
    dut = BlockQuantiser(
        blocks=BLOCKS, spread=SPREAD, router_spread=ROUTER_SPREAD, floor=-126, give=2, ahead=1
    )
    good = [elements(rng.standard_normal(n).astype(np.float32)) for n in (128, 40, 1, 100, 64, 33)]
    beats = []
    for v in good:
        for cut in (int(rng.integers(1, 100)), int(rng.choice([31, 32, 33])), 1):
            beats += [(False, 127, (1 << 24) - 1, False, i == cut - 1) for i in range(cut)]
        beats += [(*e, i == len(v) - 1, False) for i, e in enumerate(v)]

    async def bench(ctx: Any) -> None:
        ctx.set(dut.vectors.payload.count, 1)
        ctx.set(dut.vectors.valid, 1)
        got: list[tuple[int, ...]] = []
        sent, offered = 0, False
        while sent < len(beats) or len(got) < sum(-(-len(v) // BLOCK) * BLOCK for v in good):
            offered = offered or (sent < len(beats) and rng.random() < 0.7)
            if offered:
                sign, top, mag, last, discard = beats[sent]
                number = {"sign": sign, "top": top, "mag": mag}
                ctx.set(dut.i.payload, {"numbers": [number], "count": 1, "last": last})
                ctx.set(dut.discard, discard)
            ctx.set(dut.i.valid, offered)
            ctx.set(dut.grant, rng.random() < 0.05)
            ready, valid, code = await clock(ctx, dut.i.ready, dut.code_valid, dut.code)
            if offered and ready:
                offered, sent = False, sent + 1
            if valid:
                got += [(code.lane + j, code.block, code.code8[j], code.shift8) for j in range(2)]
        want = [row for v in good for row in expected([v], -126, False)[0]]
        assert got == [(lane, block, code8, shift8) for lane, block, code8, _, shift8, _ in want]

    simulate(dut, bench)


@pytest.mark.parametrize("sets", [("code8", "high", "low"), ("code8",)], ids="-".join)
@pytest.mark.parametrize(
    ("blocks", "banks", "columns", "give", "width"),
    [
        *[(3, 2, 1, 1, 32), (5, 1, 1, 4, 32), (1, 1, 1, 2, 32), (6, 2, 4, 1, 32), (3, 2, 2, 8, 32)],
        *[(3, 2, 1, 1, 4), (5, 1, 1, 4, 4), (6, 2, 2, 2, 8), (1, 1, 1, 1, 8)],
    ],
)
def test_activation_buffer(
    blocks: int, banks: int, columns: int, give: int, width: int, sets: tuple[str, ...]
) -> None:
    """What was written some elements at a time reads back a block a column at a time, or a part of it; banks
    do not mix."""
    rng = np.random.default_rng(blocks)
    dut = ActivationBuffer(blocks=blocks, banks=banks, sets=sets, columns=columns, give=give, width=width)
    extra = {"code8": 0, "high": 8, "low": 0}
    stored: dict[tuple[int, int], dict[str, Any]] = {}

    def random_block(bank: int, block: int) -> list[dict[str, Any]]:
        codes = {n: rng.integers(-128, 128, BLOCK).tolist() for n in ("code8", "high", "low")}
        shifts = {"shift8": int(rng.integers(0, 32)), "shift16": int(rng.integers(0, 13))}
        stored[bank, block] = {**codes, **shifts}
        return [
            {"lane": i, "block": block, **{n: c[i : i + give] for n, c in codes.items()}, **shifts}
            for i in range(0, BLOCK, give)
        ]

    async def write(ctx: Any, bank: int) -> None:
        ctx.set(dut.write_bank, bank)
        for block in range(blocks):
            for element in random_block(bank, block):
                while rng.random() < 0.2:
                    ctx.set(dut.code_valid, 0)
                    noise = {k: [0] * give if isinstance(v, list) else 0 for k, v in element.items()}
                    ctx.set(dut.code, noise)  # must not be stored
                    await clock(ctx)
                ctx.set(dut.code, element)
                ctx.set(dut.code_valid, 1)
                await clock(ctx)
        ctx.set(dut.code_valid, 0)

    async def read(ctx: Any, bank: int) -> None:
        splits = range(columns.bit_length())
        parts = range(BLOCK // width)
        wanted = [
            (s, b, w, p) for b in range(blocks) for s in range(len(sets)) for w in splits for p in parts
        ]
        wanted *= 2
        rng.shuffle(wanted)
        seen = []
        for s, b, w, p in [*wanted, *[(0, 0, 0, 0)] * dut.LATENCY]:
            ctx.set(dut.read_word, int(p))
            ctx.set(dut.read_set, int(s))
            ctx.set(dut.read_bank, bank)
            ctx.set(dut.read_block, int(b))
            ctx.set(dut.read_blocks, min(1 << int(w), blocks - int(b)))
            ctx.set(dut.split, int(w))
            ctx.set(dut.read_en, 1)
            seen.append(await clock(ctx, dut.act, dut.shift))
        ctx.set(dut.read_en, 0)  # then the last stays
        stays = await clock(ctx, dut.act, dut.shift), await clock(ctx, dut.act, dut.shift)
        ctx.set(dut.read_block, blocks - 1)
        for _ in range(2 * dut.LATENCY):
            assert await clock(ctx, dut.act, dut.shift) == stays[1]
        for (s, first, w, p), (act, shift) in zip(wanted, seen[dut.LATENCY :], strict=True):
            name = sets[int(s)]
            got = np.frombuffer(act.to_bytes(columns * width, "little"), dtype=np.int8).reshape(
                columns, width
            )
            for c in range(columns):
                further = c % (1 << int(w))  # beyond the last block the first one again
                block = stored[bank, int(first) + (further if first + further < blocks else 0)]
                assert got[c].tolist() == block[name][int(p) * width :][:width]
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
