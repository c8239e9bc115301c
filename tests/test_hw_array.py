"""The array: random passes back to back, rows against integers, whatever the drain does."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from amaranth_bench import PACES, Sink, Source, clock, raw, simulate, transfer
from test_hw_macro_tile import STEPS, pack_bytes, pack_scale, pack_word, random_bytes, random_codes

from hw.pe.array import PeArray
from hw.pe.drain import Kind
from hw.pe.lookup_array import LookupArray
from sw_model.config import HardwareConfig
from sw_model.formats import BLOCK, FP8, INT4, INT8, INT16, MXFP4, WeightFormat
from sw_model.timing import Line, Pass
from sw_model.topology import slot_beats, splits

#: Macro word of codes: (codes, format, number of the word in the block).
Pack = Callable[[list[int], WeightFormat, int], int]
NOISE_WORD, NOISE_SCALE = (1 << 128) - 1, (1 << 20) - 1


def small_config(tiles: int, columns: int = 1, drain: int = 1, act_bits: int = 0) -> HardwareConfig:
    """``act_bits``: those of body "asic"; 0: body "dsp"."""
    body: dict[str, Any] = {"body": "asic", "act_bits": act_bits} if act_bits else {}
    return HardwareConfig(
        name="array", tiles=tiles, words=512, scales=256, max_hidden=128, max_intermediate=96, max_experts=4,
        max_top_k=2, columns=columns, drain=drain, **body,
    )  # fmt: skip


class Activations:
    """What an activation buffer would hand out: bytes and a shift for every (from_h, bank, set, block)."""

    def __init__(self, rng: np.random.Generator, config: HardwareConfig) -> None:
        self.most = {0: config.activation_spread, 1: config.router_spread + 8, 2: config.router_spread}
        self.rng = rng
        self.blocks: dict[tuple[int, int, int, int], tuple[list[int], int]] = {}

    def __getitem__(self, key: tuple[int, int, int, int]) -> tuple[list[int], int]:
        if key not in self.blocks:
            self.blocks[key] = random_bytes(self.rng), int(self.rng.integers(self.most[key[2]] + 1))
        return self.blocks[key]


class Matrix:
    """A random matrix at a place in the tiles' memories, and the pass over it."""

    def __init__(
        self,
        rng: np.random.Generator,
        config: HardwareConfig,
        rows: int,
        blocks: int,
        fmt: WeightFormat,
        split: int | None = None,
    ) -> None:
        self.fmt, self.rows, self.blocks = fmt, rows, blocks
        spread = config.spread(fmt)
        self.steps, self.words = STEPS[fmt.name]
        self.codes = [[random_codes(rng, fmt) for _ in range(blocks)] for _ in range(rows)]
        self.scales = [
            [(int(rng.integers(128, 256)), int(rng.integers(spread + 1))) for _ in range(blocks)]
            for _ in range(rows)
        ]
        self.row_exp = rng.integers(1, 255, rows).tolist()
        self.split = int(rng.integers(config.columns.bit_length())) if split is None else split
        self.wide = int(fmt is INT16)
        self.high = int(config.body != "lut" and rng.integers(2))
        self.nibbles = fmt.macs
        if self.high and fmt is INT8:  # one step, on the first of two words
            self.steps = self.nibbles = 1
        self.info = {
            "kind": Kind.ROUTER if self.wide else [Kind.GATE_UP, Kind.DOWN][int(rng.integers(2))],
            "rows": rows,
            "split": self.split,
            "base": int(rng.integers(-900, 500)),
            "weight": int(rng.integers(1 << 23)),
            **{name: int(rng.integers(2)) for name in ("first", "final")},
        }
        self.slot_cycles = -(-blocks >> self.split) * (1 + self.wide) * self.steps
        self.job = {
            "rows": rows,
            "blocks": blocks,
            "split": self.split,
            "format": fmt.code,
            "from_h": int(not self.wide and rng.integers(2)),
            "wide": self.wide,
            "high": self.high,
            "bank": int(rng.integers(2)),
            "act": int(rng.integers(3)),
        }

    def place(
        self, word: int, scale: int, tiles: int, pack: Pack = pack_word
    ) -> tuple[list[tuple], int, int]:
        """(kind, tile, address, value) of every word and scale, zeros where blocks do not fill the tiles of a
        row; the addresses after the last."""
        width = 1 << self.split
        groups, shares = tiles // width, -(-self.blocks // width)
        self.job |= {"word": word, "scale": scale}
        writes = []
        for r in range(self.rows):
            for b in range(shares * width):
                at, tile = r // groups * shares + b // width, r % groups * width + b % width
                there = b < self.blocks
                entry = pack_scale(*self.scales[r][b], self.row_exp[r]) if there else 0
                writes.append(("scale", tile, scale + at, entry))
                for n in range(self.words):
                    value = pack(self.codes[r][b] if there else [0] * BLOCK, self.fmt, n)
                    writes.append(("word", tile, word + at * self.words + n, value))
        slots = -(-self.rows // groups)
        return writes, word + slots * shares * self.words, scale + slots * shares

    def results(self, acts: Activations) -> list[tuple[int, int, int, int]]:
        """(acc, row_exp, index, last) of each row."""
        out = []
        for r in range(self.rows):
            acc = 0
            for s in (1, 2) if self.wide else (0,):
                for b in range(self.blocks):
                    act, shift = acts[self.job["from_h"], self.job["bank"], s, self.job["act"] + b]
                    mant, up = self.scales[r][b]
                    codes = self.codes[r][b]
                    if self.high and self.fmt is INT8:
                        codes = [int(c / 16) * 16 + (c > 15) * 8 - (c < -15) * 8 for c in codes]
                    acc += sum(c * a for c, a in zip(codes, act, strict=True)) * mant << up + shift
            out.append((acc, self.row_exp[r], r, int(r == self.rows - 1)))
        return out


def check_passes(
    dut: Any,
    rng: np.random.Generator,
    config: HardwareConfig,
    matrices: list[Matrix],
    acts: Activations,
    pack: Pack = pack_word,
    **clocks: float,
) -> None:
    """Load the matrices, run passes over them in a random order at every pace, compare rows and counts."""
    tiles, columns, drain = config.tiles, config.columns, config.drain
    writes, word, scale = [], 3, 5
    for m in matrices:
        more, word, scale = m.place(word, scale, tiles, pack)
        writes += more
    assert word <= config.words and scale <= config.scales
    order = [matrices[int(i)] for i in rng.permutation(np.repeat(np.arange(len(matrices)), 2))]
    items = [raw(dut.i, job=m.job, info=m.info) for m in order]
    parts = isinstance(dut, LookupArray)
    waiting: deque[tuple[int, int]] = deque([(0, 0)] * (dut.act_at - 1), maxlen=dut.act_at)

    def blocks_of(step: Any) -> tuple[int, int]:
        """Bytes and shifts of every column, those beyond the matrix at random."""
        act = shift = 0
        for c in range(columns):
            values, up = acts[step.from_h, step.bank, step.set, step.act + c % (1 << step.split)]
            act |= pack_bytes(values) << 256 * c
            shift |= up << 5 * c
        if parts:  # of the blocks, a part at a time
            return act >> len(dut.act) * step.word & (1 << len(dut.act)) - 1, shift & 31
        return act, shift

    async def bench(ctx: Any) -> None:
        for what, tile, address, value in rng.permutation(np.array(writes, dtype=object)).tolist():
            ctx.set(dut.load_tile, tile)
            ctx.set(dut.load_addr, address)
            ctx.set(dut.load_word, value if what == "word" else NOISE_WORD)
            ctx.set(dut.load_scale, value if what == "scale" else NOISE_SCALE)
            ctx.set(dut.load_word_en, what == "word")
            ctx.set(dut.load_scale_en, what == "scale")
            await clock(ctx)
        ctx.set(dut.load_word_en, 0)
        ctx.set(dut.load_scale_en, 0)

        for offer, accept in (*PACES, (1.0, 0.05)):
            reads = passes = cycles = 0

            def each(valid: int, step: Any, active: int, read: int, compute: int) -> None:
                nonlocal reads, passes, cycles
                cycles += active
                reads += read
                passes += compute
                assert valid or not (active or read or compute)
                if valid:
                    waiting.append(blocks_of(step))
                else:
                    waiting.append((int(rng.integers(1 << 62)), 31))
                act, shift = waiting.popleft()
                ctx.set(dut.act, act)
                ctx.set(dut.act_shift, shift)

            chosen = order if offer == accept == 1 else order[:9]
            sink = Sink(dut.o, sum(-(-m.rows // drain) for m in chosen), accept)
            await transfer(
                ctx, rng, [Source(dut.i, items[: len(chosen)], offer)], [sink],
                watch=(dut.step_valid, dut.step, dut.active, dut.reads, dut.computes),
                each=each,
            )  # fmt: skip
            blocks = [m.rows * m.blocks * (1 + m.wide) for m in chosen]
            assert reads == sum(n * min(m.words, m.steps) for n, m in zip(blocks, chosen, strict=True))
            assert passes == sum(n * m.nibbles for n, m in zip(blocks, chosen, strict=True))
            assert cycles == config.step_cycles * sum(
                -(-m.rows // (tiles >> m.split)) * -(-m.blocks >> m.split) * (1 + m.wide) * m.steps
                for m in chosen
            )
            got = iter(sink.got)
            for n, m in enumerate(chosen):
                want = m.results(acts)
                while want:
                    beat = next(got)
                    rows = beat.rows[: beat.count]
                    there, want = want[: len(rows)], want[len(rows) :]
                    assert [(row.acc, row.row_exp) for row in rows] == [row[:2] for row in there], n
                    assert (beat.index, beat.last) == (there[0][2], not want), (offer, accept, n)
                    assert len(rows) == drain or beat.last
                    info = {name: getattr(beat.info, name) for name in m.info}
                    assert info == m.info

    simulate(dut, bench, **clocks)


@pytest.mark.parametrize(
    ("tiles", "columns", "drain", "act_bits"),
    [
        *[(1, 1, 1, 0), (2, 1, 1, 0), (4, 1, 2, 0), (2, 2, 2, 0), (4, 4, 4, 0), (8, 4, 1, 0), (8, 4, 4, 0)],
        *[(8, 1, 4, 0), (8, 8, 2, 0), (2, 1, 1, 1), (4, 4, 2, 2), (4, 2, 4, 4), (2, 2, 1, 8)],
    ],
)
def test_passes(tiles: int, columns: int, drain: int, act_bits: int) -> None:
    rng = np.random.default_rng(tiles)
    config = small_config(tiles, columns, drain, act_bits)
    acts = Activations(rng, config)
    shapes = [
        (5, 2, INT16),
        (7, 1, INT4),
        (6, 3, INT8),
        (1, 1, INT4),
        (1, 1, INT4),
        (3, 1, INT16),
        (9, 1, INT4),
    ]
    shapes += [(5, 2, FP8), (3, 2, MXFP4), (1, 1, FP8), (2 * tiles + 1, 1, MXFP4)]
    shapes += [(5, 3, INT8), (1, 1, INT8), (2 * tiles, 2, INT8)]
    shapes += [(2 * tiles, 1, INT4), (4 * tiles + 1, 1, INT4), (1, 3, INT8), (tiles, 2, INT16)]
    matrices = [Matrix(rng, config, *shape) for shape in shapes]
    check_passes(PeArray(config), rng, config, matrices, acts)


@pytest.mark.parametrize("fmt", [INT8, FP8], ids=lambda f: f.name)
@pytest.mark.parametrize(("tiles", "columns", "act_bits"), [(2, 1, 0), (4, 4, 0), (2, 1, 1), (4, 4, 4)])
def test_throughput(fmt: WeightFormat, tiles: int, columns: int, act_bits: int) -> None:
    """A free drain: the array works without a gap at the macros' pace, over the ends of rows and passes, also
    where the next pass has another split."""
    rng = np.random.default_rng(9)
    config = small_config(tiles, columns, act_bits=act_bits)
    dut = PeArray(config)
    splits = [n % columns.bit_length() for n in range(5)]
    passes = [Matrix(rng, config, rows=6, blocks=4, fmt=fmt, split=split) for split in splits]
    active: list[int] = []

    async def bench(ctx: Any) -> None:
        for m in passes:
            m.place(0, 0, tiles)
        sink = Sink(dut.o, sum(m.rows for m in passes))
        source = Source(dut.i, [raw(dut.i, job=m.job, info=m.info) for m in passes])
        await transfer(ctx, rng, [source], [sink], watch=(dut.active,), each=active.append)
        shares = [4 >> split for split in splits]
        slots = [-(-6 // (tiles >> split)) for split in splits]
        steps = sum(
            a * b * m.steps * config.step_cycles for a, b, m in zip(shares, slots, passes, strict=True)
        )
        first = active.index(1)
        assert active[first : first + steps] == [1] * steps
        assert sum(active) == steps
        # First row: after its slot's last step, the array's latency and the drain.
        last_step = first + shares[0] * passes[0].steps * config.step_cycles - 1
        assert sink.cycles[0] == last_step + dut.latency + 2

    simulate(dut, bench)


@pytest.mark.parametrize(
    ("tiles", "columns", "drain", "act_bits"), [(2, 1, 1, 0), (8, 4, 1, 0), (8, 8, 4, 0), (4, 4, 2, 2)]
)
def test_a_pass_takes_what_the_model_says(tiles: int, columns: int, drain: int, act_bits: int) -> None:
    """From its first step to its last row at a free drain, bound by steps, by rows, or by their places."""
    rng = np.random.default_rng(tiles)
    config = small_config(tiles, columns, drain, act_bits)
    dut = PeArray(config)
    shapes = [
        (rows, blocks, fmt)
        for rows in (1, 3 * tiles + 1, 20 * tiles)
        for blocks, fmt in ((1, INT4), (3, INT8))
    ]
    passes = [
        Matrix(rng, config, *shape, split) for shape in [*shapes, (5, 2, INT16)] for split in splits(columns)
    ]

    async def bench(ctx: Any) -> None:
        for m in passes:
            active: list[int] = []
            m.place(0, 0, tiles)
            sink = Sink(dut.o, -(-m.rows // drain))
            source = Source(dut.i, [raw(dut.i, job=m.job, info=m.info)])
            await transfer(ctx, rng, [source], [sink], watch=(dut.active,), each=active.append)
            line = Line(dut.latency + 1)
            line.run(Pass(m.slot_cycles * config.step_cycles, slot_beats(m.rows, tiles, m.split, drain)), 0)
            assert sink.cycles[-1] + 1 - active.index(1) == line.out, (m.rows, m.blocks, m.fmt.name, m.split)

    simulate(dut, bench)
