"""The context store: the macro's SRAM, a module of its own so that a foundry's memory can take its place."""

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

__all__ = ["Sram"]


class Sram(wiring.Component):
    """One port to read, one to write, both on the clock: a two-port SRAM as memory compilers give it.

    In generated Verilog all stores of one size are instances of one module, called :attr:`module`, whose
    ports are ``clk``, ``rst`` (of no effect) and the members below: take the module out of the text and put
    a wrapper of that name around the foundry's memory.

    Parameters
    ----------
    words, width : depth, and bits of a word
    parts : parts of a word, of equal width, that can be written one by one
    init : initial contents, for simulation and FPGAs

    Members
    -------
    read_addr, read_en : at cycle t
    read_data : at t + 1, and until the cycle after the next ``read_en``
    write_addr, write_data, write_en : a bit of ``write_en`` a part. A word must not be read in the cycle in
        which it is written.
    """

    def __init__(self, words: int, width: int, parts: int = 1, init: list[int] | None = None) -> None:
        self._words = words
        self._width = width
        self._parts = parts
        self._init = init or []
        address = (words - 1).bit_length()
        super().__init__(
            {
                "read_addr": In(address),
                "read_en": In(1),
                "read_data": Out(width),
                "write_addr": In(address),
                "write_data": In(width),
                "write_en": In(parts),
            }
        )

    @property
    def module(self) -> str:
        """Name of the Verilog module."""
        parts = f"_{self._parts}" if self._parts > 1 else ""
        return f"expertile_sram_{self._words}x{self._width}{parts}"

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.memory = memory = Memory(
            shape=self._width, depth=self._words, init=self._init, attrs={"no_rw_check": 1}
        )
        write, read = memory.write_port(granularity=self._width // self._parts), memory.read_port()
        m.d.comb += [
            write.addr.eq(self.write_addr),
            write.data.eq(self.write_data),
            write.en.eq(self.write_en),
            read.addr.eq(self.read_addr),
            read.en.eq(self.read_en),
            self.read_data.eq(read.data),
        ]
        return m
