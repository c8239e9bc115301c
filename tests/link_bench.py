"""The byte link with a dummy accelerator behind it: its pins are a clock and a serial line, or SPI."""

import os

from amaranth.back import verilog
from amaranth.hdl import ClockDomain, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from hw.host.axil import SIGNALS, RegisterFile
from hw.host.bridge import Bridge
from hw.host.spi import SpiPort
from hw.host.uart import UartReceiver, UartTransmitter

CAPACITY = 16
DIVISOR = 4
PATIENCE = 400


class LinkBench(wiring.Component):
    """Gives every word of a token back plus one, after the whole token; LIMIT is a register to play with, and
    every counter the sum of the low words of all beats on the weight stream."""

    def __init__(self, spi=False):
        self._spi = spi
        uart = {"uart_rx": In(1, init=1), "uart_tx": Out(1, init=1)}
        pins = {"sck": In(1), "cs_n": In(1, init=1), "copi": In(1), "cipo": Out(1)} if spi else uart
        super().__init__({"clk": In(1), **pins, "led": Out(8)})

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = domain = ClockDomain()
        count = Signal(4)
        m.domains.por = por = ClockDomain(reset_less=True)
        up = Signal()
        m.d.comb += [domain.clk.eq(self.clk), por.clk.eq(self.clk), domain.rst.eq(~up)]
        m.d.por += count.eq(count + 1)
        with m.If(count.all()):
            m.d.por += up.eq(1)
        m.submodules.bridge = bridge = Bridge(capacity=CAPACITY, patience=PATIENCE)
        m.submodules.registers = registers = RegisterFile()
        m.submodules.tokens = tokens = SyncFIFOBuffered(width=33, depth=64)
        if self._spi:
            m.submodules.port = port = SpiPort()
            wiring.connect(m, port.o, bridge.rx)
            wiring.connect(m, bridge.tx, port.i)
            m.d.comb += [getattr(port, pin).eq(getattr(self, pin)) for pin in ("sck", "cs_n", "copi")]
            m.d.comb += self.cipo.eq(port.cipo)
        else:
            m.submodules.receiver = receiver = UartReceiver(DIVISOR)
            m.submodules.transmitter = transmitter = UartTransmitter(DIVISOR)
            wiring.connect(m, receiver.o, bridge.rx)
            wiring.connect(m, bridge.tx, transmitter.i)
            m.d.comb += [receiver.rx.eq(self.uart_rx), self.uart_tx.eq(transmitter.tx)]
        for name, member in SIGNALS.items():
            ours, theirs = getattr(registers, name), getattr(bridge, f"s_axil_{name}")
            m.d.comb += ours.eq(theirs) if member.flow.name == "In" else theirs.eq(ours)
        whole = Signal(8)
        arrives, leaves = Signal(), Signal()
        total = Signal(32)
        m.d.comb += [
            tokens.w_data[:32].eq(bridge.s_axis_x_tdata),
            tokens.w_data[32].eq(bridge.s_axis_x_tlast),
            tokens.w_en.eq(bridge.s_axis_x_tvalid),
            bridge.s_axis_x_tready.eq(tokens.w_rdy),
            bridge.m_axis_y_tdata.eq(tokens.r_data[:32] + 1),
            bridge.m_axis_y_tlast.eq(tokens.r_data[32]),
            bridge.m_axis_y_tvalid.eq(tokens.r_rdy & (whole != 0)),
            tokens.r_en.eq(bridge.m_axis_y_tready & (whole != 0)),
            arrives.eq(tokens.w_en & tokens.w_rdy & tokens.w_data[32]),
            leaves.eq(tokens.r_en & tokens.r_rdy & tokens.r_data[32]),
            bridge.s_axis_w_tready.eq(1),
            registers.counter.eq(total),
        ]
        m.d.sync += whole.eq(whole + arrives - leaves)
        with m.If(bridge.s_axis_w_tvalid):
            m.d.sync += total.eq(total + bridge.s_axis_w_tdata[:32])
        return m


def link_verilog(spi=False):
    os.environ["AMARANTH_USE_YOSYS"] = "builtin"
    top = LinkBench(spi)
    ports = [getattr(top, name) for name in top.signature.members]
    name = "spi_top" if spi else "serial_top"
    return verilog.convert(top, name=name, ports=ports, emit_src=False, strip_internal_attrs=True)
