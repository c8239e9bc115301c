"""Bridge: frames on a byte link to the accelerator's AXI ports, for boards that have nothing but a UART."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import Flow, In, Member, Out

from hw.host.axil import ADDRESS_BITS
from hw.host.frames import Error, Kind
from hw.host.framing import HEADER, FrameReceiver, FrameSender
from hw.host.uart import BYTE
from hw.top import PORTS

__all__ = ["AXI", "Bridge"]

#: The bus ports: those of the accelerator, seen from the other side.
AXI: dict[str, Member] = {
    name: (Out if member.flow is Flow.In else In)(member.shape)
    for name, member in PORTS.items()
    if name not in ("aclk", "aresetn")
}

BEAT_WORDS = 4  # words a beat of the weight stream


class Bridge(wiring.Component):
    """Carries out the commands of :mod:`hw.host.frames`.

    Parameters
    ----------
    capacity : longest payload in words, a token in either direction or a packet of weights
    timeout : see :class:`FrameReceiver`

    Members
    -------
    rx, tx : bytes from and to the host
    the AXI ports of the accelerator, as their manager (:data:`AXI`)
    busy : a token is on its way, from its first byte in to its last one out
    error : one cycle: a command was refused or a frame abandoned

    A command acts only once its whole frame is there. A token moves into a buffer of its own, so registers
    can be read and written while it waits for the core. Results are collected whole before they are sent: the
    core waits for the host, never the other way round. Weights are loaded while no token is in the core;
    pages when it asks for them.

    Throughput: that of the byte link.
    """

    RX_BYTES = 16  # what the host may send ahead while a command is being carried out

    def __init__(self, *, capacity: int, timeout: int) -> None:
        self._capacity = capacity
        self._timeout = timeout
        super().__init__({"rx": In(BYTE), "tx": Out(BYTE), "busy": Out(1), "error": Out(1), **AXI})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.fifo = fifo = SyncFIFO(width=8, depth=self.RX_BYTES)
        m.submodules.receiver = receiver = FrameReceiver(capacity=self._capacity, timeout=self._timeout)
        m.submodules.sender = sender = FrameSender()
        m.d.comb += [
            fifo.w_data.eq(self.rx.payload),
            fifo.w_en.eq(self.rx.valid),
            self.rx.ready.eq(fifo.w_rdy),
            receiver.i.payload.eq(fifo.r_data),
            receiver.i.valid.eq(fifo.r_rdy),
            fifo.r_en.eq(receiver.i.ready),
        ]
        wiring.connect(m, wiring.flipped(self.tx), sender.o)

        reply, reply_word, reply_valid = Signal(HEADER), Signal(32), Signal()
        token = self._token_out(m)
        result = self._result_in(m)
        self._commands(m, receiver, token, reply, reply_word, reply_valid)
        self._answers(m, sender, token, result, reply, reply_word, reply_valid)

        # Tokens between the buffer and the last word of the result, two of them in the core.
        inside = Signal(4)
        m.d.sync += inside.eq(inside + token["start"] - result["done"])
        refused = Signal()
        m.d.sync += refused.eq(reply_valid)
        m.d.comb += [
            self.busy.eq(inside != 0),
            self.error.eq(receiver.abandoned | (reply_valid & ~refused & (reply.kind == Kind.REFUSED.value))),
        ]
        return m

    def _token_out(self, m: Module) -> dict[str, Signal]:
        """The token buffer and its way into the core."""
        m.submodules.token_buffer = buffer = Memory(
            shape=32, depth=self._capacity, init=[], attrs={"no_rw_check": 1}
        )
        write, read = buffer.write_port(), buffer.read_port()
        t = {
            "address": write.addr,
            "data": write.data,
            "write": write.en,
            "start": Signal(name="token_start"),  # the buffer holds a token of ``words`` words
            "words": Signal(16, name="token_words"),
            "full": Signal(name="token_full"),  # from start until the last word has left
            "tag": Signal(8, name="token_tag"),
            "done": Signal(name="token_done"),  # to be told to the host; cleared by "told"
            "told": Signal(name="token_told"),
        }
        sent, left = Signal.like(read.addr), Signal(16)
        fetched, move, last = Signal(), Signal(), Signal()
        m.d.comb += [
            read.addr.eq(sent),
            # A register between block RAM and core, as the one's output and the other's input are both slow.
            move.eq(t["full"] & fetched & (~self.s_axis_x_tvalid | self.s_axis_x_tready)),
            last.eq(left == 1),
        ]
        m.d.sync += fetched.eq(t["full"])
        with m.If(self.s_axis_x_tready):
            m.d.sync += self.s_axis_x_tvalid.eq(0)
        with m.If(t["told"]):
            m.d.sync += t["done"].eq(0)
        with m.If(t["start"]):
            m.d.sync += [t["full"].eq(1), sent.eq(0), left.eq(t["words"])]
        with m.Elif(move):
            m.d.sync += [
                self.s_axis_x_tdata.eq(read.data),
                self.s_axis_x_tlast.eq(last),
                self.s_axis_x_tvalid.eq(1),
                sent.eq(sent + 1),
                left.eq(left - 1),
                fetched.eq(0),
            ]
            with m.If(last):
                m.d.sync += [t["full"].eq(0), t["done"].eq(1)]
        return t

    def _result_in(self, m: Module) -> dict[str, Signal]:
        """The result buffer: filled from the core, then read by the sender."""
        m.submodules.result_buffer = buffer = Memory(
            shape=32, depth=self._capacity, init=[], attrs={"no_rw_check": 1}
        )
        write, read = buffer.write_port(), buffer.read_port()
        r = {
            "words": Signal(16, name="result_words"),
            "full": Signal(name="result_full"),
            "done": Signal(name="result_done"),  # sent
            "address": read.addr,
            "data": read.data,
        }
        take = Signal()
        m.d.comb += [
            self.m_axis_y_tready.eq(~r["full"]),
            take.eq(self.m_axis_y_tvalid & ~r["full"]),
            write.addr.eq(r["words"]),
            write.data.eq(self.m_axis_y_tdata),
            write.en.eq(take),
        ]
        with m.If(take):
            m.d.sync += r["words"].eq(r["words"] + 1)
            with m.If(self.m_axis_y_tlast | (r["words"] == self._capacity - 1)):
                m.d.sync += r["full"].eq(1)
        with m.If(r["done"]):
            m.d.sync += [r["full"].eq(0), r["words"].eq(0)]
        return r

    def _commands(
        self,
        m: Module,
        receiver: FrameReceiver,
        token: dict[str, Signal],
        reply: Signal,
        reply_word: Signal,
        reply_valid: Signal,
    ) -> None:
        header = receiver.header
        fetch = Signal(range(self._capacity + 1))  # the word asked for; receiver.word is the one before it
        beat = Signal(32 * BEAT_WORDS)
        lane = Signal(range(BEAT_WORDS + 1))
        m.d.comb += receiver.address.eq(fetch)

        def answer(kind: Kind, words: int, word: object = 0) -> None:
            m.d.sync += [
                reply.kind.eq(kind.value),
                reply.tag.eq(header.tag),
                reply.words.eq(words),
                reply_word.eq(word),
                reply_valid.eq(1),
            ]
            m.d.comb += receiver.take.eq(1)
            m.next = "IDLE"

        def refuse(error: Error) -> None:
            answer(Kind.REFUSED, 1, error.value)

        def start(state: str, right_length: object) -> None:
            with m.If(receiver.fits & right_length):
                m.d.sync += fetch.eq(1)
                m.next = state
            with m.Else():
                refuse(Error.WRONG_LENGTH)

        address = Signal(32)
        m.d.comb += [self.s_axil_awaddr.eq(address), self.s_axil_araddr.eq(address)]
        m.d.comb += [self.s_axil_wdata.eq(receiver.word), self.s_axil_wstrb.eq(0xF)]
        m.d.comb += [self.s_axis_w_tdata.eq(beat), self.s_axis_w_tlast.eq(fetch == header.words)]

        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [fetch.eq(0), lane.eq(0)]
                with m.If(receiver.valid & ~reply_valid & (fetch == 0)):
                    with m.Switch(header.kind):
                        with m.Case(Kind.READ.value):
                            start("ADDRESS", header.words == 1)
                        with m.Case(Kind.WRITE.value):
                            start("ADDRESS", header.words == 2)
                        with m.Case(Kind.WEIGHTS.value):
                            start("WEIGHTS", (header.words[:2] == 0) & (header.words != 0))
                        with m.Case(Kind.TOKEN.value):
                            with m.If(token["full"] | token["done"]):
                                refuse(Error.BUSY)
                            with m.Else():
                                start("TOKEN", header.words != 0)
                        with m.Default():
                            refuse(Error.UNKNOWN_KIND)

            with m.State("ADDRESS"):
                m.d.sync += address.eq(receiver.word)
                m.next = "ACCESS"
            with m.State("ACCESS"):
                with m.If(address[ADDRESS_BITS:].any()):  # no such register, rather than one of the low ones
                    refuse(Error.BUS_ERROR)
                with m.Elif(header.kind == Kind.READ.value):
                    m.d.sync += self.s_axil_arvalid.eq(1)
                    m.next = "READ"
                with m.Else():
                    m.d.sync += [self.s_axil_awvalid.eq(1), self.s_axil_wvalid.eq(1)]
                    m.next = "WRITE"
            with m.State("READ"):
                with m.If(self.s_axil_arready):
                    m.d.sync += self.s_axil_arvalid.eq(0)
                m.d.comb += self.s_axil_rready.eq(1)
                with m.If(self.s_axil_rvalid):
                    with m.If(self.s_axil_rresp == 0):
                        answer(Kind.DONE, 1, self.s_axil_rdata)
                    with m.Else():
                        refuse(Error.BUS_ERROR)
            with m.State("WRITE"):
                with m.If(self.s_axil_awready):
                    m.d.sync += self.s_axil_awvalid.eq(0)
                with m.If(self.s_axil_wready):
                    m.d.sync += self.s_axil_wvalid.eq(0)
                m.d.comb += self.s_axil_bready.eq(1)
                with m.If(self.s_axil_bvalid):
                    with m.If(self.s_axil_bresp == 0):
                        answer(Kind.DONE, 0)
                    with m.Else():
                        refuse(Error.BUS_ERROR)

            with m.State("WEIGHTS"):  # collect a beat
                m.d.sync += [beat.eq(Cat(beat[32:], receiver.word)), lane.eq(lane + 1)]
                with m.If(lane == BEAT_WORDS - 1):
                    m.next = "BEAT"
                with m.Else():
                    m.d.sync += fetch.eq(fetch + 1)
            with m.State("BEAT"):
                m.d.comb += self.s_axis_w_tvalid.eq(1)
                with m.If(self.s_axis_w_tready):
                    m.d.sync += [fetch.eq(fetch + 1), lane.eq(0)]
                    m.next = "WEIGHTS"
                    with m.If(self.s_axis_w_tlast):
                        answer(Kind.DONE, 0)

            with m.State("TOKEN"):
                m.d.comb += [
                    token["address"].eq(fetch - 1),
                    token["data"].eq(receiver.word),
                    token["write"].eq(1),
                ]
                m.d.sync += fetch.eq(fetch + 1)
                with m.If(fetch == header.words):
                    m.d.sync += token["tag"].eq(header.tag)
                    m.d.comb += [token["words"].eq(header.words), token["start"].eq(1), receiver.take.eq(1)]
                    m.next = "IDLE"

    def _answers(
        self,
        m: Module,
        sender: FrameSender,
        token: dict[str, Signal],
        result: dict[str, Signal],
        reply: Signal,
        reply_word: Signal,
        reply_valid: Signal,
    ) -> None:
        head = sender.header
        word = sender.words
        position, left = Signal.like(result["address"]), Signal(16)
        fetched = Signal()
        m.d.comb += result["address"].eq(position)
        m.d.sync += fetched.eq(0)
        with m.FSM():
            with m.State("CHOOSE"):
                m.d.sync += position.eq(0)
                with m.If(reply_valid):
                    m.next = "REPLY"
                with m.Elif(token["done"]):
                    m.next = "TOKEN"
                with m.Elif(self.m_axis_page_tvalid):
                    m.next = "PAGE"
                with m.Elif(result["full"]):
                    m.next = "RESULT"
            with m.State("REPLY"):
                m.d.comb += [head.payload.eq(reply), head.valid.eq(1)]
                with m.If(head.ready):
                    m.next = "REPLY_WORD"
            with m.State("REPLY_WORD"):
                m.d.comb += [word.payload.eq(reply_word), word.valid.eq(reply.words != 0)]
                with m.If(word.ready | (reply.words == 0)):
                    m.d.sync += reply_valid.eq(0)
                    m.next = "CHOOSE"
            with m.State("TOKEN"):
                m.d.comb += [
                    head.payload.kind.eq(Kind.DONE.value),
                    head.payload.tag.eq(token["tag"]),
                    head.valid.eq(1),
                ]
                with m.If(head.ready):
                    m.d.comb += token["told"].eq(1)
                    m.next = "CHOOSE"
            with m.State("PAGE"):
                m.d.comb += [
                    head.payload.kind.eq(Kind.PAGE.value),
                    head.payload.words.eq(1),
                    head.valid.eq(1),
                ]
                with m.If(head.ready):
                    m.next = "PAGE_WORD"
            with m.State("PAGE_WORD"):
                m.d.comb += [word.payload.eq(self.m_axis_page_tdata), word.valid.eq(1)]
                with m.If(word.ready):
                    m.d.comb += self.m_axis_page_tready.eq(1)
                    m.next = "CHOOSE"
            with m.State("RESULT"):
                m.d.comb += [
                    head.payload.kind.eq(Kind.RESULT.value),
                    head.payload.words.eq(result["words"]),
                    head.valid.eq(1),
                ]
                m.d.sync += left.eq(result["words"])
                with m.If(head.ready):
                    m.next = "RESULT_WORDS"
            with m.State("RESULT_WORDS"):
                m.d.sync += fetched.eq(1)
                m.d.comb += [word.payload.eq(result["data"]), word.valid.eq(fetched)]
                with m.If(fetched & word.ready):
                    m.d.sync += [position.eq(position + 1), left.eq(left - 1), fetched.eq(0)]
                    with m.If(left == 1):
                        m.d.comb += result["done"].eq(1)
                        m.next = "CHOOSE"
