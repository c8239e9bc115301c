"""Activation buffer: quantised blocks, written some elements at a time, read a whole block at a time."""

from functools import reduce
from operator import or_

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.numerics.quantiser import code_layout
from sw_model.formats import ACT16_LOW_BITS, BLOCK, SHIFT_BITS
from sw_model.topology import SPLIT_BITS

__all__ = ["ActivationBuffer"]

#: Byte set -> (the shift that goes with it, octaves added to it).
_SHIFTS = {"code8": ("shift8", 0), "high": ("shift16", ACT16_LOW_BITS), "low": ("shift16", 0)}


class ActivationBuffer(wiring.Component):
    """Blocks of 32 signed bytes with the shift of each, in ``banks`` banks.

    Parameters
    ----------
    blocks : blocks a bank
    banks : one is filled while another is read
    sets : names of the byte sets kept of every element, of "code8", "high", "low"
    columns : blocks read at a time; each column of the array has a copy of the memories
    give : elements that come at a time
    width : elements of a block that are read at a time, BLOCK or fewer, at least ``give``: fewer than BLOCK
        lie in block RAM however few they are (where Yosys finds the memories' place)

    Members
    -------
    code, code_valid, write_bank : elements from a :class:`BlockQuantiser`
    read_set, read_bank, read_block, read_blocks, split, read_en : at cycle t; without ``read_en`` the
        memories rest; ``read_word``: which ``width`` elements of the block
    act, shift : for each column c, lowest first, block read_block + n, at cycle t + ``LATENCY`` and until the
        next is read, where n is c mod 2**split, or 0 where that is not below ``read_blocks``: a block that
        was written
    """

    LATENCY = 3

    def __init__(
        self,
        *,
        blocks: int,
        banks: int,
        sets: tuple[str, ...],
        columns: int = 1,
        give: int = 1,
        width: int = BLOCK,
    ) -> None:
        if not sets or set(sets) - set(_SHIFTS):
            raise ValueError(f"sets must name some of {', '.join(_SHIFTS)}, not {sets}")
        self._blocks = blocks
        self._banks = banks
        self._sets = sets
        self._columns = columns
        self._give = give
        self._width = width
        self._words = BLOCK // width  # of a block
        self._attrs = {"no_rw_check": 1, **({"ram_style": "block"} if width < BLOCK else {})}
        self._block_bits = max(1, (blocks - 1).bit_length())
        super().__init__(
            {
                "code": In(code_layout(blocks, give)),
                "code_valid": In(1),
                "write_bank": In(1),
                "read_set": In(2),
                "read_bank": In(1),
                "read_block": In(self._block_bits),
                "read_word": In(range(max(2, self._words))),
                "read_blocks": In(range(columns + 1)),
                "split": In(SPLIT_BITS),
                "read_en": In(1),
                "act": Out(8 * width * columns),
                "shift": Out(SHIFT_BITS * columns),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for column in range(self._columns):
            act, shift = self._column(m, column)
            m.d.sync += [
                self.act.word_select(column, 8 * self._width).eq(act),
                self.shift.word_select(column, SHIFT_BITS).eq(shift),
            ]
        return m

    def _column(self, m: Module, column: int) -> tuple[Signal, Signal]:
        """Memories of one column; its block and shift, ``LATENCY`` - 1 cycles after the address."""
        depth = self._banks << self._block_bits
        width = self._width
        word_bits = (self._words - 1).bit_length()
        lane = Signal(width)
        read_set = Signal.like(self.read_set)
        first = self.code.lane[: (width - 1).bit_length()]
        m.d.comb += lane.eq(self.code_valid.replicate(self._give) << first)
        with m.If(self.read_en):
            m.d.sync += read_set.eq(self.read_set)

        def address(bank: Value, block: Value) -> Signal:
            a = Signal(range(max(2, depth)))
            m.d.comb += a.eq(block if self._banks == 1 else (bank << self._block_bits) | block)
            return a

        block = self.read_block
        if column:
            further = column & ((1 << self.split) - 1)
            block = (block + Mux(further < self.read_blocks, further, 0))[: self._block_bits]
        write_address = address(self.write_bank, self.code.block)
        read_address = address(self.read_bank, block)
        blocks, shifts = [], []
        for name in self._sets:
            m.submodules[f"{name}_{column}"] = memory = Memory(
                shape=8 * width, depth=max(2, depth * self._words), init=[], attrs=self._attrs
            )
            write, read = memory.write_port(granularity=8), memory.read_port()
            m.d.comb += [
                write.addr.eq(Cat(self.code.lane[-word_bits:] if word_bits else C(0, 0), write_address)),
                write.data.eq(self.code[name].as_value().replicate(width // self._give)),
                write.en.eq(lane),
                read.addr.eq(Cat(self.read_word[:word_bits], read_address)),
                read.en.eq(self.read_en),
            ]
            field, extra = _SHIFTS[name]
            m.submodules[f"{name}_shift_{column}"] = memory = Memory(
                shape=SHIFT_BITS, depth=max(2, depth), init=[], attrs={"no_rw_check": 1}
            )
            shift_write, shift_read = memory.write_port(), memory.read_port()
            m.d.comb += [
                shift_write.addr.eq(write_address),
                shift_write.data.eq(self.code[field]),
                shift_write.en.eq(self.code_valid),
                shift_read.addr.eq(read_address),
                shift_read.en.eq(self.read_en),
            ]
            # Those of the other sets are reset to 0, which takes no logic, and an OR is less than a choice.
            mine = read_set == len(blocks)
            block = Signal(8 * width, name=f"{name}_block_{column}", reset_less=True)
            shift = Signal(SHIFT_BITS, name=f"{name}_shift_{column}", reset_less=True)
            m.d.sync += [block.eq(Mux(mine, read.data, 0)), shift.eq(Mux(mine, shift_read.data + extra, 0))]
            blocks.append(block)
            shifts.append(shift)
        act = Signal(8 * width, name=f"act_{column}")
        shift = Signal(SHIFT_BITS, name=f"shift_{column}")
        m.d.comb += [act.eq(reduce(or_, blocks)), shift.eq(reduce(or_, shifts))]
        return act, shift
