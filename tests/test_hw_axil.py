"""The registers over AXI4-Lite."""

from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Elaboratable, Module
from amaranth_bench import clock, simulate

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
    present,
)
from sw_model.config import ALL_FEATURES, NO_FEATURES, Feature
from sw_model.image import PLACE_REGISTERS, REGISTER_NAMES

OKAY, SLVERR = 0, 2


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

    def __init__(self, features: Feature) -> None:
        self.dut = RegisterFile(features=features)

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
    assert tuple(LAYER_WIDTHS) == (*REGISTER_NAMES, *PLACE_REGISTERS)
    assert all(REGISTERS[n].access is Access.RO for n in COUNTERS)
    assert ID_VALUE.to_bytes(4, "big") == b"EXPT"


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("features", [ALL_FEATURES, Feature.GATE | Feature.CLAMP, NO_FEATURES])
def test_every_register(features: Feature, waits: bool) -> None:
    """Those that there are hold what they should; others, missing blocks' among them, are refused."""
    whole = Counted(features)
    there = present(features)
    assert len(there) == len(REGISTERS) or features is not ALL_FEATURES
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
        for r in there.values():
            value = int(rng.integers(1 << 32))
            if r.access is Access.RO:
                before = await host.read(r.offset)
                assert await host.write(r.offset, value) == SLVERR, r.name
                assert await host.read(r.offset) == before
                continue
            assert await host.read(r.offset) == (r.reset, OKAY)
            assert await host.write(r.offset, 0xFFFFFFFF) == OKAY
            pulses = sum(1 << f.lsb for f in r.fields if f.pulse)
            absent = sum(1 << f.lsb for f in r.fields if f.feature & ~features)
            kept = (1 << r.width) - 1 & ~(pulses | absent)
            assert await host.read(r.offset) == (kept, OKAY), r.name
            assert await host.write(r.offset, value) == OKAY
            values[r.name] = value & kept
        for name, value in values.items():  # each holds its own
            assert await host.read(REGISTERS[name].offset) == (value, OKAY), name
            assert ctx.get(getattr(dut, f"rw_{name}")) == value
        mapped = {r.offset for r in there.values()}
        for offset in [o for o in range(0, 0x260, 4) if o not in mapped] + [0x800, 0xFFC]:
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
