"""Top of a board: clock, reset, lamps, and the accelerator behind a UART or SPI."""

from typing import Any

from amaranth.hdl import Cat, ClockDomain, ClockSignal, Instance, Module, ResetSignal, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.cdc import ResetSynchronizer
from amaranth.lib.wiring import In, Out

from hw.boards.board import Board
from hw.host.bridge import AXI, Bridge
from hw.host.spi import SpiPort
from hw.host.uart import BYTE, UartReceiver, UartTransmitter
from hw.verilog import MODULE
from sw_model.config import HardwareConfig

__all__ = ["SerialTop"]

#: What the line and the lamps need of a bridge; of body "micro" the accelerator itself, which takes bytes.
BYTES = wiring.Signature({"rx": In(BYTE), "tx": Out(BYTE), "busy": Out(1), "error": Out(1), "reset": Out(1)})


def _byte_ports(host: Any) -> dict[str, Value]:
    """Ports of the accelerator's instance, beside clock and reset, that make it a :data:`BYTES`."""
    return {
        "i_s_axis_rx_tdata": host.rx.payload,
        "i_s_axis_rx_tvalid": host.rx.valid,
        "o_s_axis_rx_tready": host.rx.ready,
        "o_m_axis_tx_tdata": host.tx.payload,
        "o_m_axis_tx_tvalid": host.tx.valid,
        "i_m_axis_tx_tready": host.tx.ready,
        "o_busy": host.busy,
        "o_error": host.error,
    }


class SerialTop(wiring.Component):
    """Top of a board.

    The accelerator is an instance of the module that :func:`hw.verilog.generate` writes: what was simulated
    is what runs. Reset while the PLL has no lock or the button is held, or by the host.

    Parameters
    ----------
    config : of the accelerator
    board : its clocks, baud rate, and pins

    Members (pins)
    --------------
    clk : the oscillator
    button_reset : the button, where the board has one
    uart_rx, uart_tx : to the host, 8N1; or spi_sck, spi_cs_n, spi_copi, spi_cipo, where the board has SPI
    led : 0 heartbeat (once a second), 1 a token is on its way, 2 an error since the last reset,
        3 not in reset, 4 receiving, 5 sending; as many as the board has, if any

    Pins that ``board`` calls inverted are active low.

    With body "micro" bytes go to the accelerator as they
    are and come from it, without frames and the host's reset.
    """

    GLOW_BITS = 21  # an event lights its lamp for about 40 ms

    def __init__(self, config: HardwareConfig, board: Board) -> None:
        self._config = config
        self._board = board
        uart = {"uart_rx": In(1), "uart_tx": Out(1)}
        spi = {"spi_sck": In(1), "spi_cs_n": In(1), "spi_copi": In(1), "spi_cipo": Out(1)}
        super().__init__(
            {
                "clk": In(1),
                **({"button_reset": In(1)} if board.button else {}),
                **(spi if board.spi else uart),
                **({"led": Out(board.leds)} if board.leds else {}),
            }
        )

    def _line(self, m: Module, host: Any) -> Signal:
        """The way from the pins to ``host`` and back. Returns: a byte was lost (one cycle)."""
        if self._board.spi:
            m.submodules.spi = spi = SpiPort()
            wiring.connect(m, spi.o, host.rx)
            wiring.connect(m, host.tx, spi.i)
            m.d.comb += [
                spi.sck.eq(self.spi_sck),
                spi.cs_n.eq(self.spi_cs_n),
                spi.copi.eq(self.spi_copi),
                self.spi_cipo.eq(spi.cipo),
            ]
            return spi.error
        divisor = round(self._board.clock_mhz * 1e6 / self._board.baud)
        m.submodules.receiver = receiver = UartReceiver(divisor)
        m.submodules.transmitter = transmitter = UartTransmitter(divisor)
        wiring.connect(m, receiver.o, host.rx)
        wiring.connect(m, host.tx, transmitter.i)
        m.d.comb += [receiver.rx.eq(self.uart_rx), self.uart_tx.eq(transmitter.tx)]
        return receiver.error

    def elaborate(self, platform: object) -> Module:
        board = self._board
        m = Module()
        m.domains.sync = ClockDomain()
        lock, array_clock = Signal(), Signal()
        clocks: list[tuple[Value, float]] = [(ClockSignal(), board.clock_mhz)]
        second = {}
        if self._config.array_clock > 1:
            clocks.append((array_clock, board.clock_mhz * self._config.array_clock))
            second["i_array_clk"] = array_clock
        m.submodules.pll = board.family.pll(self.clk, board.oscillator_mhz, clocks, lock)
        pressed = self.button_reset ^ board.inverted("button_reset") if board.button else 0
        m.submodules.reset = ResetSynchronizer(~lock | pressed)
        resetn = Signal(reset_less=True)
        bridge_reset = Signal()
        m.d.sync += resetn.eq(~(ResetSignal() | bridge_reset))  # a register to fan out from

        if self._config.body == "micro":
            host = BYTES.create()
            ports = _byte_ports(host)
        else:
            # A token and its TUSER, in whole beats of the weight stream.
            m.submodules.bridge = host = Bridge(capacity=self._config.max_hidden + 4)
            ports = {
                f"{'i' if member.flow is Out else 'o'}_{name}": getattr(host, name)
                for name, member in AXI.items()
            }
        line_error = self._line(m, host)
        m.d.comb += bridge_reset.eq(host.reset)

        m.submodules.accelerator = Instance(MODULE, i_aclk=ClockSignal(), i_aresetn=resetn, **second, **ports)
        if board.leds:
            self._lamps(m, host, host.error | line_error, resetn)
        return m

    def _lamps(self, m: Module, host: Any, error: Value, running: Value) -> None:
        """What the lamps show: see the class."""
        board = self._board

        def glow(event: Signal) -> Signal:
            left = Signal(self.GLOW_BITS)
            lamp = Signal()
            m.d.sync += lamp.eq(left != 0)
            with m.If(event):
                m.d.sync += left.eq(-1)
            with m.Elif(left != 0):
                m.d.sync += left.eq(left - 1)
            return lamp

        half_second = round(board.clock_mhz * 1e6 / 2)
        count, heartbeat, failed = Signal(range(half_second)), Signal(), Signal()
        m.d.sync += count.eq(count + 1)
        with m.If(count == half_second - 1):
            m.d.sync += [count.eq(0), heartbeat.eq(~heartbeat)]
        with m.If(error):
            m.d.sync += failed.eq(1)
        lamps = Cat(heartbeat, glow(host.busy), failed, running, glow(host.rx.valid), glow(host.tx.valid))
        inverted = sum(board.inverted(f"led[{i}]") << i for i in range(board.leds))
        m.d.comb += self.led.eq(lamps ^ inverted)
