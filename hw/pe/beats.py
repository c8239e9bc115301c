"""Beats: rows that come several at a time, as the stream of rows that leaves the array."""

from amaranth.hdl import Array as Choice
from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from hw.pe.drain import PassInfo, result_layout, row_layout
from sw_model.config import HardwareConfig

__all__ = ["Beats"]


class Beats(wiring.Component):
    """Rows of a pass in order, one a cycle, with what goes with them.

    Parameters
    ----------
    lanes : rows of a beat; ``tiles / lanes`` beats are a group. Behind the last row of a pass, the rest of
        its group is dropped.

    Members
    -------
    info : stream of what goes with the rows (:data:`~hw.pe.drain.PassInfo`), an item a pass
    i : stream of beats
    o : stream of rows (:func:`~hw.pe.drain.row_layout`)

    Latency: 1. Throughput: one row a cycle; a beat that is dropped takes a cycle.
    """

    PASSES = 8

    def __init__(self, config: HardwareConfig, lanes: int) -> None:
        self._config = config
        self._lanes = lanes
        super().__init__(
            {
                "info": In(stream.Signature(PassInfo)),
                "i": In(stream.Signature(data.ArrayLayout(result_layout(config), lanes))),
                "o": Out(stream.Signature(row_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        n = self._lanes
        beats = self._config.tiles // n
        m.submodules.infos = infos = SyncFIFO(width=PassInfo.size, depth=self.PASSES)
        info = data.View(PassInfo, infos.r_data)
        m.d.comb += [
            infos.w_data.eq(self.info.payload),
            infos.w_en.eq(self.info.valid),
            self.info.ready.eq(infos.w_rdy),
        ]
        lane, beat = Signal(range(max(2, n))), Signal(range(max(2, beats)))
        index = Signal(16)
        dropping, last, taken = Signal(), Signal(), Signal()
        row = Choice(self.i.payload[j] for j in range(n))[lane]
        m.d.comb += [
            last.eq(index == info.rows - 1),
            taken.eq(self.i.valid & ~dropping & (~self.o.valid | self.o.ready)),
            self.i.ready.eq(dropping | (taken & (last | (lane == n - 1)))),
            infos.r_en.eq(taken & last),
        ]
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(taken):
            m.d.sync += [
                self.o.valid.eq(1),
                self.o.payload.acc.eq(row.acc),
                self.o.payload.row_exp.eq(row.row_exp),
                self.o.payload.index.eq(index),
                self.o.payload.last.eq(last),
                self.o.payload.info.eq(info),
                index.eq(index + 1),
                lane.eq(lane + 1),
            ]
            with m.If(last):
                m.d.sync += index.eq(0)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [lane.eq(0), beat.eq(beat + 1), dropping.eq(dropping | last)]
            with m.If(beat == beats - 1):
                m.d.sync += [beat.eq(0), dropping.eq(0)]
        return m
