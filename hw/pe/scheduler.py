"""Scheduler: the way of a token, as a sequence of passes on the array."""

from amaranth.hdl import Array, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.host.registers import LAYER_WIDTHS
from hw.numerics.quantiser import vectors_layout
from hw.pe.contexts import CONTEXT
from hw.pe.drain import Kind, info_layout
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
from sw_model.image import PLACE_REGISTERS
from sw_model.tables import PROB_FRACTION

__all__ = ["Scheduler", "layer_layout"]


def layer_layout(config: HardwareConfig) -> data.StructLayout:
    """The layer's registers as one structure; where it lies, only if there may be others beside it."""
    place = () if config.max_layers > 1 else PLACE_REGISTERS
    return data.StructLayout({name: width for name, width in LAYER_WIDTHS.items() if name not in place})


class Scheduler(wiring.Component):
    """Of a token: router; base expert's gate_up (while the routing weights are worked out); each chosen
    expert's gate_up; then, when its h is quantised, each one's down. While h is quantised, the next token's
    router and base gate_up are run, if it is there. A token without any expert takes the gate's fallback: a
    pass over the constants alone.

    Members
    -------
    layer : the layer's registers (:func:`layer_layout`)
    enable : take tokens
    high : of the next token's INT8 weights the high nibble alone is read; looked at when its router pass, the
        first, is issued
    x_ready, x_top : a quantised token waits in a bank; its largest exponent
    x_bank : the bank of the token that is being routed, or will be next
    x_release : that bank has been read, it may be filled again (one cycle)
    context_addr, context : to and from the :class:`~hw.pe.contexts.ContextTable`
    route, route_done, route_ack : from and to the :class:`~hw.router.router.Router`
    here : of each chosen expert, whether its weights are on chip; ``waits``: the next pass waits for them
    h_vectors : stream of what the h of a token will be, as soon as it is known
    h_block_done, h_top : a block of h has been quantised (one cycle); the token's largest h exponent
    h_release : all of a token's h has been read (one cycle)
    o : stream of passes for the :class:`~hw.pe.array.PeArray`; ``o.ready`` says that the passes before have
        read their activations
    expert_used : a routed expert is started (one cycle)

    Throughput: passes follow each other without gaps where their data allows.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        super().__init__(
            {
                "layer": In(layer_layout(config)),
                "enable": In(1),
                "high": In(1),
                "x_ready": In(2),
                "x_top": In(data.ArrayLayout(signed(TOP_BITS), 2)),
                "x_bank": Out(1),
                "x_release": Out(2),
                "context_addr": Out((config.max_experts).bit_length()),
                "context": In(CONTEXT),
                "route": In(route_layout(config)),
                "route_done": In(1),
                "route_ack": Out(1),
                "here": In(config.max_top_k),
                "waits": Out(1),
                "h_vectors": Out(stream.Signature(vectors_layout())),
                "h_block_done": In(1),
                "h_top": In(signed(TOP_BITS)),
                "h_release": Out(1),
                "o": Out(
                    stream.Signature(
                        data.StructLayout({"job": pass_layout(config), "info": info_layout(config)})
                    )
                ),
                "expert_used": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, layer = self._config, self.layer

        def flag(which: Flag) -> Value:
            return (layer.FLAGS & which).any()

        def blocks(elements: Value, biased: Value) -> Value:
            return ((elements + (BLOCK - 1)) >> (BLOCK - 1).bit_length()) + biased

        # What the registers come to; they are steady while a token is inside.
        shared, biased = Signal(), Signal()
        most = range(config.max_blocks + 1)
        x_blocks, router_blocks, h_blocks, shared_blocks = (
            Signal(most, name=f"{of}_blocks") for of in ("x", "router", "h", "shared")
        )
        router_rows = Signal(range(config.max_rows + 1))
        m.d.sync += [
            shared.eq(flag(Flag.SHARED)),
            biased.eq(flag(Flag.EXPERT_BIASED)),
            x_blocks.eq(blocks(layer.HIDDEN, flag(Flag.EXPERT_BIASED))),
            router_blocks.eq(blocks(layer.HIDDEN, flag(Flag.ROUTER_BIASED))),
            h_blocks.eq(blocks(layer.INTERMEDIATE, biased)),
            shared_blocks.eq(blocks(layer.SHARED_INTERMEDIATE, biased)),
            router_rows.eq(
                layer.EXPERTS + flag(Flag.SHARED_GATED) + flag(Flag.DENSITY_ROW) + layer.DOMAIN_ROWS
            ),
        ]

        # The token whose experts are run; the next one may be ahead with its router and base gate_up.
        route = Signal(self.route.shape())
        bank, ahead, opened = Signal(), Signal(), Signal()
        high, high_ahead = Signal(), Signal()
        rank = Signal(range(config.max_top_k + 1))
        last_rank, nobody = rank == route.chosen.count - 1, route.chosen.count == 0
        expert = Array(route.chosen.expert[j] for j in range(config.max_top_k))[rank]
        weight = Array(route.chosen.weight[j] for j in range(config.max_top_k))[rank]
        on_base, first = Signal(), Signal()  # the down pass is the base expert's, the token's first

        # Blocks of h: the slot's first, those there, those that the slot needs, up to which.
        h_at, h_have, h_end = (
            Signal(range(config.max_act_blocks + 1), name=f"h_{n}", init=int(n == "end"))
            for n in ("at", "have", "end")
        )
        h_need = Signal(most)
        h_there = Signal()
        m.d.comb += h_need.eq(Mux(~on_base, h_blocks, Mux(shared, shared_blocks, 1)))
        m.d.sync += [h_end.eq(h_at + h_need), h_there.eq(h_have >= h_end)]
        with m.If(self.h_block_done):
            m.d.sync += h_have.eq(h_have + 1)

        # A pass is put into a register, and waits there for the array.
        new = Signal(self.o.payload.shape())
        job, info = new.job, new.info
        free, put = Signal(), Signal()
        last_use = data.StructLayout({"x": 2, "h": 1})  # the last pass that reads a bank of x; the token's h
        use, waiting, running = Signal(last_use), Signal(last_use), Signal(last_use)
        m.d.comb += [
            free.eq(~self.o.valid | self.o.ready),
            job.rows.eq(info.rows),
            info.split.eq(job.split),
        ]
        m.d.sync += [
            self.x_release.eq(Mux(self.o.ready, running.x, 0)),
            self.h_release.eq(running.h & self.o.ready),
        ]
        with m.If(self.o.ready):
            m.d.sync += [running.as_value().eq(Mux(self.o.valid, waiting.as_value(), 0)), self.o.valid.eq(0)]
        with m.If(put):
            m.d.sync += [self.o.payload.eq(new), waiting.eq(use), self.o.valid.eq(1)]

        def base(top: Value, spread: int, fraction: int) -> Value:
            return top - (spread + fraction + ROW_EXP_BIAS)

        def gate_up(width: Value, of: Value, nibble: Value) -> list:
            return [
                put.eq(free),
                job.word.eq(self.context.gate_up.word),
                job.scale.eq(self.context.gate_up.scale),
                job.format.eq(self.context.gate_up.format),
                job.split.eq(self.context.gate_up.split),
                job.blocks.eq(x_blocks),
                job.bank.eq(of),
                job.high.eq(nibble),
                info.kind.eq(Kind.GATE_UP),
                info.rows.eq(width << 1),
                info.base.eq(base(x_top(of), config.activation_spread, ACT8_FRACTION)),
            ]

        def x_top(of: Value) -> Value:
            return Mux(of, self.x_top[1], self.x_top[0])

        # Where one layer is on chip, its router stands at address 0.
        several = config.max_layers > 1
        place = [job.word.eq(layer.LAYER_WORD_BASE), job.scale.eq(layer.LAYER_SCALE_BASE)] if several else []
        base_context = config.max_experts
        m.d.comb += self.context_addr.eq(Mux(on_base, base_context, expert))
        with m.If(self.h_vectors.ready):
            m.d.sync += self.h_vectors.valid.eq(0)
        used, next_one = Signal(2), Signal()  # banks that are not released yet
        m.d.comb += next_one.eq(self.enable & (self.x_ready & ~used).bit_select(self.x_bank, 1))
        m.d.sync += used.eq(used & ~self.x_release)
        with m.FSM():
            with m.State("NEXT"):
                with m.If(ahead):
                    m.next = "ROUTE"
                with m.Elif(next_one):
                    m.next = "ROUTER"
            with m.State("ROUTER"):
                m.d.comb += [
                    put.eq(free),
                    *place,
                    job.format.eq(ROUTER_FORMAT.code),
                    job.split.eq(layer.ROUTER_SPLIT),
                    job.blocks.eq(router_blocks),
                    job.wide.eq(1),
                    job.bank.eq(self.x_bank),
                    info.kind.eq(Kind.ROUTER),
                    info.rows.eq(router_rows),
                    info.base.eq(base(x_top(self.x_bank), config.router_spread, ACT16_FRACTION)),
                    self.context_addr.eq(base_context),
                ]
                with m.If(put):
                    m.d.sync += [high_ahead.eq(self.high), ahead.eq(1), used.bit_select(self.x_bank, 1).eq(1)]
                    m.next = "ROUTE"
                    with m.If(shared):
                        m.next = "SHARED_UP"
                    with m.Elif(opened):
                        m.next = "DOWN_CONTEXT"
            with m.State("SHARED_UP"):
                m.d.comb += [
                    *gate_up(layer.SHARED_INTERMEDIATE, self.x_bank, high_ahead),
                    self.context_addr.eq(base_context),
                ]
                with m.If(put):
                    m.next = "ROUTE"
                    with m.If(opened):
                        m.next = "DOWN_CONTEXT"
            with m.State("ROUTE"):
                with m.If(self.route_done):
                    m.d.comb += self.route_ack.eq(1)
                    m.d.sync += [
                        route.eq(self.route),
                        bank.eq(self.x_bank),
                        high.eq(high_ahead),
                        self.x_bank.eq(~self.x_bank),
                        ahead.eq(0),
                        opened.eq(1),
                    ]
                    m.next = "ROUTED"
            with m.State("ROUTED"):
                m.d.sync += [
                    self.h_vectors.valid.eq(1),
                    self.h_vectors.payload.count.eq(Mux(nobody & ~shared, 1, route.chosen.count + shared)),
                    self.h_vectors.payload.alone.eq(nobody & ~shared),
                    on_base.eq(shared | nobody),
                    first.eq(1),
                ]
                m.next = "UP"
                with m.If(nobody):
                    m.next = "AHEAD"
            with m.State("UP_CONTEXT"):
                m.d.comb += self.context_addr.eq(expert)
                m.next = "UP"
            with m.State("UP"):
                here = self.here.bit_select(rank, 1)
                m.d.comb += [
                    *gate_up(layer.INTERMEDIATE, bank, high),
                    put.eq(free & here),
                    self.waits.eq(~here & ~self.o.valid),
                    job.routed.eq(1),
                    use.x.eq(last_rank << bank),
                    self.context_addr.eq(expert),
                ]
                with m.If(put):
                    m.d.comb += self.expert_used.eq(1)
                    m.d.sync += rank.eq(rank + 1)
                    m.next = "UP_CONTEXT"
                    with m.If(last_rank):
                        m.d.sync += rank.eq(0)
                        m.next = "AHEAD"
            with m.State("AHEAD"):
                with m.If(~ahead & next_one):
                    m.next = "ROUTER"
                with m.Elif(h_there):
                    m.next = "DOWN"
            with m.State("DOWN_CONTEXT"):
                m.next = "DOWN"
            with m.State("DOWN"):
                final = nobody | (~on_base & last_rank)
                m.d.comb += [
                    put.eq(free & h_there),
                    job.word.eq(self.context.down.word),
                    job.scale.eq(self.context.down.scale),
                    job.format.eq(self.context.down.format),
                    job.split.eq(self.context.down.split),
                    job.blocks.eq(h_need),
                    job.from_h.eq(1),
                    job.act.eq(h_at),
                    job.routed.eq(~on_base),
                    job.bank.eq(bank),  # whose token it is
                    job.final.eq(final),
                    job.high.eq(high & (~on_base | shared)),  # the fallback is read whole
                    info.kind.eq(Kind.DOWN),
                    info.rows.eq(layer.HIDDEN),
                    info.base.eq(base(self.h_top, config.activation_spread, ACT8_FRACTION)),
                    info.weight.eq(Mux(~on_base, weight, Mux(shared, route.shared, 1 << PROB_FRACTION))),
                    info.first.eq(first),
                    info.final.eq(final),
                    use.h.eq(final),
                    use.x.eq(nobody << bank),
                ]
                with m.If(put):
                    m.d.sync += [h_at.eq(h_at + h_need), first.eq(0), on_base.eq(0)]
                    with m.If(~on_base):
                        m.d.sync += rank.eq(rank + 1)
                    m.next = "SLOT"
                    with m.If(final):
                        m.d.sync += [h_have.eq(0), h_at.eq(0), rank.eq(0), opened.eq(0)]
                        m.next = "NEXT"
            with m.State("SLOT"):  # h_end follows
                m.next = "DOWN_CONTEXT"
        return m
