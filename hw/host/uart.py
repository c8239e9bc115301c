"""Asynchronous serial line (UART), 8 data bits, no parity, 1 stop bit."""

from amaranth.hdl import C, Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

__all__ = ["BYTE", "LEAST_DIVISOR", "UartReceiver", "UartTransmitter"]

#: A stream of bytes.
BYTE = stream.Signature(8)

LEAST_DIVISOR = 4


def _check(divisor: int) -> int:
    if divisor < LEAST_DIVISOR:
        raise ValueError(f"divisor must be at least {LEAST_DIVISOR} cycles a bit, not {divisor}")
    return divisor


class UartReceiver(wiring.Component):
    """The line to bytes.

    Parameters
    ----------
    divisor : clock cycles a bit

    Members
    -------
    rx : the line, asynchronous, 1 when idle
    o : the bytes received
    error : one cycle: a byte was dropped, as its stop bit was 0 (wrong rate, noise, break), or because the
        one before it had not been taken

    Latency: a byte is there two cycles (the synchroniser) after the middle of its stop bit. Bits are sampled
    once, in their middle; the sender's rate may be off by 4 %.
    """

    def __init__(self, divisor: int) -> None:
        self._divisor = _check(divisor)
        super().__init__({"rx": In(1, init=1), "o": Out(BYTE), "error": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        line = Signal(init=1)
        m.submodules.synchroniser = FFSynchronizer(self.rx, line, init=1)
        wait = Signal(range(self._divisor))
        bit = Signal(range(8))
        shifted = Signal(8)

        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        m.d.sync += wait.eq(wait - 1)
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [wait.eq(self._divisor // 2 - 1), bit.eq(0)]
                with m.If(~line):
                    m.next = "START"
            with m.State("START"):
                with m.If(wait == 0):
                    m.d.sync += wait.eq(self._divisor - 1)
                    m.next = "DATA"
                    with m.If(line):  # a glitch
                        m.next = "IDLE"
            with m.State("DATA"):
                with m.If(wait == 0):
                    m.d.sync += [
                        wait.eq(self._divisor - 1),
                        shifted.eq(Cat(shifted[1:], line)),
                        bit.eq(bit + 1),
                    ]
                    with m.If(bit == 7):
                        m.next = "STOP"
            with m.State("STOP"):
                with m.If(wait == 0):
                    with m.If(line & (~self.o.valid | self.o.ready)):
                        m.d.sync += [self.o.payload.eq(shifted), self.o.valid.eq(1)]
                    with m.Else():
                        m.d.comb += self.error.eq(1)
                    m.next = "RECOVER"
            with m.State("RECOVER"):  # a break is one error, not many
                with m.If(line):
                    m.next = "IDLE"
        return m


class UartTransmitter(wiring.Component):
    """Bytes to the line.

    Parameters
    ----------
    divisor : clock cycles a bit

    Members
    -------
    i : the bytes to send
    tx : the line, 1 when idle; from a register

    Throughput: a byte in 10 bits, that is ``10 * divisor`` cycles, plus one cycle.
    """

    def __init__(self, divisor: int) -> None:
        self._divisor = _check(divisor)
        super().__init__({"i": In(BYTE), "tx": Out(1, init=1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        wait = Signal(range(self._divisor))
        left = Signal(range(11))
        bits = Signal(9)  # those after the one on the line
        with m.If(left == 0):
            m.d.comb += self.i.ready.eq(1)
            with m.If(self.i.valid):
                m.d.sync += [
                    self.tx.eq(0),
                    bits.eq(Cat(self.i.payload, C(1, 1))),
                    left.eq(10),
                    wait.eq(self._divisor - 1),
                ]
        with m.Elif(wait == 0):
            m.d.sync += [
                self.tx.eq(bits[0]),
                bits.eq(Cat(bits[1:], C(1, 1))),
                left.eq(left - 1),
                wait.eq(self._divisor - 1),
            ]
        with m.Else():
            m.d.sync += wait.eq(wait - 1)
        return m
