"""Serial peripheral interface (SPI): the byte link for hosts without a UART, or in want of a faster line."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

from hw.host.frames import FLAG
from hw.host.uart import BYTE

__all__ = ["LEAST_DIVISOR", "SpiPort"]

#: Clock cycles a bit, at least: what the host clocks out changes up to three cycles after the edge.
LEAST_DIVISOR = 8


class SpiPort(wiring.Component):
    """Bytes in both directions as an SPI peripheral, mode 0, most significant bit first.

    The host clocks a byte out with every byte in. Where either side has nothing to say it says
    :data:`~hw.host.frames.FLAG`, of which any number may stand between frames. A byte from the host that is a
    flag after a flag is not passed on, so that a host may ask for an answer as long as it likes.

    Members
    -------
    sck, cs_n, copi : from the host, asynchronous; ``sck`` at most an eighth of the clock
    cipo : to the host
    o : bytes from the host
    i : bytes to the host; one is taken when the one before it is out, and is lost if ``cs_n`` rises when some
        of its bits are out
    error : one cycle: a byte was dropped, as the one before it had not been taken

    Latency: a byte is there four cycles after its last rising edge.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "sck": In(1),
                "cs_n": In(1, init=1),
                "copi": In(1),
                "cipo": Out(1),
                "o": Out(BYTE),
                "i": In(BYTE),
                "error": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        sck, idle, copi = Signal(), Signal(init=1), Signal()
        m.submodules.sck = FFSynchronizer(self.sck, sck)
        m.submodules.cs_n = FFSynchronizer(self.cs_n, idle, init=1)
        m.submodules.copi = FFSynchronizer(self.copi, copi)
        sck_before, idle_before = Signal(), Signal(init=1)
        m.d.sync += [sck_before.eq(sck), idle_before.eq(idle)]
        rises, falls, starts = ~idle & sck & ~sck_before, ~idle & ~sck & sck_before, ~idle & idle_before

        bit, received, sent = Signal(3), Signal(7), Signal(8)
        byte = Cat(copi, received)
        flagged = Signal()  # the byte before was a flag
        waits = Signal()  # ``sent`` is a byte of which no bit is out
        m.d.comb += [
            self.cipo.eq(sent[7]),
            self.i.ready.eq((starts & ~waits) | (falls & (bit == 0))),
        ]
        with m.If(rises):
            m.d.sync += waits.eq(0)
        with m.If(self.i.ready):
            m.d.sync += [sent.eq(Mux(self.i.valid, self.i.payload, FLAG)), waits.eq(self.i.valid)]
        with m.Elif(falls):
            m.d.sync += sent.eq(sent << 1)
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(idle):
            m.d.sync += bit.eq(0)
        with m.Elif(rises):
            m.d.sync += [bit.eq(bit + 1), received.eq(byte)]
            with m.If(bit == 7):
                m.d.sync += flagged.eq(byte == FLAG)
                with m.If(flagged & (byte == FLAG)):
                    pass
                with m.Elif(self.o.valid & ~self.o.ready):
                    m.d.comb += self.error.eq(1)
                with m.Else():
                    m.d.sync += [self.o.payload.eq(byte), self.o.valid.eq(1)]
        return m
