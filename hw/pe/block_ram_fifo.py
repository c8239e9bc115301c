"""FIFO between two clock domains whose items lie in block RAM."""

from amaranth.hdl import Elaboratable, Module, Signal
from amaranth.lib.fifo import AsyncFIFO, FIFOInterface
from amaranth.lib.memory import Memory

__all__ = ["BlockRamFIFO"]


class BlockRamFIFO(Elaboratable, FIFOInterface):
    """A block RAM keeps the items; the library's :class:`~amaranth.lib.fifo.AsyncFIFO` carries their places.

    Whoever takes items sees registers alone.

    Parameters
    ----------
    width, depth : of an item, and how many; ``depth`` a power of two
    r_domain, w_domain : the domains of its two ends

    Attributes
    ----------
    those of the library's FIFOs that are used: w_data, w_rdy, w_en, w_level, r_data, r_rdy, r_en. One more
    item may be on its way out, beyond ``w_level``.

    Throughput: an item in two cycles of ``r_domain``.
    """

    def __init__(self, *, width: int, depth: int, r_domain: str, w_domain: str) -> None:
        super().__init__(width=width, depth=depth)
        self._read, self._write = r_domain, w_domain

    def elaborate(self, platform: object) -> Module:
        m = Module()
        place = Signal(range(self.depth))
        m.submodules.places = places = AsyncFIFO(
            width=len(place), depth=self.depth, r_domain=self._read, w_domain=self._write, exact_depth=True
        )
        m.submodules.items = items = Memory(
            shape=self.width, depth=self.depth, init=[], attrs={"ram_style": "block", "no_rw_check": 1}
        )
        write, read = items.write_port(domain=self._write), items.read_port(domain=self._read)
        m.d.comb += [
            self.w_rdy.eq(places.w_rdy),
            self.w_level.eq(places.w_level),
            places.w_data.eq(place),
            places.w_en.eq(self.w_en),
            write.addr.eq(place),
            write.data.eq(self.w_data),
            write.en.eq(self.w_en & self.w_rdy),
        ]
        m.d[self._write] += place.eq(place + write.en)

        # An item waits in the block RAM's latch while its copy in the register behind is looked at.
        latched, taken = Signal(), Signal()
        copy = Signal(self.width, reset_less=True)
        m.d.comb += [
            taken.eq(self.r_en & self.r_rdy),
            read.addr.eq(places.r_data),
            read.en.eq(~latched | taken),
            places.r_en.eq(read.en),
            self.r_data.eq(copy),
        ]
        m.d[self._read] += [copy.eq(read.data), self.r_rdy.eq(latched & ~taken)]
        with m.If(read.en):
            m.d[self._read] += latched.eq(places.r_rdy)
        return m
