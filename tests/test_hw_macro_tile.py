"""The compute-in-memory macro and the tile around it, against integers, on their published timing."""

from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from amaranth_bench import clock, simulate

from hw.cim.macro import Decode, Macro
from hw.pe.tile import Tile
from sw_model.config import HardwareConfig
from sw_model.formats import BLOCK, FP8, INT8, INT16, MXFP4, WEIGHT_FORMATS, WeightFormat

#: Steps that a block takes and the words it reads, by name of the format.
STEPS = {"int4": (1, 1), "int8": (2, 2), "int16": (4, 4), "mxfp4": (1, 1), "fp8": (6, 2)}
DECODE = {"mxfp4": Decode.MXFP4, "fp8": Decode.FP8}


def stored(code: int, fmt: WeightFormat) -> int:
    """The bits of one signed magnitude in a macro: sign first, floats as ml_dtypes encodes them."""
    kinds = {MXFP4: (ml_dtypes.float4_e2m1fn, 2), FP8: (ml_dtypes.float8_e4m3fn, 512)}
    bits = abs(code)
    if fmt in kinds:
        kind, unit = kinds[fmt]
        bits = int(np.array(bits / unit).astype(kind).view(np.uint8))
    return bits | (code < 0) << (fmt.bits - 1)


def pack_word(codes: list[int], fmt: WeightFormat, word: int) -> int:
    """The macro word of one stored nibble (0 = most significant), lane 0 lowest."""
    down = fmt.bits - 4 * (word + 1)
    return sum((stored(code, fmt) >> down & 15) << 4 * lane for lane, code in enumerate(codes))


def digits(codes: list[int], fmt: WeightFormat, step: int) -> list[int]:
    """What a step multiplies: the magnitudes' nibbles from the most significant on, last one last."""
    steps, _ = STEPS[fmt.name]
    return [(abs(c) >> 4 * (steps - 1 - step) & 15) * (-1 if c < 0 else 1) for c in codes]


def pack_bytes(values: list[int]) -> int:
    return int.from_bytes(np.array(values, dtype=np.int8).tobytes(), "little")


def piece(values: list[int], cycle: int, bits: int) -> int:
    """``bits`` bits of every byte, the most significant ones in cycle 0, lane 0 lowest."""
    down = 8 - bits * (cycle + 1)
    return sum((v >> down & (1 << bits) - 1) << bits * lane for lane, v in enumerate(values))


def random_codes(rng: np.random.Generator, fmt: WeightFormat) -> list[int]:
    most = fmt.max_magnitude
    if fmt.mantissa_bits is not None:
        codes = fmt.decode(rng.integers(0, 8 if fmt is MXFP4 else 127, BLOCK))
        return np.where(rng.random(BLOCK) < 0.5, -codes, codes).tolist()
    if rng.random() < 0.3:
        return rng.choice([-most, most, 0, 1, -1, 8, -8], BLOCK).clip(-most, most).tolist()
    return rng.integers(-most, most + 1, BLOCK).tolist()


def random_bytes(rng: np.random.Generator) -> list[int]:
    if rng.random() < 0.3:
        return rng.choice([-128, 127, -127, 0, 1], BLOCK).tolist()
    return rng.integers(-128, 128, BLOCK).tolist()


@pytest.mark.parametrize("loaded", [False, True], ids=["baked", "loaded"])
def test_macro(loaded: bool) -> None:
    """Blocks of all formats in one stream, gaps in between; noise on every input that should not matter."""
    rng = np.random.default_rng(loaded)
    blocks: list[tuple[list[int], WeightFormat, int]] = []  # codes, format, address
    words: list[int] = []
    while len(blocks) < 30:
        fmt = list(WEIGHT_FORMATS.values())[len(blocks) % 5]
        codes = random_codes(rng, fmt)
        blocks.append((codes, fmt, len(words)))
        words += [pack_word(codes, fmt, n) for n in range(STEPS[fmt.name][1])]
    depth = len(words)
    dut = Macro(depth, None if loaded else words)

    # A schedule of (block, step), None = idle. The steps of a block follow each other.
    schedule: list[tuple[int, int] | None] = []
    for n in rng.permutation(list(range(len(blocks))) * 3).tolist():
        schedule += [None] * int(rng.integers(0, 3)) if rng.random() < 0.3 else []
        schedule += [(n, step) for step in range(STEPS[blocks[n][1].name][0])]
    acts = [random_bytes(rng) for _ in schedule]

    def scheduled(t: int) -> tuple[int, int] | None:
        return schedule[t] if 0 <= t < len(schedule) else None

    async def bench(ctx: Any) -> None:
        if loaded:
            for at in rng.permutation(len(words)).tolist():
                ctx.set(dut.write_addr, at)
                ctx.set(dut.write_data, words[at])
                ctx.set(dut.write_en, 1)
                await clock(ctx)
        ctx.set(dut.write_en, 0)
        seen = []
        for t in range(len(schedule) + dut.LATENCY + 1):
            now = scheduled(t)
            read = now is not None and now[1] < STEPS[blocks[now[0]][1].name][1]
            ctx.set(dut.read_en, read)
            ctx.set(dut.read_addr, blocks[now[0]][2] + now[1] if read else int(rng.integers(depth)))
            ctx.set(dut.write_addr, int(rng.integers(depth)))
            now = scheduled(t - dut.DECODE_AT)
            ctx.set(dut.step, int(rng.integers(8)) if now is None else now[1])
            how = list(Decode)[rng.integers(3)]
            if now is not None:
                how = DECODE.get(blocks[now[0]][1].name, Decode.INTEGER)
            ctx.set(dut.decode, how)
            late = t - dut.ACT_AT
            idle = scheduled(late) is None
            ctx.set(dut.act, pack_bytes(random_bytes(rng) if idle else acts[late]))
            seen.append((await clock(ctx, dut.sum))[0])
        for t, now in enumerate(schedule):
            if now is not None:
                codes, fmt, _ = blocks[now[0]]
                want = sum(d * a for d, a in zip(digits(codes, fmt, now[1]), acts[t], strict=True))
                assert seen[t + dut.LATENCY] == want, (t, fmt.name, now[1])

    simulate(dut, bench)


@pytest.mark.parametrize("fmt", [FP8, MXFP4], ids=lambda f: f.name)
def test_every_code_of_a_macro(fmt: WeightFormat) -> None:
    """All codes of a floating format, both signs, put together from the sums of their steps."""
    half = fmt.decode(np.arange(8 if fmt is MXFP4 else 127))
    codes = np.concatenate([half, -half, np.zeros(-2 * len(half) % BLOCK, np.int64)]).reshape(-1, BLOCK)
    steps, stored_words = STEPS[fmt.name]
    words = [pack_word(block.tolist(), fmt, n) for block in codes for n in range(stored_words)]
    dut = Macro(max(2, len(words)), words)

    async def bench(ctx: Any) -> None:
        ctx.set(dut.decode, DECODE[fmt.name])
        for lane in range(BLOCK):
            ctx.set(dut.act, 1 << 8 * lane)
            totals = []
            for n in range(len(codes)):
                total, seen = 0, []
                for t in range(steps + dut.LATENCY):
                    ctx.set(dut.read_addr, n * stored_words + min(t, stored_words - 1))
                    ctx.set(dut.read_en, t < stored_words)
                    ctx.set(dut.step, max(0, t - dut.DECODE_AT))
                    seen.append((await clock(ctx, dut.sum))[0])
                for digit in seen[dut.LATENCY :]:
                    total = 16 * total + digit
                totals.append(total)
            assert totals == codes[:, lane].tolist()

    simulate(dut, bench)


def test_macro_largest_sum() -> None:
    """Every lane -15 x -128, the most that a nibble and a low byte can give, fits; and its negative."""
    codes = [-INT8.max_magnitude] * BLOCK
    dut = Macro(2, [pack_word(codes, INT8, p) for p in range(2)])

    async def bench(ctx: Any) -> None:
        for act, want in ((-128, [7 * 128 * 32, 15 * 128 * 32]), (127, [-7 * 127 * 32, -15 * 127 * 32])):
            ctx.set(dut.act, pack_bytes([act] * BLOCK))
            ctx.set(dut.read_en, 1)
            seen = []
            for t in range(2 + dut.LATENCY):
                ctx.set(dut.read_addr, min(t, 1))
                ctx.set(dut.step, t != dut.DECODE_AT)
                seen.append((await clock(ctx, dut.sum))[0])
            assert seen[dut.LATENCY :] == want

    simulate(dut, bench)


def tile_config(**overrides: Any) -> HardwareConfig:
    shape = {"tiles": 1, "words": 256, "scales": 64, "max_hidden": 64, "max_intermediate": 64}
    return HardwareConfig(name="tile", **{**shape, "max_experts": 4, "max_top_k": 2, **overrides})


#: The macro's bodies, the serial one at every pace.
BODIES: list[dict[str, Any]] = [{}, *({"body": "asic", "act_bits": bits} for bits in (1, 2, 4, 8))]

Block = tuple[list[int], list[int], int, int, int]  # codes, bytes, mant, scale shift, act shift
Row = tuple[WeightFormat, list[Block], int]  # format, blocks, row exponent


def pack_scale(mant: int, shift: int, row_exp: int) -> int:
    return row_exp << 12 | shift << 7 | mant - 128


def run_rows(config: HardwareConfig, rows: list[Row], seed: int, gap: float) -> list[tuple[int, int]]:
    """(acc, row_exp) of each row, all rows through one tile back to back (or with idle cycles)."""
    rng = np.random.default_rng(seed)
    words = [
        pack_word(b[0], fmt, n) for fmt, blocks, _ in rows for b in blocks for n in range(STEPS[fmt.name][1])
    ]
    scales = [pack_scale(b[2], b[3], exp) for _, blocks, exp in rows for b in blocks]
    dut = Tile(config)
    events: dict[int, dict[str, int]] = {}

    def at(cycle: int, **signals: int) -> None:
        events.setdefault(cycle, {}).update(signals)

    t = word = scale = 0
    ends = []
    for fmt, blocks, _ in rows:
        for b, (_, act, _, _, act_shift) in enumerate(blocks):
            steps, stored_words = STEPS[fmt.name]
            while rng.random() < gap:  # the steps of a block follow each other
                t += 1
            for step, cycle in product(range(steps), range(dut.step_cycles)):
                first, last = cycle == 0, cycle == dut.step_cycles - 1
                if first and step < stored_words:
                    at(t + dut.read_at, word_addr=word, word_en=1)
                    word += 1
                at(t + dut.decode_at, step=step, decode=DECODE.get(fmt.name, Decode.INTEGER))
                at(t + dut.act_at, act=piece(act, cycle, config.act_bits), first=first)
                at(t + dut.block_at, start_block=step == 0, end_step=last)
                if step == steps - 1 and last:
                    at(t + dut.scale_at, scale_addr=scale)
                    at(t + dut.shift_at, act_shift=act_shift)
                    at(t + dut.add_at, add=1, start_row=b == 0)
                    scale += 1
                t += 1
        ends.append(t - 1 + dut.latency)
    results = []

    async def bench(ctx: Any) -> None:
        for what, values in (("word", words), ("scale", scales)):
            for i in rng.permutation(len(values)).tolist():
                ctx.set(getattr(dut, f"load_{what}_addr"), i)
                ctx.set(getattr(dut, f"load_{what}"), values[i])
                ctx.set(getattr(dut, f"load_{what}_en"), 1)
                await clock(ctx)
            ctx.set(getattr(dut, f"load_{what}_en"), 0)
        for cycle in range(ends[-1] + 1):
            noise = {
                "word_addr": int(rng.integers(256)),
                "scale_addr": int(rng.integers(64)),
                "act_shift": int(rng.integers(32)),
                "start_row": int(rng.integers(2)),
                "act": pack_bytes(random_bytes(rng)) & (1 << 32 * config.act_bits) - 1,
                "first": int(rng.integers(2)),
                "start_block": int(rng.integers(2)),
                "step": int(rng.integers(8)),
            }
            quiet = {"word_en": 0, "add": 0, "end_step": 0}
            for name, value in {**noise, **quiet, **events.get(cycle, {})}.items():
                if name == "first" and config.body == "dsp":
                    continue
                ctx.set(getattr(dut, name), value)
            values = await clock(ctx, dut.acc, dut.row_exp)
            if cycle in ends:
                results.append(values)

    simulate(dut, bench)
    return results


def exact(row: Row) -> int:
    _, blocks, _ = row
    return sum(
        sum(c * a for c, a in zip(codes, act, strict=True)) * mant << shift + act_shift
        for codes, act, mant, shift, act_shift in blocks
    )


@pytest.mark.parametrize("gap", [0.0, 0.3])
@pytest.mark.parametrize("body", BODIES, ids=str)
def test_tile(body: dict[str, Any], gap: float) -> None:
    rng = np.random.default_rng(11)
    config = tile_config(**body)
    rows: list[Row] = []
    for n in range(40):
        fmt = list(WEIGHT_FORMATS.values())[n % 5]
        wide = (config.router_spread, config.router_spread + 8)
        spreads = wide if fmt is INT16 else (config.spread(fmt), config.activation_spread)
        blocks = [
            (
                random_codes(rng, fmt),
                random_bytes(rng),
                int(rng.integers(128, 256)),
                int(rng.integers(spreads[0] + 1)),
                int(rng.integers(spreads[1] + 1)),
            )
            for _ in range(rng.integers(1, 3))
        ]
        rows.append((fmt, blocks, int(rng.integers(256))))
    rows = [rows[i] for i in rng.permutation(len(rows))]
    got = run_rows(config, rows, 12, gap)
    assert got == [(exact(r), r[2]) for r in rows]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("fmt", "spreads"),
    [(FP8, {}), (INT8, {"fp8_spread": 1, "weight_spread": 14, "router_spread": 1})],
    ids=["fp8", "int8"],
)
def test_tile_reaches_the_bound(fmt: WeightFormat, spreads: dict[str, int], sign: int) -> None:
    """The largest operands in the format that defines ``acc_bound`` reach it, and the width holds them."""
    config = tile_config(**spreads)
    assert config.shift_max == config.weight_spread + config.activation_spread + 3
    codes = [sign * fmt.max_magnitude] * BLOCK
    shifts = config.spread(fmt), config.activation_spread
    blocks: list[Block] = [(codes, [127] * BLOCK, 255, *shifts)] * config.max_blocks
    row: Row = (fmt, blocks, 255)
    assert abs(exact(row)) == config.acc_bound
    assert run_rows(config, [row, row], 13, 0.0) == [(sign * config.acc_bound, 255)] * 2


@pytest.mark.parametrize("sign", [1, -1])
def test_tile_holds_the_largest_router_row(sign: int) -> None:
    """INT16 x INT16 as high bytes, then low bytes: 64 x 256, and -128 below 64 x 256."""
    config = tile_config(router_spread=6)
    weights = [sign * INT16.max_magnitude] * BLOCK
    high: Block = (weights, [64] * BLOCK, 255, 6, 14)
    low: Block = (weights, [-128] * BLOCK, 255, 6, 6)
    zero: Block = (weights, [0] * BLOCK, 255, 6, 6)
    rows: list[Row] = [(INT16, [high, high, zero, zero], 1), (INT16, [high, high, low, low], 2)]
    got = run_rows(config, rows, 14, 0.0)
    assert [acc for acc, _ in got] == [exact(r) for r in rows]
    assert abs(exact(rows[0])) == config.acc_bound
