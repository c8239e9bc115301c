"""Host side: token framing, weight packets, registers over AXI4-Lite."""

from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Elaboratable, Module
from amaranth.sim import Simulator
from amaranth_bench import PACES, Sink, Source, clock, raw, simulate, transfer

from hw.host.axil import RegisterFile
from hw.host.registers import (
    COUNTERS,
    COUNTERS_AT,
    ID_VALUE,
    LAYER_WIDTHS,
    REGISTERS,
    VERSION_VALUE,
    Access,
    Register,
)
from hw.host.tokens import TokenInput
from hw.host.weights import WeightLoader
from sw_model.config import HardwareConfig
from sw_model.image import REGISTER_NAMES
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


# --- registers ----------------------------------------------------------------------------------------------


class Host:
    """An AXI4-Lite manager with every signal under the test's hand."""

    def __init__(self, ctx: Any, dut: RegisterFile, rng: np.random.Generator | None = None) -> None:
        self.ctx, self.dut, self.rng = ctx, dut, rng

    def set(self, **signals: int) -> None:
        for name, value in signals.items():
            self.ctx.set(getattr(self.dut, name), value)

    def wait(self) -> int:
        """Cycles to wait, none without a generator."""
        return 0 if self.rng is None else int(self.rng.integers(4))

    async def write(self, address: int, value: int, strobes: int = 15) -> int:
        """Address and data each at their own time, the response when it pleases the host."""
        delays = {"aw": self.wait(), "w": self.wait()}
        self.set(awaddr=address, wdata=value, wstrb=strobes, bready=0, awprot=self.wait())
        pending = {"aw", "w"}
        for cycle in range(40):
            for channel in pending:
                self.set(**{f"{channel}valid": cycle >= delays[channel]})
            d = self.dut
            ready = dict(zip(("aw", "w"), await clock(self.ctx, d.awready, d.wready), strict=True))
            for channel in list(pending):
                if cycle >= delays[channel] and ready[channel]:
                    pending.discard(channel)
                    self.set(**{f"{channel}valid": 0})
            if not pending:
                break
        assert not pending
        for _ in range(self.wait()):
            valid, response = await clock(self.ctx, d.bvalid, d.bresp)
            assert valid
        self.set(bready=1)
        valid, response = await clock(self.ctx, d.bvalid, d.bresp)
        assert valid
        self.set(bready=0)
        assert await clock(self.ctx, d.bvalid) == (0,)
        return response

    async def read(self, address: int) -> tuple[int, int]:
        d = self.dut
        self.set(araddr=address, arvalid=1, rready=0, arprot=self.wait())
        while (await clock(self.ctx, d.arready)) != (1,):
            pass
        self.set(arvalid=0, araddr=0xFFC)
        if 0 <= address - COUNTERS_AT < 4 * len(COUNTERS):
            assert await clock(self.ctx, d.rvalid, d.arready) == (0, 0)
        for _ in range(self.wait()):
            assert await clock(self.ctx, d.rvalid, d.arready) == (1, 0)
        self.set(rready=1)
        valid, value, response = await clock(self.ctx, d.rvalid, d.rdata, d.rresp)
        assert valid
        self.set(rready=0)
        assert await clock(self.ctx, d.rvalid) == (0,)
        return value, response


def inputs(dut: RegisterFile) -> list[Register]:
    return [r for r in REGISTERS.values() if hasattr(dut, f"ro_{r.name}")]


class Counted(Elaboratable):
    """A register file beside counters: number i reads (i + 1) * 0x10203040506."""

    def __init__(self) -> None:
        self.dut = RegisterFile()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.dut = dut = self.dut
        with m.If(dut.counter_en):
            m.d.sync += dut.counter.eq((dut.counter_addr + 1) * COUNT)
        return m


COUNT = 0x10203040506


def test_map() -> None:
    """The names and places that the driver and other tools rely on."""
    offsets = [r.offset for r in REGISTERS.values()]
    assert len(set(offsets)) == len(offsets) and all(o % 4 == 0 and o < 1 << 12 for o in offsets)
    assert all(1 <= r.width <= 32 and r.reset < 1 << r.width and r.doc for r in REGISTERS.values())
    for r in REGISTERS.values():
        spans = [set(range(f.lsb, f.lsb + f.width)) for f in r.fields]
        assert sum(map(len, spans)) == len(set().union(*spans)) <= r.width
    assert [REGISTERS[n].offset for n in ("ID", "VERSION", "CONTROL", "STATUS")] == [0, 4, 8, 12]
    assert set(LAYER_WIDTHS) == {n for n, r in REGISTERS.items() if 0x40 <= r.offset < 0x100}
    assert tuple(LAYER_WIDTHS) == REGISTER_NAMES
    assert all(REGISTERS[n].access is Access.RO for n in COUNTERS)
    assert ID_VALUE.to_bytes(4, "big") == b"EXPT"


@pytest.mark.parametrize("waits", [False, True])
def test_every_register(waits: bool) -> None:
    whole = Counted()
    dut = whole.dut
    rng = np.random.default_rng(2)

    async def bench(ctx: Any) -> None:
        host = Host(ctx, dut, rng if waits else None)
        for r in inputs(dut):
            ctx.set(getattr(dut, f"ro_{r.name}"), (r.offset + 1) * 2654435761 % (1 << r.width))
        assert await host.read(0) == (ID_VALUE, OKAY)
        assert await host.read(4) == (VERSION_VALUE, OKAY)
        for r in inputs(dut):
            want = (r.offset + 1) * 2654435761 % (1 << r.width)
            assert await host.read(r.offset) == (want, OKAY), r.name
        for i, name in enumerate(COUNTERS):
            count = (i + 1) * COUNT
            assert await host.read(REGISTERS[name].offset) == (count & 0xFFFFFFFF, OKAY)
            assert await host.read(REGISTERS["COUNTER_HIGH"].offset) == (count >> 32 & 0xFFFF, OKAY)
        values = {}
        for r in REGISTERS.values():
            value = int(rng.integers(1 << 32))
            if r.access is Access.RO:
                before = await host.read(r.offset)
                assert await host.write(r.offset, value) == SLVERR, r.name
                assert await host.read(r.offset) == before
                continue
            assert await host.read(r.offset) == (r.reset, OKAY)
            assert await host.write(r.offset, 0xFFFFFFFF) == OKAY
            pulses = sum(1 << f.lsb for f in r.fields if f.pulse)
            assert await host.read(r.offset) == (((1 << r.width) - 1) & ~pulses, OKAY), r.name
            assert await host.write(r.offset, value) == OKAY
            values[r.name] = value % (1 << r.width) & ~pulses
        for name, value in values.items():  # each holds its own
            assert await host.read(REGISTERS[name].offset) == (value, OKAY), name
            assert ctx.get(getattr(dut, f"rw_{name}")) == value
        mapped = {r.offset for r in REGISTERS.values()}
        for offset in [o for o in range(0, 0x200, 4) if o not in mapped] + [0x800, 0xFFC]:
            assert await host.read(offset) == (0, SLVERR), hex(offset)
            assert await host.write(offset, 0xFFFFFFFF) == SLVERR, hex(offset)
        for name, value in values.items():
            assert ctx.get(getattr(dut, f"rw_{name}")) == value, "a refused write changed a register"

    simulate(whole, bench)


def test_strobes() -> None:
    """Each byte is written if its strobe says so."""
    dut = RegisterFile()
    register = REGISTERS["LIMIT"]
    assert register.width == 32

    async def bench(ctx: Any) -> None:
        host = Host(ctx, dut)
        for strobes in range(16):
            await host.write(register.offset, 0x11223344)
            assert await host.write(register.offset, 0xAABBCCDD, strobes) == OKAY
            mask = sum(0xFF << 8 * b for b in range(4) if strobes >> b & 1)
            assert (await host.read(register.offset))[0] == 0x11223344 & ~mask | 0xAABBCCDD & mask

    simulate(dut, bench)


def test_pulses() -> None:
    """``clear_counters`` acts for one cycle, if written with 1 under its strobe; enable stays."""
    dut = RegisterFile()
    control = REGISTERS["CONTROL"].offset

    async def bench(ctx: Any) -> None:
        host = Host(ctx, dut)
        for value, strobes, pulses in ((3, 15, 1), (1, 15, 0), (2, 1, 1), (2, 14, 0), (0, 15, 0)):
            host.set(awaddr=control, wdata=value, wstrb=strobes, awvalid=1, wvalid=1, bready=1)
            seen = [await clock(ctx, dut.pulse_clear_counters, dut.awready)]
            assert seen[0][1]
            host.set(awvalid=0, wvalid=0)
            seen += [await clock(ctx, dut.pulse_clear_counters, dut.awready) for _ in range(4)]
            assert sum(p for p, _ in seen) == pulses, (value, strobes)
            if strobes & 1:
                assert ctx.get(dut.rw_CONTROL) == value & 1
        host.set(awaddr=REGISTERS["HIDDEN"].offset, wdata=3, wstrb=15, awvalid=1, wvalid=1)
        assert await clock(ctx, dut.pulse_clear_counters) == (0,)

    simulate(dut, bench)


def test_back_to_back() -> None:
    """With a host that is always ready: a write and a read every cycle."""
    dut = RegisterFile()
    names = list(LAYER_WIDTHS)[:6]

    async def bench(ctx: Any) -> None:
        host = Host(ctx, dut)
        host.set(bready=1, wstrb=15)
        for i, name in enumerate(names):
            host.set(awaddr=REGISTERS[name].offset, wdata=i + 1, awvalid=1, wvalid=1)
            ready, valid, response = await clock(ctx, dut.awready, dut.bvalid, dut.bresp)
            assert ready and valid == (i > 0) and response == OKAY
        host.set(awvalid=0, wvalid=0, rready=1)
        assert await clock(ctx, dut.bvalid, dut.bresp) == (1, OKAY)
        assert await clock(ctx, dut.bvalid) == (0,)
        got = []
        for i, name in enumerate([*names, None]):
            host.set(arvalid=name is not None, araddr=REGISTERS[name].offset if name else 0)
            ready, valid, value = await clock(ctx, dut.arready, dut.rvalid, dut.rdata)
            assert ready and valid == (i > 0)
            got.append(value)
        width = [LAYER_WIDTHS[n] for n in names]
        assert got[1:] == [(i + 1) % (1 << w) for i, w in enumerate(width)]

    simulate(dut, bench)


def test_address_or_data_alone_writes_nothing() -> None:
    dut = RegisterFile()
    offset = REGISTERS["HIDDEN"].offset

    async def bench(ctx: Any) -> None:
        host = Host(ctx, dut)
        for alone in ("aw", "w"):
            host.set(awaddr=offset, wdata=77, wstrb=15, awvalid=alone == "aw", wvalid=alone == "w")
            for _ in range(5):
                assert await clock(ctx, dut.awready, dut.wready, dut.bvalid) == (0, 0, 0)
        assert ctx.get(dut.rw_HIDDEN) == 0
        # A response that is not taken holds the next write back.
        host.set(awvalid=1, wvalid=1)
        await clock(ctx)
        host.set(wdata=88)
        for _ in range(4):
            assert await clock(ctx, dut.awready, dut.bvalid) == (0, 1)
        assert ctx.get(dut.rw_HIDDEN) == 77
        host.set(bready=1)
        assert await clock(ctx, dut.awready, dut.bvalid) == (1, 1)
        assert ctx.get(dut.rw_HIDDEN) == 88

    simulate(dut, bench)


def test_reset_values_of_a_baked_image() -> None:
    dut = RegisterFile({"HIDDEN": 48, "CONTROL": 1})

    async def bench(ctx: Any) -> None:
        host = Host(ctx, dut)
        assert await host.read(REGISTERS["HIDDEN"].offset) == (48, OKAY)
        assert await host.read(REGISTERS["CONTROL"].offset) == (1, OKAY)
        assert await host.read(REGISTERS["EXPERTS"].offset) == (0, OKAY)

    simulate(dut, bench)
