"""Drain: the tiles' results, a group of rows at a time, lined up as a stream of rows."""

from amaranth.hdl import Array as Choice
from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from sw_model.config import HardwareConfig
from sw_model.formats import ROW_EXP_BITS, TOP_BITS
from sw_model.tables import WEIGHT_BITS
from sw_model.topology import SPLIT_BITS

__all__ = ["Drain", "Kind", "PassInfo", "result_layout", "row_layout"]


class Kind(enum.Enum, shape=2):
    """What a pass computes, hence who takes its rows."""

    ROUTER = 0
    GATE_UP = 1
    DOWN = 2


#: What goes with the rows of a pass: ``base`` is the activations' exponent less ROW_EXP_BIAS; ``weight``,
#: ``first`` and ``final`` serve the combine; ``split``: groups of 2**split tiles give a row.
PassInfo = data.StructLayout(
    {
        "kind": Kind,
        "rows": 16,
        "base": signed(TOP_BITS + 1),
        "weight": WEIGHT_BITS,
        "first": 1,
        "final": 1,
        "split": SPLIT_BITS,
    }
)


def row_layout(config: HardwareConfig) -> data.StructLayout:
    """One row result: acc * 2**(row_exp + info.base); ``index`` in its matrix, ``last`` of it."""
    return data.StructLayout(
        {
            "acc": signed(config.acc_bits),
            "row_exp": ROW_EXP_BITS,
            "index": 16,
            "last": 1,
            "info": PassInfo,
        }
    )


def result_layout(config: HardwareConfig) -> data.StructLayout:
    """What a tile, or a group of tiles, has when a row is done: acc * 2**(row_exp - ROW_EXP_BIAS)."""
    return data.StructLayout({"acc": signed(config.acc_bits), "row_exp": ROW_EXP_BITS})


class Drain(wiring.Component):
    """Row r of a pass is the result r mod (tiles / 2**split); rows leave in order, one a cycle.

    When the tiles have finished a row each (2**split of them one together), the group of results moves
    into a small store; a new group may be started only when there is room for it, so the tiles never stall
    midway.

    Members
    -------
    info : stream of what goes with the rows (:data:`PassInfo`), an item a pass, in the passes' order
    start : a group is started; ``credit``: the next one may be
    results, done : results (:func:`result_layout`), the first tiles / 2**split of use, when they are finished
    o : stream of rows (:func:`row_layout`)

    Latency: 2 from ``done`` to the group's first row. Throughput: one row a cycle.
    """

    GROUPS = 8  # covers the latency from a row's start to its drain where rows take four steps

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        super().__init__(
            {
                "info": In(stream.Signature(PassInfo)),
                "start": In(1),
                "credit": Out(1),
                "results": In(data.ArrayLayout(result_layout(config), config.tiles)),
                "done": In(1),
                "o": Out(stream.Signature(row_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        tiles = self._config.tiles
        m.submodules.infos = infos = SyncFIFO(width=PassInfo.size, depth=self.GROUPS)
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

        info = data.View(PassInfo, infos.r_data)
        tile = Signal(range(max(2, tiles)))
        index = Signal(16)
        last = Signal()
        chosen = Choice(read.data[t] for t in range(tiles))[tile]
        m.d.comb += last.eq(index == info.rows - 1)
        with m.If(~self.o.valid | self.o.ready):
            m.d.sync += self.o.valid.eq(stored != 0)
            with m.If(stored != 0):
                m.d.sync += [
                    self.o.payload.acc.eq(chosen.acc),
                    self.o.payload.row_exp.eq(chosen.row_exp),
                    self.o.payload.index.eq(index),
                    self.o.payload.last.eq(last),
                    self.o.payload.info.eq(info),
                    tile.eq(tile + 1),
                    index.eq(index + 1),
                ]
                m.d.comb += freed.eq(last | (tile == (tiles >> info.split) - 1))
                with m.If(freed):
                    m.d.sync += tile.eq(0)
                with m.If(last):
                    m.d.sync += index.eq(0)
                    m.d.comb += infos.r_en.eq(1)
        return m
