"""Scheduler: the way of a token, as a sequence of passes on the array."""

from amaranth.hdl import Array, C, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.host.registers import LAYER_WIDTHS
from hw.pe.contexts import CONTEXT
from hw.pe.drain import Kind, PassInfo
from hw.pe.sequencer import pass_layout
from hw.router.router import route_layout
from sw_model.compiler import Flag
from sw_model.config import HardwareConfig
from sw_model.formats import (
    ACT8_FRACTION,
    ACT16_FRACTION,
    BLOCK,
    ROUTER_FORMAT,
    ROW_EXP_BIAS,
    TOP_BITS,
)
from sw_model.tables import PROB_FRACTION

__all__ = ["LAYER", "Scheduler"]

#: The layer's registers as one structure.
LAYER = data.StructLayout(LAYER_WIDTHS)


class Scheduler(wiring.Component):
    """Router; base expert's gate_up (while the routing weights are worked out); each chosen expert's gate_up;
    then, when its h is quantised, each one's down. A token without any expert takes the gate's fallback: a
    pass over the constants alone.

    Members
    -------
    layer : the layer's registers (:data:`LAYER`)
    enable : take tokens
    x_ready, x_top : a quantised token waits in a bank; its largest exponent
    x_bank, x_release : the bank in use; it may be filled again (one cycle)
    context_addr, context : to and from the :class:`~hw.pe.contexts.ContextTable`
    route, route_done, route_ack : from and to the :class:`~hw.router.router.Router`
    h_vectors, h_known, h_alone : vectors that h will have; that number stands; it is the constants alone
    h_block_done, h_top : a block of h has been quantised (one cycle); the token's largest h exponent
    o : stream of passes for the :class:`~hw.pe.array.PeArray`
    expert_used : a routed expert is started (one cycle)

    Throughput: passes follow each other without gaps where their data allows; the next token's router pass is
    issued behind the last down pass.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        super().__init__(
            {
                "layer": In(LAYER),
                "enable": In(1),
                "x_ready": In(2),
                "x_top": In(data.ArrayLayout(signed(TOP_BITS), 2)),
                "x_bank": Out(1),
                "x_release": Out(1),
                "context_addr": Out((config.max_experts).bit_length()),
                "context": In(CONTEXT),
                "route": In(route_layout(config)),
                "route_done": In(1),
                "route_ack": Out(1),
                "h_vectors": Out(8),
                "h_known": Out(1),
                "h_alone": Out(1),
                "h_block_done": In(1),
                "h_top": In(signed(TOP_BITS)),
                "o": Out(stream.Signature(data.StructLayout({"job": pass_layout(config), "info": PassInfo}))),
                "expert_used": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, layer = self._config, self.layer
        job, info = self.o.payload.job, self.o.payload.info

        def flag(which: Flag) -> Value:
            return (layer.FLAGS & which).any()

        def blocks(elements: Value, biased: Value) -> Value:
            return ((elements + (BLOCK - 1)) >> (BLOCK - 1).bit_length()) + biased

        shared = flag(Flag.SHARED)
        biased = flag(Flag.EXPERT_BIASED)
        rank = Signal(range(config.max_top_k + 1))
        count = self.route.chosen.count
        last_rank = rank == count - 1
        nobody = count == 0
        expert = Array(self.route.chosen.expert[j] for j in range(config.max_top_k))[rank]
        weight = Array(self.route.chosen.weight[j] for j in range(config.max_top_k))[rank]
        base_context = config.max_experts
        h_at, h_have = Signal(16), Signal(16)  # first block of the slot's h; blocks quantised so far
        with m.If(self.h_block_done):
            m.d.sync += h_have.eq(h_have + 1)

        x_top = Mux(self.x_bank, self.x_top[1], self.x_top[0])
        base8 = x_top - (config.activation_spread + ACT8_FRACTION + ROW_EXP_BIAS)
        base16 = x_top - (config.router_spread + ACT16_FRACTION + ROW_EXP_BIAS)
        base_h = self.h_top - (config.activation_spread + ACT8_FRACTION + ROW_EXP_BIAS)

        def gate_up(width: Value) -> list:
            return [
                self.o.valid.eq(1),
                job.word.eq(self.context.gate_up.word),
                job.scale.eq(self.context.gate_up.scale),
                job.format.eq(self.context.gate_up.format),
                job.split.eq(self.context.gate_up.split),
                job.blocks.eq(blocks(layer.HIDDEN, biased)),
                job.bank.eq(self.x_bank),
                info.kind.eq(Kind.GATE_UP),
                info.rows.eq(width << 1),
                info.base.eq(base8),
            ]

        def down(width: Value, weight: Value, first: Value | int, final: Value | int) -> list:
            return [
                self.o.valid.eq(h_have >= h_at + blocks(width, biased)),
                job.word.eq(self.context.down.word),
                job.scale.eq(self.context.down.scale),
                job.format.eq(self.context.down.format),
                job.split.eq(self.context.down.split),
                job.blocks.eq(blocks(width, biased)),
                job.from_h.eq(1),
                job.act.eq(h_at),
                info.kind.eq(Kind.DOWN),
                info.rows.eq(layer.HIDDEN),
                info.base.eq(base_h),
                info.weight.eq(weight),
                info.first.eq(first),
                info.final.eq(final),
            ]

        known = Signal()
        done = Signal()
        m.d.comb += [
            job.rows.eq(info.rows),
            info.split.eq(job.split),
            self.context_addr.eq(expert),
            self.h_known.eq(known),
            self.h_alone.eq(known & nobody & ~shared & (h_have == 0)),
            self.h_vectors.eq(Mux(nobody & ~shared, 1, count + shared)),
            self.x_release.eq(done),
            self.route_ack.eq(done),
        ]
        with m.If(done):
            m.d.sync += [self.x_bank.eq(~self.x_bank), known.eq(0)]
        issued = self.o.valid & self.o.ready
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [h_have.eq(0), h_at.eq(0), rank.eq(0)]
                with m.If(self.enable & self.x_ready.bit_select(self.x_bank, 1)):
                    m.next = "ROUTER"
            with m.State("ROUTER"):
                m.d.comb += [
                    self.o.valid.eq(1),
                    job.format.eq(ROUTER_FORMAT.code),
                    job.split.eq(layer.ROUTER_SPLIT),
                    job.blocks.eq(blocks(layer.HIDDEN, flag(Flag.ROUTER_BIASED))),
                    job.wide.eq(1),
                    job.bank.eq(self.x_bank),
                    info.kind.eq(Kind.ROUTER),
                    info.rows.eq(
                        layer.EXPERTS + flag(Flag.SHARED_GATED) + flag(Flag.DENSITY_ROW) + layer.DOMAIN_ROWS
                    ),
                    info.base.eq(base16),
                    self.context_addr.eq(base_context),
                ]
                with m.If(issued):
                    m.next = "ROUTE"
                    with m.If(shared):
                        m.next = "SHARED_UP"
            with m.State("SHARED_UP"):
                m.d.comb += gate_up(layer.SHARED_INTERMEDIATE)
                m.d.comb += self.context_addr.eq(base_context)
                with m.If(issued):
                    m.next = "ROUTE"
            with m.State("ROUTE"):
                with m.If(self.route_done):
                    m.d.sync += known.eq(1)
                    m.next = "UP_CONTEXT"
                    with m.If(nobody):
                        m.next = "BASE_CONTEXT"
            with m.State("UP_CONTEXT"):
                m.next = "UP"
            with m.State("UP"):
                m.d.comb += [*gate_up(layer.INTERMEDIATE), job.routed.eq(1)]
                with m.If(issued):
                    m.d.comb += self.expert_used.eq(1)
                    m.d.sync += rank.eq(rank + 1)
                    m.next = "UP_CONTEXT"
                    with m.If(last_rank):
                        m.d.sync += rank.eq(0)
                        m.next = "DOWN_CONTEXT"
                        with m.If(shared):
                            m.next = "BASE_CONTEXT"
            with m.State("BASE_CONTEXT"):
                m.d.comb += self.context_addr.eq(base_context)
                m.next = "SHARED_DOWN"
                with m.If(~shared):
                    m.next = "FALLBACK"
            with m.State("SHARED_DOWN"):
                m.d.comb += down(layer.SHARED_INTERMEDIATE, self.route.shared, 1, nobody)
                m.d.comb += self.context_addr.eq(base_context)
                with m.If(issued):
                    m.d.sync += h_at.eq(h_at + blocks(layer.SHARED_INTERMEDIATE, biased))
                    m.next = "DOWN_CONTEXT"
                    with m.If(nobody):
                        m.d.comb += done.eq(1)
                        m.next = "IDLE"
            with m.State("FALLBACK"):
                m.d.comb += down(C(1), C(1 << PROB_FRACTION), 1, 1)
                m.d.comb += [
                    job.blocks.eq(1),
                    self.o.valid.eq(h_have != 0),
                    self.context_addr.eq(base_context),
                ]
                with m.If(issued):
                    m.d.comb += done.eq(1)
                    m.next = "IDLE"
            with m.State("DOWN_CONTEXT"):
                m.next = "DOWN"
            with m.State("DOWN"):
                m.d.comb += down(layer.INTERMEDIATE, weight, ~shared & (rank == 0), last_rank)
                m.d.comb += job.routed.eq(1)
                with m.If(issued):
                    m.d.sync += [h_at.eq(h_at + blocks(layer.INTERMEDIATE, biased)), rank.eq(rank + 1)]
                    m.next = "DOWN_CONTEXT"
                    with m.If(last_rank):
                        m.d.comb += done.eq(1)
                        m.next = "IDLE"
        return m
