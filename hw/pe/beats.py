"""Beats: rows that come several at a time, as the stream of beats of rows that leaves the array."""

from amaranth.hdl import Array as Choice
from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from hw.pe.drain import PassInfo, result_layout, rows_layout
from sw_model.config import HardwareConfig

__all__ = ["Beats"]


class Beats(wiring.Component):
    """Rows of a pass in order, ``config.drain`` a cycle, with what goes with them.

    Parameters
    ----------
    lanes : rows that come at a time, a multiple of ``config.drain``; ``tiles / columns / lanes`` times that
        are a group. Behind the last row of a pass, the rest of its group is dropped.

    Members
    -------
    info : stream of what goes with the rows (:data:`~hw.pe.drain.PassInfo`), an item a pass
    i : stream of ``lanes`` rows
    o : stream of beats (:func:`~hw.pe.drain.rows_layout`)

    Latency: 1. Throughput: a beat a cycle; rows that are dropped take a cycle for every ``lanes``.
    """

    PASSES = 8

    def __init__(self, config: HardwareConfig, lanes: int) -> None:
        self._config = config
        self._parts = lanes // config.drain
        self._group = config.tiles // config.columns // lanes
        super().__init__(
            {
                "info": In(stream.Signature(PassInfo)),
                "i": In(stream.Signature(data.ArrayLayout(result_layout(config), lanes))),
                "o": Out(stream.Signature(rows_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        width, parts = self._config.drain, self._parts
        m.submodules.infos = infos = SyncFIFO(width=PassInfo.size, depth=self.PASSES)
        info = data.View(PassInfo, infos.r_data)
        m.d.comb += [
            infos.w_data.eq(self.info.payload),
            infos.w_en.eq(self.info.valid),
            self.info.ready.eq(infos.w_rdy),
        ]
        part, at = Signal(range(max(2, parts))), Signal(range(max(2, self._group)))
        index, left = Signal(16), Signal(17)
        dropping, last, taken = Signal(), Signal(), Signal()
        m.d.comb += [
            left.eq(info.rows - index),
            last.eq(left <= width),
            taken.eq(self.i.valid & ~dropping & (~self.o.valid | self.o.ready)),
            self.i.ready.eq(dropping | (taken & (last | (part == parts - 1)))),
            infos.r_en.eq(taken & last),
        ]
        out = self.o.payload
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(taken):
            m.d.sync += [
                self.o.valid.eq(1),
                *[
                    out.rows[k].eq(Choice(self.i.payload[j * width + k] for j in range(parts))[part])
                    for k in range(width)
                ],
                out.count.eq(Mux(last, left, width)),
                out.index.eq(index),
                out.last.eq(last),
                out.info.eq(info),
                index.eq(Mux(last, 0, index + width)),
                part.eq(part + 1),
            ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [part.eq(0), at.eq(at + 1), dropping.eq(dropping | last)]
            with m.If(at == self._group - 1):
                m.d.sync += [at.eq(0), dropping.eq(0)]
        return m
