"""The weights' memory: one port, as large single-port RAM has."""

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

__all__ = ["WeightMemory"]

WIDTH = 64


class WeightMemory(wiring.Component):
    """Rows of 64 bits. In generated Verilog a module of its own, called :attr:`module`, for which a flow may
    put a device's own memory.

    Members
    -------
    address, enable : at cycle t
    write, write_data : the row is written, not read
    read_data : at t + 1, what was read at t, and until the cycle after the next access
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        super().__init__(
            {
                "address": In(range(rows)),
                "enable": In(1),
                "write": In(1),
                "write_data": In(WIDTH),
                "read_data": Out(WIDTH),
            }
        )

    @property
    def module(self) -> str:
        """Name of the Verilog module."""
        return f"expertile_weights_{self._rows}x{WIDTH}"

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.rows = rows = Memory(shape=WIDTH, depth=self._rows, init=[], attrs={"no_rw_check": 1})
        read, write = rows.read_port(), rows.write_port()
        m.d.comb += [
            read.addr.eq(self.address),
            write.addr.eq(self.address),
            read.en.eq(self.enable & ~self.write),
            write.en.eq(self.enable & self.write),
            write.data.eq(self.write_data),
            self.read_data.eq(read.data),
        ]
        return m
