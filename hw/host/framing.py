"""Bytes to frames and back. The frame format is :mod:`hw.host.frames`; nothing else knows it."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.host.frames import CRC_POLYNOMIAL, CRC_RESIDUE, ESCAPE, ESCAPE_BIT, FLAG
from hw.host.uart import BYTE

__all__ = ["HEADER", "FrameReceiver", "FrameSender"]

#: The first word of a frame.
HEADER = data.StructLayout({"kind": 8, "tag": 8, "words": 16})

_CRC_START = (1 << 32) - 1


def _crc_step(crc: Value, byte: Value) -> Value:
    """The CRC register after one more byte: eight steps of the shift register, as sums of its bits."""
    bits: list[Value] = [crc[i] ^ byte[i] if i < len(byte) else crc[i] for i in range(32)]
    for _ in range(len(byte)):
        out = bits[0]
        bits = [
            (bits[i + 1] if i < 31 else C(0, 1)) ^ out if CRC_POLYNOMIAL >> i & 1 else bits[i + 1]
            for i in range(32)
        ]
    return Cat(bits)


class FrameReceiver(wiring.Component):
    """Collects a whole frame before anybody acts on it.

    Parameters
    ----------
    capacity : words of payload that the buffer holds

    Members
    -------
    i : bytes; not ready while a frame stands
    valid, header : a frame stands, its CRC right; until ``take`` (one cycle)
    fits : its payload is in the buffer (a longer one is swallowed, and its end lost)
    address, word : word ``address`` of the payload, one cycle later
    damaged : one cycle: what stood between two flags was no frame

    Latency: ``valid`` rises in the cycle after the closing flag. Throughput: a byte a cycle.
    """

    def __init__(self, *, capacity: int) -> None:
        if capacity < 2:
            raise ValueError(f"capacity must be at least 2, not {capacity}")
        self._capacity = capacity
        super().__init__(
            {
                "i": In(BYTE),
                "valid": Out(1),
                "header": Out(HEADER),
                "fits": Out(1),
                "take": In(1),
                "address": In(range(capacity)),
                "word": Out(32),
                "damaged": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # Filled while no frame stands, read only while one does: never both at once.
        m.submodules.buffer = buffer = Memory(
            shape=32, depth=self._capacity, init=[], attrs={"no_rw_check": 1}
        )
        write, read = buffer.write_port(), buffer.read_port()
        escaped, lane, low = Signal(), Signal(2), Signal(24)
        crc = Signal(32, init=_CRC_START)
        count = Signal(17)  # words so far: header, payload, CRC
        moved, plain = Signal(), Signal(8)
        m.d.comb += [
            self.i.ready.eq(~self.valid),
            moved.eq(self.i.valid & self.i.ready),
            plain.eq(self.i.payload ^ Mux(escaped, ESCAPE_BIT, 0)),
            write.addr.eq(count - 1),
            write.data.eq(Cat(low, plain)),
            read.addr.eq(self.address),
            self.word.eq(read.data),
            self.fits.eq(self.header.words <= self._capacity),
        ]
        with m.If(self.take):
            m.d.sync += self.valid.eq(0)
        with m.If(moved & (self.i.payload == FLAG)):
            right = (crc == CRC_RESIDUE) & (lane == 0) & ~escaped & (self.header.words + 2 == count)
            m.d.sync += [crc.eq(_CRC_START), count.eq(0), lane.eq(0), escaped.eq(0)]
            with m.If(right):
                m.d.sync += self.valid.eq(1)
            with m.Else():
                m.d.comb += self.damaged.eq((count != 0) | (lane != 0) | escaped)
        with m.Elif(moved & (self.i.payload == ESCAPE)):
            m.d.sync += escaped.eq(1)
        with m.Elif(moved):
            m.d.sync += [
                escaped.eq(0),
                crc.eq(_crc_step(crc, plain)),
                low.eq(Cat(low[8:], plain)),
                lane.eq(lane + 1),
            ]
            with m.If(lane == 3):
                m.d.sync += count.eq(count + 1)
                with m.If(count == 0):
                    m.d.sync += self.header.as_value().eq(Cat(low, plain))
                with m.Else():
                    m.d.comb += write.en.eq(count <= self._capacity)
        return m


class FrameSender(wiring.Component):
    """A header, then as many words as it announces, to the bytes of a frame.

    Members
    -------
    header : stream of headers
    words : stream of 32-bit words; ready only for those of the header taken last
    o : bytes

    Throughput: a byte a cycle, and one cycle more a word.
    """

    def __init__(self) -> None:
        super().__init__(
            {"header": In(stream.Signature(HEADER)), "words": In(stream.Signature(32)), "o": Out(BYTE)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        word = Signal(32)
        lanes = Signal(range(5))  # bytes of ``word`` still to go
        left = Signal(16)
        crc = Signal(32)
        escaped, summed = Signal(), Signal()
        byte = word[:8]
        special = (byte == FLAG) | (byte == ESCAPE)
        with m.FSM():
            with m.State("HEADER"):
                m.d.comb += self.header.ready.eq(1)
                m.d.sync += [
                    word.eq(self.header.payload.as_value()),
                    left.eq(self.header.payload.words),
                    lanes.eq(4),
                    crc.eq(_CRC_START),
                    summed.eq(0),
                ]
                with m.If(self.header.valid):
                    m.next = "OPEN"
            with m.State("OPEN"):
                m.d.comb += [self.o.valid.eq(1), self.o.payload.eq(FLAG)]
                with m.If(self.o.ready):
                    m.next = "BYTES"
            with m.State("BYTES"):
                m.d.comb += [self.o.valid.eq(1), self.o.payload.eq(byte)]
                with m.If(escaped):
                    m.d.comb += self.o.payload.eq(byte ^ ESCAPE_BIT)
                with m.Elif(special):
                    m.d.comb += self.o.payload.eq(ESCAPE)
                with m.If(self.o.ready):
                    m.d.sync += escaped.eq(special & ~escaped)
                    with m.If(escaped | ~special):
                        m.d.sync += [word.eq(word >> 8), lanes.eq(lanes - 1), crc.eq(_crc_step(crc, byte))]
                        with m.If(lanes == 1):
                            m.next = "WORD"
            with m.State("WORD"):
                m.d.sync += lanes.eq(4)
                with m.If(left != 0):
                    m.d.comb += self.words.ready.eq(1)
                    with m.If(self.words.valid):
                        m.d.sync += [word.eq(self.words.payload), left.eq(left - 1)]
                        m.next = "BYTES"
                with m.Elif(~summed):
                    m.d.sync += [word.eq(~crc), summed.eq(1)]
                    m.next = "BYTES"
                with m.Else():
                    m.next = "CLOSE"
            with m.State("CLOSE"):
                m.d.comb += [self.o.valid.eq(1), self.o.payload.eq(FLAG)]
                with m.If(self.o.ready):
                    m.next = "HEADER"
        return m
