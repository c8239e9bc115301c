"""Bridge: frames on a byte link to the accelerator's AXI ports, for boards that have nothing but a UART."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import Flow, In, Member, Out

from hw.host.axil import ADDRESS_BITS
from hw.host.frames import Error, Kind
from hw.host.framing import HEADER, FrameReceiver, FrameSender
from hw.host.uart import BYTE
from hw.router.gate import SIDE
from hw.top import PORTS

__all__ = ["AXI", "Bridge"]

#: The bus ports: those of the accelerator, seen from the other side.
AXI: dict[str, Member] = {
    name: (Out if member.flow is Flow.In else In)(member.shape)
    for name, member in PORTS.items()
    if name not in ("aclk", "aresetn", "sparse_attention")
}

BEAT_WORDS = 4  # words a beat of the weight stream


class Bridge(wiring.Component):
    """Carries out the commands of :mod:`hw.host.frames`, each once, and answers each as often as it comes.

    Parameters
    ----------
    capacity : longest payload in words: a token and its TUSER, a result, or a packet of weights
    patience : cycles that a FETCH waits for a result

    Members
    -------
    rx, tx : bytes from and to the host
    the AXI ports of the accelerator, as their manager (:data:`AXI`)
    reset : resets the accelerator (16 cycles)
    busy : a token is on its way, from its first word in to its last one out
    error : one cycle: a command was refused or a frame was damaged

    A command acts only once its whole frame is there, with the right CRC. A token moves into a buffer of its
    own, so that everything else goes on while it waits for the core. A result is collected whole; its buffer
    is free again with the first command after the one that it answered.

    Throughput: that of the byte link.
    """

    RX_BYTES = 16  # what the host may send ahead while a command is being carried out
    RESET_CYCLES = 16

    def __init__(self, *, capacity: int, patience: int = 1 << 15) -> None:
        for name, value, least in (("capacity", capacity, BEAT_WORDS), ("patience", patience, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        self._capacity = capacity
        self._patience = patience
        ports = {"rx": In(BYTE), "tx": Out(BYTE), "reset": Out(1), "busy": Out(1), "error": Out(1)}
        super().__init__({**ports, **AXI})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.fifo = fifo = SyncFIFO(width=8, depth=self.RX_BYTES)
        m.submodules.receiver = receiver = FrameReceiver(capacity=self._capacity)
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

        token = self._token_out(m)
        result = self._result_in(m)
        refused = self._serve(m, receiver, sender, token, result)

        waiting = Signal()
        with m.If(result["whole"] | self.reset):
            m.d.sync += waiting.eq(0)
        with m.If(token["start"]):
            m.d.sync += waiting.eq(1)
        m.d.comb += [self.busy.eq(waiting | token["full"]), self.error.eq(receiver.damaged | refused)]
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
            "side": Signal(SIDE.size, name="token_side"),
            "full": Signal(name="token_full"),  # from start until the last word has left
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
        with m.If(t["start"]):
            m.d.sync += [t["full"].eq(1), sent.eq(0), left.eq(t["words"])]
        with m.Elif(move):
            m.d.sync += [
                self.s_axis_x_tdata.eq(read.data),
                self.s_axis_x_tuser.eq(t["side"]),
                self.s_axis_x_tlast.eq(last),
                self.s_axis_x_tvalid.eq(1),
                sent.eq(sent + 1),
                left.eq(left - 1),
                fetched.eq(0),
                t["full"].eq(~last),
            ]
        with m.If(self.reset):
            m.d.sync += [t["full"].eq(0), self.s_axis_x_tvalid.eq(0)]
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
            "whole": Signal(name="result_whole"),  # one cycle: its last word comes in
            "free": Signal(name="result_free"),  # to be asserted: it has been told
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
            r["whole"].eq(take & (self.m_axis_y_tlast | (r["words"] == self._capacity - 1))),
        ]
        with m.If(take):
            m.d.sync += [r["words"].eq(r["words"] + 1), r["full"].eq(r["whole"])]
        with m.If(r["free"] | self.reset):
            m.d.sync += [r["full"].eq(0), r["words"].eq(0)]
        return r

    def _serve(
        self,
        m: Module,
        receiver: FrameReceiver,
        sender: FrameSender,
        token: dict[str, Signal],
        result: dict[str, Signal],
    ) -> Signal:
        """Commands one after the other: carried out, answered. Returns: one was refused (one cycle)."""
        header = receiver.header
        fetch = Signal(range(self._capacity + 1))  # the word asked for; receiver.word is the one before it
        beat = Signal(32 * BEAT_WORDS)
        lane = Signal(range(BEAT_WORDS + 1))
        wait = Signal(range(max(self._patience, self.RESET_CYCLES)))
        answered = Signal()  # ``reply`` is the answer to the command that came last
        reply, reply_word = Signal(HEADER), Signal(32)
        from_result = Signal()  # its payload is the result buffer
        refused = Signal()
        m.d.comb += receiver.address.eq(fetch)

        def answer(kind: Kind, words: Value | int, word: Value | int = 0, of_result: int = 0) -> None:
            m.d.sync += [
                reply.kind.eq(kind.value),
                reply.tag.eq(header.tag),
                reply.words.eq(words),
                reply_word.eq(word),
                from_result.eq(of_result),
                answered.eq(1),
            ]
            m.d.comb += receiver.take.eq(1)
            m.next = "ANSWER"

        def refuse(error: Error) -> None:
            m.d.comb += refused.eq(1)
            answer(Kind.REFUSED, 1, error.value)

        def start(state: str, right_length: Value) -> None:
            with m.If(receiver.fits & right_length):
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
                with m.If(receiver.valid):
                    m.next = "COMMAND"
            with m.State("COMMAND"):
                m.d.sync += [fetch.eq(1), wait.eq(self._patience - 1)]
                with m.If(header.kind == Kind.RESET.value):
                    m.d.sync += wait.eq(self.RESET_CYCLES - 1)
                    start("RESET", header.words == 0)
                with m.Elif(answered & (header.tag == reply.tag)):
                    m.d.comb += receiver.take.eq(1)
                    m.next = "ANSWER"
                with m.Else():
                    m.d.comb += result["free"].eq(answered & from_result)
                    with m.Switch(header.kind):
                        with m.Case(Kind.READ.value):
                            start("ADDRESS", header.words == 1)
                        with m.Case(Kind.WRITE.value):
                            start("ADDRESS", header.words == 2)
                        with m.Case(Kind.WEIGHTS.value):
                            start("WEIGHTS", (header.words[:2] == 0) & (header.words != 0))
                        with m.Case(Kind.TOKEN.value):
                            with m.If(token["full"]):
                                refuse(Error.BUSY)
                            with m.Else():
                                start("SIDE", header.words > 1)
                        with m.Case(Kind.FETCH.value):
                            m.d.sync += fetch.eq(0)
                            start("FETCH", header.words == 0)
                        with m.Default():
                            refuse(Error.UNKNOWN_KIND)

            with m.State("RESET"):
                m.d.comb += self.reset.eq(1)
                m.d.sync += wait.eq(wait - 1)
                with m.If(wait == 0):
                    answer(Kind.DONE, 1, self._capacity)

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

            with m.State("SIDE"):
                m.d.sync += [token["side"].eq(receiver.word), fetch.eq(fetch + 1)]
                m.next = "TOKEN"
            with m.State("TOKEN"):
                m.d.comb += [
                    token["address"].eq(fetch - 2),
                    token["data"].eq(receiver.word),
                    token["write"].eq(1),
                    token["words"].eq(header.words - 1),
                ]
                m.d.sync += fetch.eq(fetch + 1)
                with m.If(fetch == header.words):
                    m.d.comb += token["start"].eq(1)
                    answer(Kind.DONE, 0)

            with m.State("FETCH"):
                m.d.sync += wait.eq(wait - 1)
                with m.If(result["full"]):
                    answer(Kind.RESULT, result["words"], of_result=1)
                with m.Elif(self.m_axis_page_tvalid):
                    m.d.comb += self.m_axis_page_tready.eq(1)
                    answer(Kind.PAGE, 1, self.m_axis_page_tdata)
                with m.Elif(wait == 0):
                    answer(Kind.DONE, 0)

            with m.State("ANSWER"):
                m.d.comb += [sender.header.payload.eq(reply), sender.header.valid.eq(1)]
                m.d.sync += fetch.eq(0)
                with m.If(sender.header.ready):
                    m.next = "IDLE"
                    with m.If(reply.words != 0):
                        m.next = "LOOK_UP"
            with m.State("LOOK_UP"):
                m.next = "WORD"
            with m.State("WORD"):
                m.d.comb += [
                    sender.words.valid.eq(1),
                    sender.words.payload.eq(Mux(from_result, result["data"], reply_word)),
                ]
                with m.If(sender.words.ready):
                    m.d.sync += fetch.eq(fetch + 1)
                    m.next = "LOOK_UP"
                    with m.If(fetch == reply.words - 1):
                        m.next = "IDLE"
        m.d.comb += result["address"].eq(fetch)
        return refused
