"""Combine: the exact weighted sum of a token's expert results, rounded once."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.numerics.float32 import EXP_BITS, Float32Pack
from hw.pe.drain import rows_layout
from hw.pe.serialiser import Serialiser
from hw.skid import Skid
from sw_model.config import HardwareConfig
from sw_model.formats import ROW_EXP_BITS
from sw_model.tables import PROB_FRACTION, WEIGHT_BITS

__all__ = ["Combine"]


class Combine(wiring.Component):
    """y[r] = round( sum over slots of acc[r] * weight << (row_exp - down_base) ) * 2**exp,
    exp = base + down_base - 16.

    Members
    -------
    i : stream of beats of down passes; the first pass of a token sets the sums, the final one gives them out
    down_base : least row exponent of the layer (biased, as in the scale entries)
    o : stream of {bits (binary32), last}

    Latency: about 8 + ``Float32Pack.LATENCY``. Throughput: a beat in and an element out a cycle; where beats
    are wider than an element, a whole token's sums may wait for their way out.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(rows_layout(config))),
                "down_base": In(ROW_EXP_BITS),
                "o": Out(stream.Signature(data.StructLayout({"bits": 32, "last": 1}))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        lanes, width = config.drain, config.combine_bits
        m.submodules.serialiser = serialiser = Serialiser(signed(width), lanes, user=EXP_BITS)
        m.submodules.pack = pack = Float32Pack(width)
        m.submodules.skid = skid = Skid(self.o.payload.shape())
        wiring.connect(m, pack.o, skid.i)
        wiring.connect(m, wiring.flipped(self.o), skid.o)
        m.d.comb += [
            pack.i.payload.value.eq(serialiser.o.payload.item),
            pack.i.payload.exp.eq(serialiser.o.payload.user.as_signed()),
            pack.i.payload.last.eq(serialiser.o.payload.last),
            pack.i.valid.eq(serialiser.o.valid),
            serialiser.o.ready.eq(pack.i.ready),
        ]
        out = Signal(serialiser.i.payload.shape(), reset_less=True)
        out_valid, move = Signal(), Signal()
        if lanes == 1:
            m.d.comb += [
                serialiser.i.payload.eq(out),
                serialiser.i.valid.eq(out_valid),
                move.eq(~out_valid | serialiser.i.ready),
            ]
        else:
            m.submodules.waiting = waiting = SyncFIFOBuffered(
                width=len(out.as_value()), depth=config.max_hidden // lanes
            )
            m.d.comb += [
                waiting.w_data.eq(out),
                waiting.w_en.eq(out_valid),
                move.eq(~out_valid | waiting.w_rdy),
                serialiser.i.payload.eq(waiting.r_data),
                serialiser.i.valid.eq(waiting.r_rdy),
                waiting.r_en.eq(serialiser.i.ready),
            ]
        self._sum(m, move, out, out_valid)
        return m

    def _sum(self, m: Module, move: Signal, out: data.View, out_valid: Signal) -> None:
        config, lanes = self._config, self._config.drain
        width = config.combine_bits
        row, info = self.i.payload, self.i.payload.info
        m.submodules.sums = sums = Memory(
            shape=data.ArrayLayout(signed(width), lanes),
            depth=config.max_hidden // lanes,
            init=[],
            attrs={"no_rw_check": 1},
        )
        write, read = sums.write_port(), sums.read_port()

        # Partial products, product, alignment, sum: a stage each.
        tag = data.StructLayout(
            {
                "index": row.index.shape(),
                "first": 1,
                "final": 1,
                "last": 1,
                "count": range(lanes + 1),
                "exp": signed(EXP_BITS),
            }
        )
        tags = [Signal(tag, name=f"tag{i}", reset_less=True) for i in range(4)]
        valid = Signal(4)
        # Passes of a single beat may follow each other: the next reads before the sum is in memory.
        clash = Signal()
        m.d.comb += [
            clash.eq((valid[2] & (tags[2].index == tags[3].index) & valid[3]) if lanes > 1 else 0),
            self.i.ready.eq(move),
            read.en.eq(move),
            read.addr.eq(tags[2].index >> (lanes - 1).bit_length()),
            write.addr.eq(tags[3].index >> (lanes - 1).bit_length()),
            write.en.eq(move & valid[3]),
        ]
        with m.If(move):
            m.d.sync += [
                valid.eq(Cat(self.i.valid, valid[:-1])),
                tags[0].index.eq(row.index),
                tags[0].first.eq(info.first),
                tags[0].final.eq(info.final),
                tags[0].last.eq(row.last),
                tags[0].count.eq(row.count),
                tags[0].exp.eq(info.base + self.down_base - PROB_FRACTION),
                *[tags[i + 1].eq(tags[i]) for i in range(3)],
                out_valid.eq(valid[3] & tags[3].final),
                out.count.eq(tags[3].count),
                out.last.eq(tags[3].last),
                out.user.eq(tags[3].exp),
            ]
        again = Signal()  # the beat before this one was of the same rows, its sum is in `total`
        with m.If(move):
            m.d.sync += again.eq(clash)
        half = config.acc_bits // 2
        for lane in range(lanes):
            acc = row.rows[lane].acc
            low = Signal(signed(half + 1 + WEIGHT_BITS), name=f"low{lane}", reset_less=True)
            high = Signal(signed(config.acc_bits - half + WEIGHT_BITS), name=f"high{lane}", reset_less=True)
            product = Signal(signed(config.acc_bits + WEIGHT_BITS), name=f"product{lane}", reset_less=True)
            shifts = [
                Signal(range(config.down_spread + 1), name=f"shift{lane}_{i}", reset_less=True)
                for i in range(2)
            ]
            aligned = [Signal(signed(width), name=f"aligned{lane}_{i}", reset_less=True) for i in range(2)]
            total = Signal(signed(width), name=f"total{lane}")
            before = Mux(again, out["items"][lane], read.data[lane]) if lanes > 1 else read.data[lane]
            m.d.comb += [
                total.eq(Mux(tags[3].first, 0, before) + aligned[1]),
                write.data[lane].eq(total),
            ]
            with m.If(move):
                m.d.sync += [
                    low.eq(acc[:half] * info.weight),
                    high.eq(acc[half:].as_signed() * info.weight),
                    product.eq((high << half) + low),
                    shifts[0].eq(row.rows[lane].row_exp - self.down_base),
                    shifts[1].eq(shifts[0]),
                    aligned[0].eq(product << shifts[1]),
                    aligned[1].eq(aligned[0]),
                    out["items"][lane].eq(total),
                ]
