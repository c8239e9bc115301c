"""Reduction network: adders over the row sums of neighbouring tiles, cut into groups by the pass."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.pe.drain import result_layout
from sw_model.config import HardwareConfig
from sw_model.topology import SPLIT_BITS

__all__ = ["Reduction"]


class Reduction(wiring.Component):
    """The sum of each group of neighbouring tiles, the groups lined up from 0:

        o[g].acc = sum over p < 2**split of i[g * 2**split + p].acc        row_exp: that of the first

    Parameters
    ----------
    config : tiles, largest group (``columns``) and accumulator width

    Members
    -------
    i, split : sums of all tiles and the cut, at cycle t
    o : at t + ``latency``, whatever the cut; the first tiles / 2**split are the groups

    Stage k adds pairs where the group is larger than 2**k, and hands on where it is not. Throughput: all
    tiles a cycle. Exact: a group's shares together are one row, which ``config.acc_bound`` covers in any
    order.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        self.latency = config.columns.bit_length() - 1
        sums = data.ArrayLayout(result_layout(config), config.tiles)
        super().__init__({"i": In(sums), "split": In(SPLIT_BITS), "o": Out(sums)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        values, split = [self.i[t] for t in range(self._config.tiles)], self.split
        for stage in range(self.latency):
            adds = Signal(name=f"adds{stage}")
            m.d.comb += adds.eq(split > stage)
            later, rest = [], Signal.like(self.split, name=f"split{stage}")
            m.d.sync += rest.eq(split)
            for t, here in enumerate(values):
                register = Signal(result_layout(self._config), name=f"sum{stage}_{t}", reset_less=True)
                # What pairs leave behind them is no group's.
                pair = values[2 * t : 2 * t + 2] if t < len(values) >> (stage + 1) else []
                if pair:
                    m.d.sync += [
                        register.acc.eq(Mux(adds, pair[0].acc + pair[1].acc, here.acc)),
                        register.row_exp.eq(Mux(adds, pair[0].row_exp, here.row_exp)),
                    ]
                else:
                    m.d.sync += register.eq(here)
                later.append(register)
            values, split = later, rest
        m.d.comb += [self.o[t].eq(value) for t, value in enumerate(values)]
        return m
