"""Host side: token framing, weight packets."""

from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator
from amaranth_bench import PACES, Sink, Source, clock, raw, simulate, transfer

from hw.host.tokens import TokenInput
from hw.host.weights import WeightLoader
from sw_model.config import HardwareConfig
from sw_model.packets import Kind, capacities, packet

OKAY, SLVERR = 0, 2


# --- tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [1, 2, 5])
def test_token_input(hidden: int) -> None:
    """Tokens of every length around the right one: those of another are taken back, and flagged once."""
    rng = np.random.default_rng(hidden)
    lengths = [hidden] * 3 + rng.integers(1, 2 * hidden + 2, 40).tolist() + [hidden]
    tokens = [rng.integers(1, 1 << 32, n).tolist() for n in lengths]
    dut = TokenInput()
    items = [raw(dut.i, bits=v, last=i == len(t) - 1) for t in tokens for i, v in enumerate(t)]
    passed = sum(min(n, hidden) for n in lengths)
    discards: list[int] = []
    flags: list[int] = []

    def watch(valid: int, ready: int, discard: int, error: int) -> None:
        flags.append(error)
        if valid and ready:
            discards.append(discard)

    async def bench(ctx: Any) -> None:
        ctx.set(dut.hidden, hidden)
        for offer, accept in PACES:
            flags.clear()
            discards.clear()
            sink = Sink(dut.o, passed, accept)
            probes = (dut.o.valid, dut.o.ready, dut.discard, dut.length_error)
            await transfer(ctx, rng, [Source(dut.i, items, offer)], [sink], watch=probes, each=watch)
            kept, token = [], []
            for p, discard in zip(sink.got, discards, strict=True):
                token.append(p.bits)
                if discard:
                    token = []
                elif p.last:
                    kept.append(token)
                    token = []
            assert kept == [t for t in tokens if len(t) == hidden] and not token
            assert sum(flags) == sum(discards) == sum(n != hidden for n in lengths)

    simulate(dut, bench)


# --- weights ------------------------------------------------------------------------------------------------


def test_weight_loader() -> None:
    """Packets of every kind back to back: every write once, in order, at its place; those that do not fit, or
    whose end comes early or late, are flagged once and write nothing beyond their length and their memory."""
    rng = np.random.default_rng(1)
    config = HardwareConfig(
        name="loader", tiles=8, words=300, scales=128, max_hidden=32, max_intermediate=32, max_experts=10,
        max_top_k=2, max_domains=3,
    )  # fmt: skip
    rooms = capacities(config)
    assert rooms == dict(zip(sorted(rooms), (300, 128, 11, 10, 10, 48, 10), strict=True))
    whole = {Kind.WORDS, Kind.CONTEXTS}  # a beat an entry; four entries a beat otherwise
    # tile, kind, start, beats that the header names, beats that come
    packets = [(3, 0, 7, 3, 3), (1, 1, 100, 2, 2), (7, 0, 299, 1, 1), (0, 1, 124, 1, 1), (0, 2, 10, 1, 1)]
    packets += [(0, kind, 4, 2, 2) for kind in rooms]  # tables of ten: two entries of padding
    packets += [(8, 0, 0, 1, 1), (65535, 1, 0, 1, 1), (9, 3, 0, 1, 1), (0, 0, 299, 2, 2), (0, 0, 300, 1, 1)]
    packets += [(0, 0, (1 << 32) - 1, 2, 2), (0, 1, 128, 1, 1), (0, 3, 9, 1, 1), (0, 3, 12, 1, 1)]
    packets += [(0, 0, 0, (1 << 32) - 1, 2), (0, 1, 0, 1 << 30, 1), (0, 2, 11, 1, 1)]
    packets += [(0, 0, 3, 3, 2), (0, 0, 3, 2, 4), (2, 1, 8, 2, 1), (2, 1, 8, 1, 2), (0, 0, 0, 0, 1)]
    packets += [(0, kind, 0, 0, 0) for kind in Kind]
    packets += [(0, 7, 0, 1, 1)]  # a page's end has no data
    for _ in range(60):
        beats = int(rng.integers(1, 4))
        packets.append((int(rng.integers(9)), int(rng.integers(7)), int(rng.integers(40)), beats, beats))
    dut = WeightLoader(config)
    items, want, errors = [], [], 0
    for tile, kind, start, beats, come in packets:
        noise = int(rng.integers(1 << 12)) << 20 | int(rng.integers(1 << 31)) << 96  # bits that mean nothing
        header = tile | kind << 16 | start << 32 | beats << 64 | noise
        items.append(raw(dut.i, data=header, last=come == 0))
        entries = 1 if kind in whole else 4
        room = rooms.get(kind, 0)
        fits = beats and start + beats * entries <= (room if kind in whole else room + 3)
        fits = fits and (tile < config.tiles or kind > Kind.SCALES)
        errors += not fits or come != beats
        for b in range(come):
            data = int.from_bytes(rng.bytes(16), "little")
            items.append(raw(dut.i, data=data, last=b == come - 1))
            lanes = [data] if kind in whole else [data >> 32 * n & 0xFFFFFFFF for n in range(4)]
            want += [
                (kind, tile, start + entries * b + n, lane)
                for n, lane in enumerate(lanes)
                if fits and b < beats and start + entries * b + n < room
            ]
    got: list[tuple] = []
    flags: list[int] = []

    def watch(tile: int, addr: int, word: int, lane: int, error: int, *enables: int) -> None:
        assert sum(enables) <= 1
        flags.append(error)
        for kind, enable in zip(sorted(rooms), enables, strict=True):
            if enable:
                got.append((kind, tile, addr, word if kind in whole else lane))

    async def bench(ctx: Any) -> None:
        ctx.set(dut.located, 1)
        enables = [getattr(dut, f"{kind.name.lower()}_en") for kind in sorted(rooms)]
        probes = (dut.tile, dut.addr, dut.word, dut.lane, dut.error, *enables)
        for offer in (1.0, 0.3, 0.7):
            got.clear()
            flags.clear()
            cycles = await transfer(ctx, rng, [Source(dut.i, items, offer)], [], watch=probes, each=watch)
            for _ in range(6):
                watch(*await clock(ctx, *probes))
            assert got == want
            assert sum(flags) == errors > 20
            if offer == 1:
                most = sum(3 + n * (1 if kind in whole else 4) for _, kind, _, _, n in packets)
                assert cycles <= most

    simulate(dut, bench)


def test_weight_loader_places_pages() -> None:
    """Addresses of a paged packet count from its slot; a page not asked for, or with an error, is none."""
    config = HardwareConfig(
        name="loader", tiles=2, words=256, scales=256, max_hidden=32, max_intermediate=32, max_experts=16,
        max_top_k=2, page_slots=4,
    )  # fmt: skip
    dut = WeightLoader(config)
    words, scales, word_at, scale_at = 20, 12, 100, 48
    rng = np.random.default_rng(7)

    def random(*shape: int) -> np.ndarray:
        return rng.integers(0, 1 << 32, shape, dtype=np.uint32)

    context = np.array([3 << 24 | 5, 6, 1 << 28 | 7, 9], np.uint32)
    page = [
        packet(Kind.CONTEXTS, context, page=9),
        packet(Kind.WORDS, random(20, 4), tile=1, page=9),
        packet(Kind.SCALES, random(8), tile=0, start=4, page=9),
    ]
    bad = [
        packet(Kind.WORDS, random(2, 4), start=19, page=9),
        packet(Kind.SCALES, random(16), page=9),
        packet(Kind.CONTEXTS, random(2, 4), page=9),
        packet(Kind.BIASES, random(4), page=9),
        packet(Kind.WORDS, random(1, 4), page=8),  # not asked for
    ]
    end = packet(Kind.PAGE, page=9)
    stream = [*page, end, *[p for b in bad for p in (*page, b, end)], packet(Kind.PAGE, page=8), *page, end]
    done: list[int] = []
    got: list[tuple] = []
    errors: list[int] = []

    async def answer(ctx: Any) -> None:
        while True:
            locate, expert = await clock(ctx, dut.locate, dut.page)
            ctx.set(dut.located, 0)
            if locate:
                for _ in range(3):
                    await clock(ctx)
                ctx.set(dut.location.wanted, expert == 9)
                ctx.set(dut.location.word, word_at)
                ctx.set(dut.location.scale, scale_at)
                ctx.set(dut.located, 1)

    def watch(
        tile: int, addr: int, word: int, en: int, scale: int, context_en: int, end: int, e: int
    ) -> None:
        done.append(end)
        errors.append(e)
        if en or scale or context_en:
            got.append((tile, addr, word if context_en else (en, scale)))

    async def bench(ctx: Any) -> None:
        ctx.set(dut.page_words, words)
        ctx.set(dut.page_scales, scales)
        items = [
            raw(dut.i, data=int.from_bytes(beat.tobytes(), "little"), last=i == len(p) - 1)
            for p in stream
            for i, beat in enumerate(p)
        ]
        probes = (dut.tile, dut.addr, dut.word, dut.words_en, dut.scales_en, dut.contexts_en)
        probes += (dut.page_done, dut.error)
        await transfer(ctx, rng, [Source(dut.i, items, 0.7)], [], watch=probes, each=watch)
        for _ in range(6):
            watch(*await clock(ctx, *probes))

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(answer, background=True)
    simulator.add_testbench(bench)
    simulator.run()
    moved = [3 << 24 | 105, 54, 1 << 28 | 107, 57]
    once = [(0, 9, sum(int(v) << 32 * i for i, v in enumerate(moved)))]
    once += [(1, word_at + i, (1, 0)) for i in range(20)] + [(0, scale_at + 4 + i, (0, 1)) for i in range(8)]
    assert got == once * (2 + len(bad))
    assert sum(done) == 2  # the first and the last
    assert sum(errors) == 2 * len(bad) + 1  # the packet, and then the page's end
