"""The cocotb testbench: cocotbext-axi loads one MoE layer over the ports, streams tokens, checks every bit.

It is started by :func:`sim.runner.run_layer`, runs inside the simulator, and knows nothing of how the Verilog
was made but its ports and its register map.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, with_timeout
from cocotbext.axi import (
    AxiLiteBus,
    AxiLiteMaster,
    AxiStreamBus,
    AxiStreamFrame,
    AxiStreamSink,
    AxiStreamSource,
)

from hw.host.registers import COUNTERS, ID_VALUE, REGISTERS, Access, address, present
from sw_model.config import Feature

_PERIOD = 10  # ns
_INPUTS = (
    "aresetn",
    "s_axil_awaddr",
    "s_axil_awprot",
    "s_axil_awvalid",
    "s_axil_wdata",
    "s_axil_wstrb",
    "s_axil_wvalid",
    "s_axil_bready",
    "s_axil_araddr",
    "s_axil_arprot",
    "s_axil_arvalid",
    "s_axil_rready",
    "s_axis_x_tdata",
    "s_axis_x_tvalid",
    "s_axis_x_tlast",
    "s_axis_x_tuser",
    "s_axis_w_tdata",
    "s_axis_w_tvalid",
    "s_axis_w_tlast",
    "m_axis_y_tready",
    "m_axis_page_tready",
)
_OKAY, _SLVERR = 0, 2
_STATUS = {f.name: 1 << f.lsb for f in REGISTERS["STATUS"].fields}
_LENGTH_ERROR, _HELD = _STATUS["error_token_length"], _STATUS["held"]
_HOLD = next(1 << f.lsb for f in REGISTERS["CONTROL"].fields if f.name == "hold_counters")


def _pauses(rng: random.Random, probability: float) -> Iterator[bool]:
    """Pause or not, a cycle each; one pause in 16 is long enough to fill and drain whole buffers."""
    while True:
        pause = rng.random() < probability
        for _ in range(rng.randrange(1, 64) if pause and not rng.randrange(16) else 1):
            yield pause


class _Bench:
    """The bus models around the design."""

    def __init__(self, dut: Any, options: dict[str, Any]) -> None:
        self.dut, self.options = dut, options
        self.finished = False
        self.registers: dict[str, int] = {}  # as written
        reset = (dut.aclk, dut.aresetn, False)
        self.host = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), *reset)
        # A beat is one "byte" as wide as the bus: tokens are lists of float32 codes, there is no tkeep.
        self.x = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis_x"), *reset, byte_lanes=1)
        self.w = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis_w"), *reset, byte_lanes=1)
        self.y = AxiStreamSink(AxiStreamBus.from_prefix(dut, "m_axis_y"), *reset, byte_lanes=1)
        self.pages = AxiStreamSink(AxiStreamBus.from_prefix(dut, "m_axis_page"), *reset, byte_lanes=1)
        host_channels = (
            self.host.write_if.aw_channel,
            self.host.write_if.w_channel,
            self.host.write_if.b_channel,
            self.host.read_if.ar_channel,
            self.host.read_if.r_channel,
        )
        if options["stalls"]:
            for i, port in enumerate((self.x, self.w, self.y, *host_channels, self.pages)):
                port.set_pause_generator(_pauses(random.Random(options["seed"] * 16 + i), options["stalls"]))

    async def reset(self, cycles: int) -> None:
        self.dut.aresetn.value = 0
        await ClockCycles(self.dut.aclk, cycles)
        self.dut.aresetn.value = 1
        await ClockCycles(self.dut.aclk, 2)

    async def write(self, name: str, value: int, response: int = _OKAY) -> None:
        reply = await self.host.write(address(name), value.to_bytes(4, "little"))
        assert reply.resp == response, f"write of {name}: response {reply.resp}"

    async def read(self, name: str) -> int:
        reply = await self.host.read(address(name), 4)
        assert reply.resp == _OKAY, f"read of {name}: response {reply.resp}"
        return int.from_bytes(reply.data, "little")

    async def counters(self) -> dict[str, int]:
        await self.write("CONTROL", 1 | _HOLD)
        while not await self.read("STATUS") & _HELD:
            pass
        values = {name: await self.read(name) | await self.read("COUNTER_HIGH") << 32 for name in COUNTERS}
        await self.write("CONTROL", 1)
        return values

    async def configure(self) -> None:
        """The layer's registers, as far as the design has them, then enable."""
        there = present(Feature(await self.read("FEATURES")))
        self.registers = {n: v for n, v in self.options["registers"].items() if n in there}
        for name, value in self.registers.items():
            await self.write(name, value)
            assert await self.read(name) == value, f"{name} does not hold {value:#x}"

    async def send_weights(self, packet: np.ndarray) -> None:
        beats = [int.from_bytes(beat.tobytes(), "little") for beat in packet]
        await self.w.send(AxiStreamFrame(beats))

    async def serve(self, pages: list[list[np.ndarray]]) -> None:
        """Answer requests for pages, forever."""
        while True:
            request = (await self.pages.recv()).tdata[0]
            if self.options["page_latency"]:
                await ClockCycles(self.dut.aclk, self.options["page_latency"])
            for packet in pages[request & 0xFFFF]:
                await self.send_weights(packet)
                await self.w.wait()
                pause = round(len(packet) * (1 / self.options["page_bandwidth"] - 1))
                if pause:
                    await ClockCycles(self.dut.aclk, pause)

    async def load(self, packets: list[np.ndarray]) -> None:
        for packet in packets:
            await self.send_weights(packet)
        beats = sum(map(len, packets))
        await with_timeout(self.w.wait(), (1000 * beats + self.options["watchdog"]) * _PERIOD, "ns")

    def send(self, x: np.ndarray, user: np.ndarray) -> None:
        """Tokens, and packets of other lengths between them, back to back."""
        strays, places = self.options["strays"], len(x) + 1
        for i in range(places):
            for length in strays[i::places]:
                self.x.send_nowait(AxiStreamFrame(np.resize(~x, length).tolist(), tuser=0xFFFF))
            if i < len(x):
                self.x.send_nowait(AxiStreamFrame(x[i].tolist(), tuser=int(user[i])))

    async def traffic(self) -> int:
        """Accesses of every kind that must not disturb anything, until ``finished``; returns how many."""
        rng, count = random.Random(self.options["seed"] + 77), 0
        held = self.registers
        mapped = {r.offset for r in present(Feature(await self.read("FEATURES"))).values()}
        while not self.finished:
            count += 1
            offset = 4 * rng.randrange(1024)
            if rng.randrange(2):  # bytes of a register with what they hold already
                name = rng.choice(list(held))
                first = rng.randrange(4)
                part = held[name].to_bytes(4, "little")[first : first + rng.randrange(1, 5)]
                reply = await self.host.write(address(name) + first, part)
                assert reply.resp == _OKAY, name
                assert await self.read(name) == held[name], f"{name} was changed by its own bytes"
            elif offset in mapped:
                assert (await self.host.read(offset, 4)).resp == _OKAY, hex(offset)
            else:
                assert (await self.host.read(offset, 4)).resp == _SLVERR, hex(offset)
                assert (await self.host.write(offset, bytes(4))).resp == _SLVERR, hex(offset)
        return count

    async def receive(self, shape: tuple[int, int]) -> np.ndarray:
        y = np.zeros(shape, dtype=np.uint32)
        for row in y:
            frame = await with_timeout(self.y.recv(), self.options["watchdog"] * _PERIOD, "ns")
            assert len(frame.tdata) == len(row), f"a token of {len(frame.tdata)} beats, {len(row)} expected"
            row[:] = frame.tdata
        return y


async def _check_host_port(bench: _Bench) -> None:
    """Identity, reset values, and the answer to accesses that mean nothing."""
    assert await bench.read("ID") == ID_VALUE
    for register in present(Feature(await bench.read("FEATURES"))).values():
        if register.access is Access.RW:
            assert await bench.read(register.name) == register.reset, f"{register.name} after reset"
    await bench.write("ID", 0, _SLVERR)
    assert (await bench.host.read(0xFFC, 4)).resp == _SLVERR


async def _abandon(bench: _Bench, x: np.ndarray, user: np.ndarray, cycles: int) -> None:
    """Start the tokens, then reset in the middle of them."""
    bench.send(x, user)
    await ClockCycles(bench.dut.aclk, cycles)
    bench.x.clear()
    await bench.reset(4)
    while not bench.y.empty():
        bench.y.recv_nowait()
    await _check_host_port(bench)
    await bench.configure()
    await bench.write("CONTROL", 1)


@cocotb.test()
async def layer(dut: Any) -> None:
    """Registers, weights and tokens in; y and the counters out, equal to the golden model's."""
    job = Path(os.environ["EXPERTILE_SIM_JOB"])
    with np.load(job) as data:
        arrays = dict(data)
    options = json.loads(str(arrays["options"]))
    for name in _INPUTS:
        getattr(dut, name).value = 0
    Clock(dut.aclk, _PERIOD, unit="ns").start()
    if options["array_clock"] > 1:  # a little faster than that, so that all phases come up
        Clock(dut.array_clk, 2 * round(485 * _PERIOD / options["array_clock"]), unit="ps").start()
    logging.getLogger(f"cocotb.{dut._name}").setLevel(logging.WARNING)
    bench = _Bench(dut, options)
    await bench.reset(8)
    await _check_host_port(bench)

    await bench.configure()
    await bench.load(np.split(arrays["beats"], np.cumsum(arrays["lengths"])[:-1]))
    await bench.write("CONTROL", 1)
    lengths = arrays["page_lengths"]
    packets = np.split(arrays["page_beats"], np.cumsum(lengths.ravel())[:-1]) if lengths.size else []
    width = lengths.shape[1] if lengths.size else 1
    cocotb.start_soon(bench.serve([packets[i : i + width] for i in range(0, len(packets), width)]))
    x, user = arrays["x"], arrays["user"]
    if options["reset_at"] is not None:
        await _abandon(bench, x, user, options["reset_at"])
    await bench.write("CONTROL", 3)
    traffic = cocotb.start_soon(bench.traffic()) if options["traffic"] else None
    bench.send(x, user)
    y = await bench.receive(x.shape)
    if options["strays"]:
        await bench.x.wait()
        await ClockCycles(dut.aclk, 2 * x.shape[1])
    await ClockCycles(dut.aclk, 4)
    assert bench.y.empty(), "more tokens out than in"
    if traffic is not None:
        bench.finished = True
        assert await traffic > len(x), "the registers were hardly accessed"

    counters = await bench.counters()
    status = await bench.read("STATUS")
    np.savez(job.with_name("result.npz"), y=y, counters=np.array(json.dumps(counters)))
    flagged = _LENGTH_ERROR if options["strays"] else 0
    assert status == flagged, f"STATUS is {status:#x} at rest, not {flagged:#x}"
    if "expected" in arrays:
        wrong = np.argwhere(y != arrays["expected"])
        if len(wrong):
            t, i = wrong[0]
            raise AssertionError(
                f"{len(wrong)} of {y.size} numbers differ; first: token {t}, element {i}: "
                f"{y[t, i]:#010x}, golden {arrays['expected'][t, i]:#010x}"
            )
