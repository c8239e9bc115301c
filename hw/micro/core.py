"""The small core: a scalar processor with a program, an engine for rows, and frames to and from the host."""

from amaranth.hdl import Cat, ClockDomain, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.cdc import ResetSynchronizer
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.energy.counters import COUNTER_BITS
from hw.host.framing import FrameReceiver, FrameSender
from hw.micro.engine import Engine
from hw.micro.firmware import TABLE_BITS, firmware
from hw.micro.isa import FIRST_PORT, Port
from hw.micro.layout import Layout
from hw.micro.processor import Processor
from sw_model.config import HardwareConfig

__all__ = ["PORTS", "Core"]

#: Ports: bytes from and to the host as AXI4-Stream, and what lamps show.
PORTS = {
    "aclk": In(1),
    "aresetn": In(1),
    "s_axis_rx_tdata": In(8),
    "s_axis_rx_tvalid": In(1),
    "s_axis_rx_tready": Out(1),
    "m_axis_tx_tdata": Out(8),
    "m_axis_tx_tvalid": Out(1),
    "m_axis_tx_tready": In(1),
    "busy": Out(1),
    "error": Out(1),
}


class Core(wiring.Component):
    """y = sum_e w_e E_e(x) + w_base E_base(x), bit for bit as :func:`sw_model.golden.run`, for the smallest
    devices.

    The array's 16 multipliers and the sums of rows are hardware, all else is done by a processor, whose
    program (:mod:`hw.micro.firmware`) speaks the frames of :mod:`hw.host.frames` with the registers of
    :mod:`hw.host.registers`. A token is computed once its frame is there, and the next one may come
    meanwhile.

    Parameters
    ----------
    config : of body "micro"

    Members (:data:`PORTS`)
    -----------------------
    s_axis_rx, m_axis_tx : bytes from and to the host
    busy : a token is computed; error : a command was refused, or a frame was damaged (one cycle at least)

    Latency: some 230,000 cycles a token of hidden size 160, two experts of 32 and a base expert of 64.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        super().__init__(PORTS)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.domains.sync = sync = ClockDomain()
        m.d.comb += sync.clk.eq(self.aclk)
        m.submodules.reset = ResetSynchronizer(~self.aresetn)
        program, constants = firmware(self._config)
        m.submodules.processor = processor = Processor(program)
        m.submodules.engine = engine = Engine(self._config)
        m.submodules.receiver = receiver = FrameReceiver(capacity=Layout(self._config).capacity)
        m.submodules.sender = sender = FrameSender()
        m.submodules.table = table = Memory(
            shape=TABLE_BITS, depth=len(constants), init=list(constants), attrs={"no_rw_check": 1}
        )
        entry = table.read_port()
        m.d.comb += [
            receiver.i.payload.eq(self.s_axis_rx_tdata),
            receiver.i.valid.eq(self.s_axis_rx_tvalid),
            self.s_axis_rx_tready.eq(receiver.i.ready),
            self.m_axis_tx_tdata.eq(sender.o.payload),
            self.m_axis_tx_tvalid.eq(sender.o.valid),
            sender.o.ready.eq(self.m_axis_tx_tready),
        ]

        def here(port: Port) -> Signal:
            return processor.port == port - FIRST_PORT

        def put(port: Port) -> Signal:
            return processor.put & here(port)

        word_at, table_at = Signal.like(receiver.address), Signal.like(entry.addr)
        cycles, failed = Signal(COUNTER_BITS), Signal()
        m.d.comb += [receiver.address.eq(word_at), entry.addr.eq(table_at)]
        m.d.sync += [cycles.eq(cycles + 1), failed.eq(0)]
        for port, counter in ((Port.FRAME_AT, word_at), (Port.TABLE_AT, table_at)):
            reading = Port.FRAME_WORD if port is Port.FRAME_AT else Port.TABLE
            with m.If(put(port)):
                m.d.sync += counter.eq(processor.data)
            with m.Elif(processor.get & here(reading)):
                m.d.sync += counter.eq(counter + 1)
        with m.If(put(Port.LAMPS)):
            m.d.sync += [self.busy.eq(processor.data[0]), failed.eq(processor.data[1])]
        m.d.comb += [
            receiver.take.eq(put(Port.FRAME_TAKE)),
            sender.header.payload.eq(processor.data),
            sender.header.valid.eq(processor.gives & here(Port.ANSWER)),
            sender.words.payload.eq(processor.data),
            sender.words.valid.eq(processor.gives & here(Port.ANSWER_WORD)),
            engine.value.eq(processor.data),
            engine.set_word.eq(put(Port.WORD)),
            engine.set_scale.eq(put(Port.SCALE)),
            engine.set_shape.eq(put(Port.SHAPE)),
            engine.go.eq(put(Port.GO)),
            engine.set_memory.eq(put(Port.MEMORY_AT)),
            engine.put_memory.eq(put(Port.MEMORY)),
            engine.set_act.eq(put(Port.ACT_AT)),
            engine.put_act.eq(put(Port.ACT)),
            engine.put_act_shift.eq(put(Port.ACT_SHIFT)),
            self.error.eq(failed | receiver.damaged),
        ]

        # What the ports read, and when they are not ready.
        found = {
            Port.FRAME: Cat(receiver.header.as_value(), receiver.fits),
            Port.FRAME_WORD: receiver.word,
            Port.TABLE: entry.data,
            Port.SUM: engine.sum,
            Port.ROW_EXP: engine.row_exp,
            Port.WORD: engine.word,
            Port.SCALE: engine.scale,
            Port.READS: engine.reads,
            Port.SUMS: engine.sums,
            Port.Q: processor.q,
            Port.COUNT: processor.count,
            Port.CYCLES: cycles,
        }
        with m.Switch(processor.port):
            for port, value in found.items():
                with m.Case(port - FIRST_PORT):
                    m.d.comb += processor.value.eq(value)
        waits = {
            Port.FRAME: ~receiver.valid,
            Port.ANSWER: ~sender.header.ready,
            Port.ANSWER_WORD: ~sender.words.ready,
            **{
                port: engine.busy
                for port in (
                    Port.SUM, Port.ROW_EXP, Port.WORD, Port.SCALE, Port.SHAPE, Port.GO, Port.MEMORY,
                    Port.READS, Port.SUMS,
                )
            },
        }  # fmt: skip
        with m.Switch(processor.port):
            for port, busy in waits.items():
                with m.Case(port - FIRST_PORT):
                    m.d.comb += processor.wait.eq(busy)
        return m
