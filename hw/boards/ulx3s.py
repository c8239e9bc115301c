"""ULX3S with an ECP5-85F: clock, reset, lamps, and the accelerator behind a UART."""

from amaranth.hdl import Cat, ClockDomain, ClockSignal, Instance, Module, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.cdc import ResetSynchronizer
from amaranth.lib.wiring import In, Out
from amaranth_boards.ulx3s import ULX3S_85F_Platform

from hw.boards import pll
from hw.boards.board import Board, pins
from hw.host.bridge import AXI, Bridge
from hw.host.uart import UartReceiver, UartTransmitter
from hw.verilog import MODULE
from sw_model.config import HardwareConfig

__all__ = ["ULX3S_85F", "Ulx3s"]

OSCILLATOR_MHZ = 25.0
CLOCK_MHZ = 37.5
BAUD = 1_500_000


class Ulx3s(wiring.Component):
    """Top of the board.

    The accelerator is an instance of the module that :func:`hw.verilog.generate` writes: what was simulated
    is what runs. Reset while the PLL has no lock or button FIRE 1 is held, or by the host.

    Members (pins)
    --------------
    clk25 : the oscillator
    button_reset : 1 when pressed
    uart_rx, uart_tx : to the host, 8N1
    led : 0 heartbeat (once a second), 1 a token is on its way, 2 an error since the last reset,
        3 not in reset, 4 receiving, 5 sending
    """

    LEDS = 8
    GLOW_BITS = 21  # an event lights its lamp for about 40 ms

    def __init__(self, config: HardwareConfig, baud: int) -> None:
        self._config = config
        self._divisor = round(CLOCK_MHZ * 1e6 / baud)
        super().__init__(
            {
                "clk25": In(1),
                "button_reset": In(1),
                "uart_rx": In(1),
                "uart_tx": Out(1),
                "led": Out(self.LEDS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.domains.sync = ClockDomain()
        lock, array_clock = Signal(), Signal()
        clocks = [(ClockSignal(), CLOCK_MHZ)]
        second = {}
        if self._config.array_clock > 1:
            clocks.append((array_clock, CLOCK_MHZ * self._config.array_clock))
            second["i_array_clk"] = array_clock
        m.submodules.pll = pll.instance(self.clk25, OSCILLATOR_MHZ, clocks, lock)
        m.submodules.reset = ResetSynchronizer(~lock | self.button_reset)
        resetn = Signal(reset_less=True)
        bridge_reset = Signal()
        m.d.sync += resetn.eq(~(ResetSignal() | bridge_reset))  # a register to fan out from

        m.submodules.receiver = receiver = UartReceiver(self._divisor)
        m.submodules.transmitter = transmitter = UartTransmitter(self._divisor)
        # A token and its TUSER, in whole beats of the weight stream.
        m.submodules.bridge = bridge = Bridge(capacity=self._config.max_hidden + 4)
        wiring.connect(m, receiver.o, bridge.rx)
        wiring.connect(m, bridge.tx, transmitter.i)
        m.d.comb += [
            receiver.rx.eq(self.uart_rx),
            self.uart_tx.eq(transmitter.tx),
            bridge_reset.eq(bridge.reset),
        ]

        m.submodules.accelerator = Instance(
            MODULE,
            i_aclk=ClockSignal(),
            i_aresetn=resetn,
            **second,
            **{
                f"{'i' if member.flow is Out else 'o'}_{name}": getattr(bridge, name)
                for name, member in AXI.items()
            },
        )

        def glow(event: Signal) -> Signal:
            left = Signal(self.GLOW_BITS)
            lamp = Signal()
            m.d.sync += lamp.eq(left != 0)
            with m.If(event):
                m.d.sync += left.eq(-1)
            with m.Elif(left != 0):
                m.d.sync += left.eq(left - 1)
            return lamp

        half_second = round(CLOCK_MHZ * 1e6 / 2)
        count, heartbeat, failed = Signal(range(half_second)), Signal(), Signal()
        m.d.sync += count.eq(count + 1)
        with m.If(count == half_second - 1):
            m.d.sync += [count.eq(0), heartbeat.eq(~heartbeat)]
        with m.If(bridge.error | receiver.error):
            m.d.sync += failed.eq(1)
        m.d.comb += self.led.eq(
            Cat(heartbeat, glow(bridge.busy), failed, resetn, glow(bridge.rx.valid), glow(bridge.tx.valid))
        )
        return m


ULX3S_85F = Board(
    name="ulx3s_85f",
    device=("--85k", "--package", "CABGA381", "--speed", "6"),
    capacity={"lut": 83640, "ff": 83640, "bram": 208, "dsp": 156},
    oscillator_mhz=OSCILLATOR_MHZ,
    oscillator_port="clk25",
    clock_mhz=CLOCK_MHZ,
    baud=BAUD,
    top=Ulx3s,
    pins=pins(
        ULX3S_85F_Platform.resources,
        {
            "clk25": ("clk25", 0, None),
            "button_reset": ("button_fire", 0, None),
            "uart_rx": ("uart", 0, "rx"),
            "uart_tx": ("uart", 0, "tx"),
            **{f"led[{i}]": ("led", i, None) for i in range(Ulx3s.LEDS)},
        },
    ),
)
