"""Bytes to frames and back. The frame format is :mod:`hw.host.frames`; nothing else knows it."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.host.uart import BYTE

__all__ = ["HEADER", "FrameReceiver", "FrameSender"]

#: The first word of a frame.
HEADER = data.StructLayout({"kind": 8, "tag": 8, "words": 16})


class FrameReceiver(wiring.Component):
    """Collects a whole frame before anybody acts on it.

    Parameters
    ----------
    capacity : words of payload that the buffer holds
    timeout : cycles without a byte after which an unfinished frame is forgotten, so that a host that died in
        the middle of one does not leave the link out of step

    Members
    -------
    i : bytes; not ready while a frame stands
    valid, header : a frame stands; until ``take`` (one cycle)
    fits : its payload is in the buffer (a longer one is swallowed, and its end lost)
    address, word : word ``address`` of the payload, one cycle later
    abandoned : one cycle: an unfinished frame was forgotten

    Latency: ``valid`` rises in the cycle after the last byte.
    """

    def __init__(self, *, capacity: int, timeout: int) -> None:
        for name, value in (("capacity", capacity), ("timeout", timeout)):
            if value < 2:
                raise ValueError(f"{name} must be at least 2, not {value}")
        self._capacity = capacity
        self._timeout = timeout
        super().__init__(
            {
                "i": In(BYTE),
                "valid": Out(1),
                "header": Out(HEADER),
                "fits": Out(1),
                "take": In(1),
                "address": In(range(capacity)),
                "word": Out(32),
                "abandoned": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # Filled while no frame stands, read only while one does: never both at once.
        m.submodules.buffer = buffer = Memory(
            shape=32, depth=self._capacity, init=[], attrs={"no_rw_check": 1}
        )
        write, read = buffer.write_port(), buffer.read_port()
        lane = Signal(2)
        low = Signal(24)
        whole = Signal()
        word = Cat(low, self.i.payload)
        position, left = Signal.like(write.addr), Signal(16)
        idle = Signal(range(self._timeout))
        m.d.comb += [
            self.i.ready.eq(~self.valid),
            whole.eq(self.i.valid & self.i.ready & (lane == 3)),
            write.addr.eq(position),
            write.data.eq(word),
            read.addr.eq(self.address),
            self.word.eq(read.data),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [lane.eq(lane + 1), low.eq(Cat(low[8:], self.i.payload))]
        with m.FSM() as fsm:
            with m.State("HEADER"):
                m.d.sync += position.eq(0)
                with m.If(whole):
                    words = data.View(HEADER, word).words
                    m.d.sync += [
                        self.header.as_value().eq(word),
                        self.fits.eq(words <= self._capacity),
                        left.eq(words),
                    ]
                    m.next = "PAYLOAD"
                    with m.If(words == 0):
                        m.next = "WHOLE"
            with m.State("PAYLOAD"):
                with m.If(whole):
                    m.d.comb += write.en.eq(self.fits)
                    m.d.sync += [position.eq(position + 1), left.eq(left - 1)]
                    with m.If(left == 1):
                        m.next = "WHOLE"
                with m.If(self.abandoned):
                    m.next = "HEADER"
            with m.State("WHOLE"):
                m.d.comb += self.valid.eq(1)
                with m.If(self.take):
                    m.next = "HEADER"

        m.d.sync += idle.eq(idle + 1)
        with m.If(self.i.valid | self.valid | ((lane == 0) & fsm.ongoing("HEADER"))):
            m.d.sync += idle.eq(0)
        with m.Elif(idle == self._timeout - 1):
            m.d.comb += self.abandoned.eq(1)
            m.d.sync += lane.eq(0)
        return m


class FrameSender(wiring.Component):
    """A header, then as many words as it announces, to bytes.

    Members
    -------
    header : stream of headers
    words : stream of 32-bit words; ready only for those of the header taken last
    o : bytes

    Throughput: four bytes in five cycles.
    """

    def __init__(self) -> None:
        super().__init__(
            {"header": In(stream.Signature(HEADER)), "words": In(stream.Signature(32)), "o": Out(BYTE)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        word = Signal(32)
        lanes = Signal(3)  # bytes of ``word`` still to go
        left = Signal(16)
        m.d.comb += [self.o.payload.eq(word[:8]), self.o.valid.eq(lanes != 0)]
        with m.If(lanes != 0):
            with m.If(self.o.ready):
                m.d.sync += [lanes.eq(lanes - 1), word.eq(word >> 8)]
        with m.Elif(left != 0):
            m.d.comb += self.words.ready.eq(1)
            with m.If(self.words.valid):
                m.d.sync += [lanes.eq(4), word.eq(self.words.payload), left.eq(left - 1)]
        with m.Else():
            m.d.comb += self.header.ready.eq(1)
            with m.If(self.header.valid):
                m.d.sync += [
                    lanes.eq(4),
                    word.eq(self.header.payload.as_value()),
                    left.eq(self.header.payload.words),
                ]
        return m
