"""The compute-in-memory macro and the tile around it, against integers, on their published timing."""

from typing import Any

import numpy as np
import pytest
from amaranth_bench import clock, simulate

from hw.cim.macro import Macro
from hw.pe.tile import Tile
from sw_model.config import HardwareConfig
from sw_model.formats import BLOCK, INT4, INT8, INT16, WEIGHT_FORMATS, WeightFormat

NOISE = 1 << 256


def pack_plane(codes: list[int], fmt: WeightFormat, plane: int) -> int:
    """The macro word of one nibble plane (0 = most significant), lane 0 lowest; the sign tops the first."""
    word = 0
    for lane, code in enumerate(codes):
        bits = abs(code) | (code < 0) << (4 * fmt.planes - 1)
        word |= (bits >> 4 * (fmt.planes - 1 - plane) & 15) << 4 * lane
    return word


def pack_bytes(values: list[int]) -> int:
    return int.from_bytes(np.array(values, dtype=np.int8).tobytes(), "little")


def random_codes(rng: np.random.Generator, fmt: WeightFormat) -> list[int]:
    most = fmt.max_magnitude
    if rng.random() < 0.3:
        return rng.choice([-most, most, 0, 1, -1, 8, -8], BLOCK).clip(-most, most).tolist()
    return rng.integers(-most, most + 1, BLOCK).tolist()


def random_bytes(rng: np.random.Generator) -> list[int]:
    if rng.random() < 0.3:
        return rng.choice([-128, 127, -127, 0, 1], BLOCK).tolist()
    return rng.integers(-128, 128, BLOCK).tolist()


@pytest.mark.parametrize("loaded", [False, True], ids=["baked", "loaded"])
def test_macro(loaded: bool) -> None:
    """Words of all formats in one stream, gaps in between; noise on every input that should not matter."""
    rng = np.random.default_rng(loaded)
    depth = 37
    codes, words, planes = [], [], []
    while len(words) < depth - 4:
        fmt = list(WEIGHT_FORMATS.values())[rng.integers(3)]
        codes.append((random_codes(rng, fmt), fmt))
        words += [pack_plane(codes[-1][0], fmt, p) for p in range(fmt.planes)]
        planes += [(len(codes) - 1, p) for p in range(fmt.planes)]
    words = words[:depth]
    planes = planes[:depth]
    dut = Macro(depth, None if loaded else words)

    def digit(at: int) -> list[int]:
        block, plane = planes[at]
        values, fmt = codes[block]
        return [(abs(c) >> 4 * (fmt.planes - 1 - plane) & 15) * (-1 if c < 0 else 1) for c in values]

    # A schedule: whole blocks in random order (planes of a block in order, gaps allowed), None = no read.
    starts = [at for at, (_, p) in enumerate(planes) if p == 0]
    schedule: list[int | None] = []
    for at in rng.permutation(starts * 3).tolist():
        while True:
            schedule += [None] * int(rng.integers(0, 3)) if rng.random() < 0.3 else []
            schedule.append(at)
            at += 1
            if at >= len(planes) or planes[at][1] == 0:
                break
    acts = [random_bytes(rng) for _ in schedule]

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
            at = schedule[t] if t < len(schedule) else None
            ctx.set(dut.read_en, at is not None)
            ctx.set(dut.read_addr, int(rng.integers(depth)) if at is None else at)
            ctx.set(dut.write_addr, int(rng.integers(depth)))
            late = t - dut.ACT_DELAY
            now = schedule[late] if 0 <= late < len(schedule) else None
            ctx.set(dut.first_plane, 0 if now is None else planes[now][1] == 0)
            ctx.set(dut.act, pack_bytes(random_bytes(rng) if now is None else acts[late]))
            seen.append((await clock(ctx, dut.sum))[0])
        for t, at in enumerate(schedule):
            if at is not None:
                want = sum(d * a for d, a in zip(digit(at), acts[t], strict=True))
                assert seen[t + dut.LATENCY] == want, (t, at)

    simulate(dut, bench)


def test_macro_largest_sum() -> None:
    """Every lane -15 x -128, the most that a nibble and a low byte can give, fits; and its negative."""
    codes = [-INT8.max_magnitude] * BLOCK
    dut = Macro(2, [pack_plane(codes, INT8, p) for p in range(2)])

    async def bench(ctx: Any) -> None:
        for act, want in ((-128, [7 * 128 * 32, 15 * 128 * 32]), (127, [-7 * 127 * 32, -15 * 127 * 32])):
            ctx.set(dut.act, pack_bytes([act] * BLOCK))
            ctx.set(dut.read_en, 1)
            seen = []
            for t in range(2 + dut.LATENCY):
                ctx.set(dut.read_addr, min(t, 1))
                ctx.set(dut.first_plane, t == dut.ACT_DELAY)
                seen.append((await clock(ctx, dut.sum))[0])
            assert seen[dut.LATENCY :] == want

    simulate(dut, bench)


def tile_config(**overrides: int) -> HardwareConfig:
    shape = {"tiles": 1, "words": 256, "scales": 64, "max_hidden": 64, "max_intermediate": 64}
    return HardwareConfig(name="tile", **{**shape, "max_experts": 4, "max_top_k": 2, **overrides})


Block = tuple[list[int], list[int], int, int, int]  # codes, bytes, mant, scale shift, act shift
Row = tuple[WeightFormat, list[Block], int]  # format, blocks, row exponent


def pack_scale(mant: int, shift: int, row_exp: int) -> int:
    return row_exp << 12 | shift << 7 | mant - 128


def run_rows(config: HardwareConfig, rows: list[Row], seed: int, gap: float) -> list[tuple[int, int]]:
    """(acc, row_exp) of each row, all rows through one tile back to back (or with idle cycles)."""
    rng = np.random.default_rng(seed)
    words = [pack_plane(b[0], fmt, p) for fmt, blocks, _ in rows for b in blocks for p in range(fmt.planes)]
    scales = [pack_scale(b[2], b[3], exp) for _, blocks, exp in rows for b in blocks]
    dut = Tile(config)
    events: dict[int, dict[str, int]] = {}

    def at(cycle: int, **signals: int) -> None:
        events.setdefault(cycle, {}).update(signals)

    t = word = scale = 0
    ends = []
    for fmt, blocks, _ in rows:
        for b, (_, act, _, _, act_shift) in enumerate(blocks):
            for plane in range(fmt.planes):
                while plane == 0 and rng.random() < gap:  # the planes of a block follow each other
                    t += 1
                at(t, word_addr=word, word_en=1)
                at(t + Tile.ACT_AT, act=pack_bytes(act), first_plane=plane == 0)
                at(t + Tile.BLOCK_AT, start_block=plane == 0)
                if plane == fmt.planes - 1:
                    at(t + Tile.SCALE_AT, scale_addr=scale)
                    at(t + Tile.SHIFT_AT, act_shift=act_shift)
                    at(t + Tile.ADD_AT, add=1, start_row=b == 0)
                    scale += 1
                t, word = t + 1, word + 1
        ends.append(t - 1 + Tile.LATENCY)
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
            }
            # A plane that continues must not meet a false start, so these are noise only where nothing runs.
            quiet = {"word_en": 0, "add": 0, "first_plane": 0, "start_block": 0}
            for name, value in {**noise, **quiet, **events.get(cycle, {})}.items():
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
def test_tile(gap: float) -> None:
    rng = np.random.default_rng(11)
    config = tile_config()
    rows: list[Row] = []
    for _ in range(24):
        fmt = (INT4, INT8, INT16)[rng.integers(3)]
        spreads = (config.router_spread, config.router_spread + 8) if fmt is INT16 else (8, 10)
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
    got = run_rows(config, rows, 12, gap)
    assert got == [(exact(r), r[2]) for r in rows]


@pytest.mark.parametrize("sign", [1, -1])
def test_tile_reaches_the_bound(sign: int) -> None:
    """The largest operands of an expert pass reach ``acc_bound``, and its width holds them."""
    config = tile_config(router_spread=1)
    assert config.shift_max == 18
    blocks: list[Block] = [([sign * 127] * BLOCK, [127] * BLOCK, 255, 8, 10)] * config.max_blocks
    row: Row = (INT8, blocks, 255)
    assert abs(exact(row)) == config.acc_bound
    assert run_rows(config, [row, row], 13, 0.0) == [(sign * config.acc_bound, 255)] * 2


@pytest.mark.parametrize("sign", [1, -1])
def test_tile_holds_the_largest_router_row(sign: int) -> None:
    """INT16 x INT16 as high bytes, then low bytes: 64 x 256, and -128 below 64 x 256."""
    config = tile_config()
    weights = [sign * INT16.max_magnitude] * BLOCK
    high: Block = (weights, [64] * BLOCK, 255, 4, 12)
    low: Block = (weights, [-128] * BLOCK, 255, 4, 4)
    zero: Block = (weights, [0] * BLOCK, 255, 4, 4)
    rows: list[Row] = [(INT16, [high, high, zero, zero], 1), (INT16, [high, high, low, low], 2)]
    got = run_rows(config, rows, 14, 0.0)
    assert [acc for acc, _ in got] == [exact(r) for r in rows]
    assert abs(exact(rows[0])) <= config.acc_bound
