"""Level 2 of the gate: the domain's bias on every expert."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.numerics.fixed import FIXED_BITS
from hw.router.q78 import Q78, signed16
from hw.rows import in_row, layer_member
from sw_model.config import HardwareConfig
from sw_model.packets import Kind, row_bits

__all__ = ["Domain"]


class Domain(wiring.Component):
    """g = the request's tag, or the argmax of the domain rows (ties to the lowest); then B[g][e] by lookup.

    Parameters
    ----------
    init : initial table (a baked image)

    Members
    -------
    clear : a new token
    score, valid : the domain rows' values, in order
    tag, tag_valid : the request's domain
    layer, expert : ``bias`` is B[g][expert] of the layer in the next cycle
    load_addr, load_data, load_en : the table; address g * 2**ceil(log2 max_experts) + e, in the layer's row
        (:func:`sw_model.packets.row_bits`)
    """

    LATENCY = 1

    def __init__(self, config: HardwareConfig, init: list[int] | None = None) -> None:
        self._init = [signed16(v) for v in init or []]
        self._domains = config.max_domains
        self._row = row_bits(config)[Kind.DOMAINS]
        self._depth = config.max_layers << self._row
        self._expert_bits = max(1, (config.max_experts - 1).bit_length())
        super().__init__(
            {
                "clear": In(1),
                "score": In(signed(FIXED_BITS)),
                "valid": In(1),
                "tag": In(7),
                "tag_valid": In(1),
                **layer_member(config),
                "expert": In(self._expert_bits),
                "bias": Out(Q78),
                "load_addr": In(32),
                "load_data": In(16),
                "load_en": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        domain_bits = max(1, (self._domains - 1).bit_length())
        m.submodules.table = table = Memory(
            shape=Q78, depth=self._depth, init=self._init, attrs={"no_rw_check": 1}
        )
        write, read = table.write_port(), table.read_port()
        best, chosen, index = Signal(signed(FIXED_BITS)), Signal(domain_bits), Signal(domain_bits)
        with m.If(self.valid):
            m.d.sync += index.eq(index + 1)
            with m.If((index == 0) | (self.score > best)):
                m.d.sync += [best.eq(self.score), chosen.eq(index)]
        with m.If(self.clear):
            m.d.sync += [index.eq(0), chosen.eq(0)]
        domain = Signal(domain_bits)
        m.d.comb += [
            domain.eq(Mux(self.tag_valid, self.tag, chosen)),
            read.addr.eq(in_row(self, ((domain << self._expert_bits) | self.expert)[: self._row])),
            read.en.eq(1),
            self.bias.eq(read.data),
            write.addr.eq(self.load_addr),
            write.data.eq(self.load_data),
            write.en.eq(self.load_en),
        ]
        return m
