"""Level 3 of the gate: what an expert costs."""

from amaranth.hdl import Module, Mux
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.router.q78 import Q78, saturate, signed16
from hw.rows import in_row, layer_member
from sw_model.config import HardwareConfig

__all__ = ["Cost"]


class Cost(wiring.Component):
    """C[e] = cost[e] + (0 if resident[e] else miss[e]), Q7.8.

    Parameters
    ----------
    init : initial {miss, cost} entries (a baked image)

    Members
    -------
    layer, expert : ``cost`` is C[expert] of the layer, ``LATENCY`` cycles later
    load_addr, load_data : {miss, cost} of an expert, in the layer's row (:func:`sw_model.packets.row_bits`),
        with ``load_en``; an expert's residency with ``resident_en``

    The host writes residency between batches only, so that a batch sees one snapshot; it is that of whatever
    layer the batch goes through.
    """

    LATENCY = 2

    def __init__(self, config: HardwareConfig, init: list[int] | None = None) -> None:
        self._init = [{"cost": signed16(v), "miss": signed16(v >> 16)} for v in init or []]
        self._residents = max(2, config.max_experts)
        self._bits = (self._residents - 1).bit_length()
        self._depth = ((config.max_layers - 1) << self._bits) + self._residents
        super().__init__(
            {
                **layer_member(config),
                "expert": In(self._bits),
                "cost": Out(Q78),
                "load_addr": In(32),
                "load_data": In(32),
                "load_en": In(1),
                "resident_en": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        entry = data.StructLayout({"cost": Q78, "miss": Q78})
        m.submodules.table = table = Memory(
            shape=entry, depth=self._depth, init=self._init[: self._depth], attrs={"no_rw_check": 1}
        )
        m.submodules.resident = resident = Memory(
            shape=1, depth=self._residents, init=[1] * self._residents, attrs={"no_rw_check": 1}
        )
        for memory, enable in ((table, self.load_en), (resident, self.resident_en)):
            write = memory.write_port()
            m.d.comb += [
                write.addr.eq(self.load_addr),
                write.data.eq(self.load_data),
                write.en.eq(enable),
            ]
        read, here = table.read_port(), resident.read_port()
        m.d.comb += [
            read.addr.eq(in_row(self, self.expert)),
            here.addr.eq(self.expert),
            read.en.eq(1),
            here.en.eq(1),
        ]
        m.d.sync += self.cost.eq(saturate(read.data.cost + Mux(here.data, 0, read.data.miss)))
        return m
