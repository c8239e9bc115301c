"""Contexts: where an expert's matrices lie in the macros, in which format and topology."""

from amaranth.hdl import Module
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.rows import in_row, layer_member
from sw_model.compiler import FORMAT_LSB, SPLIT_LSB
from sw_model.config import HardwareConfig
from sw_model.packets import Kind, capacities, row_bits
from sw_model.topology import SPLIT_BITS

__all__ = ["CONTEXT", "ContextTable"]

_PLACE = data.StructLayout(
    {"word": FORMAT_LSB, "format": SPLIT_LSB - FORMAT_LSB, "split": SPLIT_BITS, "scale": 32}
)

#: One context, laid out as a beat of the weight stream.
CONTEXT = data.StructLayout({"gate_up": _PLACE, "down": _PLACE})


class ContextTable(wiring.Component):
    """A context for every expert; the base expert's is the last (``max_experts``). With several layers a row
    of them for each (:func:`sw_model.packets.row_bits`).

    Parameters
    ----------
    init : initial contents, one integer a context (a baked image)

    Members
    -------
    write_addr, write_data, write_en : load a context
    layer : row that is read, if there are several
    read_addr : expert; ``context`` is its entry in the next cycle
    """

    LATENCY = 1

    def __init__(self, config: HardwareConfig, init: list[int] | None = None) -> None:
        self._depth = capacities(config)[Kind.CONTEXTS]
        self._init = init or []
        super().__init__(
            {
                "write_addr": In((self._depth - 1).bit_length()),
                "write_data": In(CONTEXT.size),
                "write_en": In(1),
                **layer_member(config),
                "read_addr": In(row_bits(config)[Kind.CONTEXTS]),
                "context": Out(CONTEXT),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.table = table = Memory(
            shape=CONTEXT.size, depth=self._depth, init=self._init, attrs={"no_rw_check": 1}
        )
        write, read = table.write_port(), table.read_port()
        m.d.comb += [
            write.addr.eq(self.write_addr),
            write.data.eq(self.write_data),
            write.en.eq(self.write_en),
            read.addr.eq(in_row(self, self.read_addr)),
            read.en.eq(1),
            self.context.eq(read.data),
        ]
        return m
