"""Combine: the exact weighted sum of a token's expert results, rounded once."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.numerics.float32 import EXP_BITS, Float32Pack
from hw.pe.drain import row_layout
from sw_model.config import HardwareConfig
from sw_model.formats import ROW_EXP_BITS
from sw_model.tables import PROB_FRACTION, WEIGHT_BITS

__all__ = ["Combine"]


class Combine(wiring.Component):
    """y[r] = round( sum over slots of acc[r] * weight << (row_exp - down_base) ) * 2**exp,
    exp = base + down_base - 16.

    Members
    -------
    i : stream of rows of down passes; the first pass of a token sets the sums, the final one gives them out
    down_base : least row exponent of the layer (biased, as in the scale entries)
    o : stream of {bits (binary32), last}

    Latency: 3 + ``Float32Pack.LATENCY``. Throughput: one row a cycle. A pass has more rows than the pipeline
    has stages, so a sum is back in memory before it is read again.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(row_layout(config))),
                "down_base": In(ROW_EXP_BITS),
                "o": Out(stream.Signature(data.StructLayout({"bits": 32, "last": 1}))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        width = config.combine_bits
        m.submodules.pack = pack = Float32Pack(width)
        wiring.connect(m, wiring.flipped(self.o), pack.o)
        m.submodules.sums = sums = Memory(
            shape=signed(width), depth=config.max_hidden, init=[], attrs={"no_rw_check": 1}
        )
        write, read = sums.write_port(), sums.read_port()

        move = Signal()
        m.d.comb += [move.eq(~pack.i.valid | pack.i.ready), self.i.ready.eq(move), read.en.eq(move)]
        row, info = self.i.payload, self.i.payload.info
        valid = Signal(3)
        with m.If(move):
            m.d.sync += valid.eq(Cat(self.i.valid, valid[:-1]))

        tag = data.StructLayout({"index": 16, "first": 1, "final": 1, "last": 1, "exp": signed(EXP_BITS)})
        tags = [Signal(tag, name=f"tag{i}") for i in range(2)]
        product = Signal(signed(config.acc_bits + WEIGHT_BITS), reset_less=True)
        shift = Signal(range(config.down_spread + 1), reset_less=True)
        aligned = Signal(signed(width), reset_less=True)
        total = Signal(signed(width))
        m.d.comb += [
            read.addr.eq(tags[0].index),
            total.eq(Mux(tags[1].first, 0, read.data) + aligned),
            write.addr.eq(tags[1].index),
            write.data.eq(total),
            write.en.eq(move & valid[1]),
            pack.i.valid.eq(valid[2]),
        ]
        with m.If(move):
            m.d.sync += [
                product.eq(row.acc * info.weight),
                shift.eq(row.row_exp - self.down_base),
                tags[0].index.eq(row.index),
                tags[0].first.eq(info.first),
                tags[0].final.eq(info.final),
                tags[0].last.eq(row.last),
                tags[0].exp.eq(info.base + self.down_base - PROB_FRACTION),
                aligned.eq(product << shift),
                tags[1].eq(tags[0]),
                pack.i.payload.value.eq(total),
                pack.i.payload.exp.eq(tags[1].exp),
                pack.i.payload.last.eq(tags[1].last),
                valid[2].eq(valid[1] & tags[1].final),
            ]
        return m
