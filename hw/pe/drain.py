"""Drain: the tiles' results, a group of rows at a time, lined up as a stream of beats of rows."""

from amaranth.hdl import Array as Choice
from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from sw_model.config import HardwareConfig
from sw_model.formats import ROW_EXP_BITS, TOP_BITS
from sw_model.tables import WEIGHT_BITS
from sw_model.timing import SLOTS
from sw_model.topology import SPLIT_BITS

__all__ = ["Drain", "Kind", "info_layout", "result_layout", "rows_layout"]


class Kind(enum.Enum, shape=2):
    """What a pass computes, hence who takes its rows."""

    ROUTER = 0
    GATE_UP = 1
    DOWN = 2


def info_layout(config: HardwareConfig) -> data.StructLayout:
    """What goes with the rows of a pass: ``base`` is the activations' exponent less ROW_EXP_BIAS; ``weight``,
    ``first`` and ``final`` serve the combine; ``split``: groups of 2**split tiles give a row."""
    return data.StructLayout(
        {
            "kind": Kind,
            "rows": range(config.max_rows + 1),
            "base": signed(TOP_BITS + 1),
            "weight": WEIGHT_BITS,
            "first": 1,
            "final": 1,
            "split": SPLIT_BITS,
        }
    )


def result_layout(config: HardwareConfig) -> data.StructLayout:
    """What a tile, or a group of tiles, has when a row is done: acc * 2**(row_exp - ROW_EXP_BIAS)."""
    return data.StructLayout({"acc": signed(config.acc_bits), "row_exp": ROW_EXP_BITS})


def rows_layout(config: HardwareConfig) -> data.StructLayout:
    """A beat: the first ``count`` of ``drain`` row results, acc * 2**(row_exp + info.base); ``index`` of the
    first in the matrix, a multiple of ``drain``; ``last`` of the pass."""
    return data.StructLayout(
        {
            "rows": data.ArrayLayout(result_layout(config), config.drain),
            "count": range(config.drain + 1),
            "index": range(config.max_rows),
            "last": 1,
            "info": info_layout(config),
        }
    )


class Drain(wiring.Component):
    """Row r of a pass is the result r mod (tiles / 2**split); rows leave in order, ``config.drain`` a cycle.

    When the tiles have finished a row each (2**split of them one together), the group of results moves
    into a small store; a new group may be started only when there is room for it, so the tiles never stall
    midway.

    Members
    -------
    info : stream of what goes with the rows (:func:`info_layout`), an item a pass, in the passes' order
    start : a group is started; ``credit``: the next one may be
    results, done : results (:func:`result_layout`), the first tiles / 2**split of use, when they are finished
    o : stream of beats (:func:`rows_layout`)

    Latency: 2 from ``done`` to the group's first rows. Throughput: a beat a cycle; where a group is smaller
    than a beat, a group a cycle.
    """

    GROUPS = SLOTS  # covers the latency from a row's start to its drain where rows take four steps

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        super().__init__(
            {
                "info": In(stream.Signature(info_layout(config))),
                "start": In(1),
                "credit": Out(1),
                "results": In(data.ArrayLayout(result_layout(config), config.tiles)),
                "done": In(1),
                "o": Out(stream.Signature(rows_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        tiles = self._config.tiles
        layout = info_layout(self._config)
        m.submodules.infos = infos = SyncFIFO(width=layout.size, depth=self.GROUPS)
        m.submodules.groups = groups = Memory(shape=self.results.shape(), depth=self.GROUPS, init=[])
        write, read = groups.write_port(), groups.read_port(domain="comb")
        stored, started = Signal(range(self.GROUPS + 1)), Signal(range(self.GROUPS + 1))
        freed = Signal()
        m.d.comb += [
            infos.w_data.eq(self.info.payload),
            infos.w_en.eq(self.info.valid),
            self.info.ready.eq(infos.w_rdy),
            write.data.eq(self.results),
            write.en.eq(self.done),
            self.credit.eq(started != self.GROUPS),
        ]
        m.d.sync += [
            write.addr.eq(write.addr + self.done),
            read.addr.eq(read.addr + freed),
            stored.eq(stored + self.done - freed),
            started.eq(started + self.start - freed),
        ]

        info = data.View(layout, infos.r_data)
        width, least = self._config.drain, tiles // self._config.columns
        group, take = Signal(range(tiles + 1)), Signal(range(width + 1))  # results of a group, of them now
        at = Signal(range(max(2, tiles)))  # of the group: those before have left
        index, next_index = Signal.like(info.rows), Signal(len(info.rows) + 1)  # rows that have left
        within = Signal(range(max(2, width)))  # of the beat: rows that are there
        last, whole, move = Signal(), Signal(), Signal()
        m.d.comb += [
            group.eq(tiles >> info.split if least < tiles else tiles),
            take.eq(Mux(group < width, group, width) if least < width else width),
            next_index.eq(index + take),
            last.eq(next_index >= info.rows),
            whole.eq(last | (within + take == width)),
            freed.eq(move & (last | (at + take == group))),
            move.eq((~self.o.valid | self.o.ready) & (stored != 0)),
            infos.r_en.eq(move & last),
        ]
        out = self.o.payload
        with m.If(~self.o.valid | self.o.ready):
            m.d.sync += self.o.valid.eq((stored != 0) & whole)
        with m.If(move):
            m.d.sync += [
                out.last.eq(last),
                out.info.eq(info),
                out.count.eq(Mux(last, info.rows - (index - within), width)),
                at.eq(Mux(freed, 0, at + take)),
                index.eq(Mux(last, 0, next_index)),
                within.eq(Mux(whole, 0, within + take)),
            ]
            with m.If(within == 0):
                m.d.sync += out.index.eq(index)
            for lane in range(width):
                # A group at least as large as a beat gives whole beats; of a smaller one, each gives a part.
                parts = [read.data[first + lane] for first in range(0, tiles, width)]
                chosen = Choice(parts)[at[(width - 1).bit_length() :]] if len(parts) > 1 else parts[0]
                with m.If(group >= width if least < width else 1):
                    m.d.sync += out.rows[lane].eq(chosen)
                n = least
                while n < width:
                    with m.If((group == n) & (within == lane // n * n)):
                        m.d.sync += out.rows[lane].eq(read.data[lane % n])
                    n *= 2
        return m
