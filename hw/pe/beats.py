"""Beats: rows that come in whole groups, as the stream of beats of rows that leaves the array."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from hw.pe.drain import info_layout, result_layout, rows_layout
from sw_model.config import HardwareConfig

__all__ = ["Beats"]


class Beats(wiring.Component):
    """Rows of a pass in order, ``config.drain`` a cycle, with what goes with them.

    Members
    -------
    info : stream of what goes with the rows (:func:`~hw.pe.drain.info_layout`), an item a pass
    i : stream of ``drain`` rows; ``tiles / columns`` rows are a group. Behind the last row of a pass, the
        rest of its group is dropped.
    o : stream of beats (:func:`~hw.pe.drain.rows_layout`)

    Latency: 1. Throughput: ``drain`` rows a cycle, those that are dropped too.
    """

    PASSES = 8

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        self._group = config.tiles // config.columns // config.drain
        super().__init__(
            {
                "info": In(stream.Signature(info_layout(config))),
                "i": In(stream.Signature(data.ArrayLayout(result_layout(config), config.drain))),
                "o": Out(stream.Signature(rows_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        width = self._config.drain
        layout = info_layout(self._config)
        m.submodules.infos = infos = SyncFIFO(width=layout.size, depth=self.PASSES)
        info = data.View(layout, infos.r_data)
        m.d.comb += [
            infos.w_data.eq(self.info.payload),
            infos.w_en.eq(self.info.valid),
            self.info.ready.eq(infos.w_rdy),
        ]
        at = Signal(range(max(2, self._group)))
        index, left = Signal.like(info.rows), Signal.like(info.rows)
        dropping, last, taken = Signal(), Signal(), Signal()
        m.d.comb += [
            left.eq(info.rows - index),
            last.eq(left <= width),
            taken.eq(self.i.valid & ~dropping & (~self.o.valid | self.o.ready)),
            self.i.ready.eq(dropping | taken),
            infos.r_en.eq(taken & last),
        ]
        out = self.o.payload
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(taken):
            m.d.sync += [
                self.o.valid.eq(1),
                out.rows.eq(self.i.payload),
                out.count.eq(Mux(last, left, width)),
                out.index.eq(index),
                out.last.eq(last),
                out.info.eq(info),
                index.eq(Mux(last, 0, index + width)),
            ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [at.eq(at + 1), dropping.eq(dropping | last)]
            with m.If(at == self._group - 1):
                m.d.sync += [at.eq(0), dropping.eq(0)]
        return m
