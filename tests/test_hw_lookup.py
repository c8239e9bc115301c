"""The lookup array, from its tables to whole passes, against integers."""

from typing import Any

import numpy as np
import pytest
from amaranth.hdl import DomainRenamer, Module
from amaranth_bench import Sink, Source, clock, raw, simulate, transfer
from test_hw_array import Activations, Matrix, check_passes
from test_hw_macro_tile import STEPS, pack_bytes, random_bytes, random_codes

from hw.cim.lookup import LookupMacro
from hw.cim.tables import GROUP, GROUPS, BlockSums, TableGenerator
from hw.pe.lookup_array import ARRAY_DOMAIN, LookupArray
from sw_model.compiler import pack_words
from sw_model.config import HardwareConfig
from sw_model.formats import BLOCK, INT4, INT8, INT16, WeightFormat


def pack(codes: list[int], fmt: WeightFormat, word: int) -> int:
    """The macro word of one nibble (0 = most significant) of two's complement, bit plane by bit plane."""
    down = 4 * (STEPS[fmt.name][1] - 1 - word)
    value = 0
    for k in range(4):
        for g in range(GROUPS):
            bits = [codes[GROUP * g + i] >> down + k & 1 for i in range(GROUP)]
            minus = bits[3] == (k == 3 and word == 0)
            nibble = sum((b ^ bits[3]) << i for i, b in enumerate(bits[:3])) | minus << 3
            value |= nibble << 4 * (8 * k + g)
    return value


def halves(act: list[int]) -> int:
    """What the words of a block lack: half of each group's sum, rounded up."""
    return sum(-(-sum(act[g : g + GROUP]) // 2) for g in range(0, BLOCK, GROUP))


def odd_groups(act: list[int]) -> int:
    return sum(sum(act[g : g + GROUP]) % 2 for g in range(0, BLOCK, GROUP))


def entry(group: list[int], r: int) -> int:
    """u[r] of four activations."""
    return (group[3] + sum(-x if r >> i & 1 else x for i, x in enumerate(group[:3]))) >> 1


EXTREME = [[-128] * BLOCK, [127] * BLOCK, [-128, -128, -128, 127] * GROUPS, [127, 127, 127, -128] * GROUPS]


@pytest.mark.parametrize("fmt", [INT4, INT8, INT16], ids=lambda f: f.name)
def test_compiler_packs_planes(fmt: WeightFormat) -> None:
    rng = np.random.default_rng(1)
    codes = [random_codes(rng, fmt) for _ in range(20)]
    words = pack_words(np.array(codes), fmt, "lut")
    for block, limbs in zip(codes, words, strict=True):
        for n, four in enumerate(limbs):
            assert sum(int(limb) << 32 * i for i, limb in enumerate(four)) == pack(block, fmt, n)


def test_tables() -> None:
    """Blocks at the shortest distance and at others: entries, parities and offset."""
    rng = np.random.default_rng(2)
    acts = EXTREME + [random_bytes(rng) for _ in range(20)]
    m = Module()
    m.submodules.sums = sums = BlockSums()
    m.submodules.dut = dut = TableGenerator()
    m.d.comb += [sums.act.eq(dut.act), dut.sums.eq(sums.o)]

    async def bench(ctx: Any) -> None:
        for n, act in enumerate(acts):
            ctx.set(dut.act, pack_bytes(act))
            await clock(ctx)
            await clock(ctx)
            ctx.set(dut.load, 1)
            ctx.set(dut.bank, n & 1)
            await clock(ctx)
            ctx.set(dut.load, 0)
            ctx.set(dut.act, pack_bytes(random_bytes(rng)))
            groups = [act[g : g + GROUP] for g in range(0, BLOCK, GROUP)]
            written = set()
            for cycle in range(1, 10 + int(rng.integers(3))):
                write, parity, offset = await clock(ctx, dut.write, dut.parity, dut.offset)
                for g, group in enumerate(groups):
                    bits = [x & 1 for x in group]
                    assert parity[g].x == sum(b << i for i, b in enumerate(bits[:3]))
                    assert parity[g].u == entry(group, 0) & 1 and parity[g].even == 1 - sum(bits) % 2
                    if write.en:
                        assert write.u[g] == entry(group, write.entry) >> 1 & 0xFF
                assert write.en == (2 <= cycle <= 9)
                if write.en:
                    assert write.bank == n & 1
                    written.add(write.entry)
                if cycle >= dut.OFFSET_AT:
                    assert offset == -halves(act)
            assert written == set(range(8))

    simulate(m, bench)


@pytest.mark.parametrize("loaded", [False, True], ids=["baked", "loaded"])
def test_macro(loaded: bool) -> None:
    """Words of every nibble with both banks' tables, one a cycle; noise wherever it should not matter."""
    rng = np.random.default_rng(loaded)
    fmts = [INT4, INT8, INT16]
    blocks = [([-7] * BLOCK, INT4), ([7] * BLOCK, INT4), ([-127] * BLOCK, INT8), ([127] * BLOCK, INT8)]
    blocks += [(random_codes(rng, fmts[n % 3]), fmts[n % 3]) for n in range(20)]
    words, of = [], []
    for codes, fmt in blocks:
        for n in range(STEPS[fmt.name][1]):
            of.append((codes, fmt, n))
            words.append(pack(codes, fmt, n))
    dut = LookupMacro(len(words), None if loaded else words)
    acts = [*EXTREME, random_bytes(rng), random_bytes(rng)]

    async def fill(ctx: Any, bank: int, act: list[int]) -> None:
        for r in rng.permutation(8).tolist():
            ctx.set(dut.table.en, 1)
            ctx.set(dut.table.bank, bank)
            ctx.set(dut.table.entry, r)
            for g in range(GROUPS):
                ctx.set(dut.table.u[g], entry(act[GROUP * g :][:GROUP], r) >> 1 & 0xFF)
            await clock(ctx)
        ctx.set(dut.table.en, 0)

    async def bench(ctx: Any) -> None:
        if loaded:
            for at in rng.permutation(len(words)).tolist():
                ctx.set(dut.write_addr, at)
                ctx.set(dut.write_data, words[at])
                ctx.set(dut.write_en, 1)
                await clock(ctx)
        ctx.set(dut.write_en, 0)
        for pair in zip(acts[::2], acts[1::2], strict=True):
            for bank, act in enumerate(pair):
                await fill(ctx, bank, act)
            plan = [(int(rng.integers(len(words))), int(rng.integers(2))) for _ in range(60)]
            seen = []
            for t in range(len(plan) + dut.LATENCY + 1):

                def at(late: int, t: int = t, plan: list[tuple[int, int]] = plan) -> tuple[int, int]:
                    return plan[t - late] if 0 <= t - late < len(plan) else (0, 0)

                ctx.set(dut.addr, at(0)[0])
                bank = at(dut.TABLE_AT)[1]
                ctx.set(dut.bank, bank)
                for g in range(GROUPS):
                    group = pair[bank][GROUP * g :][:GROUP]
                    ctx.set(dut.parity[g].x, sum((x & 1) << i for i, x in enumerate(group[:3])))
                    ctx.set(dut.parity[g].u, entry(group, 0) & 1)
                    ctx.set(dut.parity[g].even, 1 - sum(group) % 2)
                codes, fmt, n = of[at(dut.OFFSET_AT)[0]]
                act, last = pair[at(dut.OFFSET_AT)[1]], n == STEPS[fmt.name][1] - 1
                ctx.set(dut.offset, -halves(act) * last + 8 * odd_groups(act) * (n == 0))
                seen.append((await clock(ctx, dut.sum))[0])
            for t, (word, bank) in enumerate(plan):
                codes, fmt, n = of[word]
                count, act = STEPS[fmt.name][1], pair[bank]
                digits = [(c >> 4 * (count - 1 - n)) & 15 for c in codes]
                weights = 15
                if n == 0:
                    digits = [d - 16 if d > 7 else d for d in digits]
                    weights = -1
                want = sum(d * x for d, x in zip(digits, act, strict=True)) - weights * halves(act)
                want -= halves(act) if n == count - 1 else 0
                assert seen[t + dut.LATENCY] == want, (t, fmt.name, n)

    simulate(DomainRenamer({"load": "sync"})(dut), bench)


def lookup_config(tiles: int, array_clock: int = 1, drain: int = 1, columns: int = 1) -> HardwareConfig:
    return HardwareConfig(
        name="lookup", tiles=tiles, words=1024, scales=512, max_hidden=96, max_intermediate=160,
        max_experts=4, max_top_k=2, body="lut", array_clock=array_clock, drain=drain, columns=columns,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tiles", "ratio", "drain", "columns"),
    [
        (1, 1, 1, 1),
        pytest.param(3, 1, 1, 1, marks=pytest.mark.slow),
        (2, 2, 1, 1),
        pytest.param(2, 1, 2, 1, marks=pytest.mark.slow),
        pytest.param(8, 1, 4, 1, marks=pytest.mark.slow),
        (4, 1, 2, 1),
        (2, 1, 1, 2),
        (6, 1, 1, 2),
        (4, 2, 2, 2),
        (8, 1, 4, 2),
        pytest.param(8, 1, 8, 1, marks=pytest.mark.slow),
    ],
)
def test_passes(tiles: int, ratio: int, drain: int, columns: int) -> None:
    """Chunks that are full, part and single slots; few rows and many, the array's clock its own or not."""
    rng = np.random.default_rng(tiles)
    config = lookup_config(tiles, ratio, drain, columns)
    acts = Activations(rng, config)
    shapes = [(5, 2, INT16), (7, 1, INT4), (6, 3, INT8), (1, 1, INT4), (3, 1, INT16), (9, 3, INT4)]
    rows = tiles // columns  # at a time
    shapes += [(16 * rows + 3, 2, INT4), (rows, 2, INT16), (2 * rows + 1, 3, INT8)]
    if ratio == 1:
        shapes += [(33 * rows, 1, INT8), (16 * rows, 1, INT8), (2 * rows, 1, INT4)]
    matrices = [Matrix(rng, config, *shape, split=config.split) for shape in shapes]
    clocks = {ARRAY_DOMAIN: 1.03 / ratio} if ratio > 1 else {}
    check_passes(LookupArray(config), rng, config, matrices, acts, pack, **clocks)


def test_throughput() -> None:
    """A word a cycle and tile, over the ends of blocks, chunks and passes, while rows leave as they come."""
    rng = np.random.default_rng(9)
    config = lookup_config(4)
    dut = LookupArray(config)
    m = Matrix(rng, config, rows=16 * 4, blocks=3, fmt=INT8)
    m.place(0, 0, 4, pack)
    passes = 6
    cycles: list[int] = []

    async def bench(ctx: Any) -> None:
        sink = Sink(dut.o, passes * m.rows)
        source = Source(dut.i, [raw(dut.i, job=m.job, info=m.info)] * passes)
        cycles.append(await transfer(ctx, rng, [source], [sink]))

    simulate(dut, bench)
    # 16 slots x 2 steps x 3 blocks of a pass are more than its 64 rows on the way out.
    work = passes * 16 * 2 * 3
    assert work <= cycles[0] <= work + 64 + 60
