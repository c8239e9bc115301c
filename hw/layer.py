"""The MoE layer: reads as the block diagram.

x ─▶ x_quantiser ─▶ x_buffer ─┐                       ┌─▶ router ─▶ scheduler ─▶ (passes) ─▶ array
                              ├─▶ array ─▶ normalise ─┼─▶ swiglu ─▶ h_quantiser ─▶ h_buffer ─▶ array
                    h_buffer ─┘        └──────────────┴─▶ combine ─▶ y
"""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.numerics.float32 import unpack
from hw.numerics.normalise import Normalise
from hw.numerics.quantiser import BlockQuantiser
from hw.pe.activations import ActivationBuffer
from hw.pe.array import Kind, PeArray
from hw.pe.combine import Combine
from hw.pe.scheduler import LAYER, Scheduler
from hw.pe.swiglu import SwiGlu
from hw.router.router import Router
from sw_model.compiler import FLAG_RENORMALISE, FLAG_SHARED_GATED
from sw_model.config import HardwareConfig
from sw_model.formats import BLOCK

__all__ = ["TOKEN", "MoELayer"]

#: One element of a token on its way in or out: a binary32 word, ``last`` of the token.
TOKEN = stream.Signature(data.StructLayout({"bits": 32, "last": 1}))


class MoELayer(wiring.Component):
    """y = sum_e w_e E_e(x) + w_base E_base(x), bit for bit as :func:`sw_model.golden.run`.

    Parameters
    ----------
    config : what it can hold
    words, scales : initial contents of the tiles (a baked image)

    Members
    -------
    layer : the layer's registers; steady while a token is in the core
    enable : take tokens
    x, y : streams of binary32 elements, ``last`` at the end of a token
    load_* : weight loading, see :class:`~hw.pe.array.PeArray`
    busy, active, active_rows, expert_used, token_done : events for the counters

    The next token is taken in and quantised while this one is computed.
    """

    def __init__(
        self,
        config: HardwareConfig,
        words: list[list[int]] | None = None,
        scales: list[list[int]] | None = None,
    ) -> None:
        self._config = config
        self._array = PeArray(config, words, scales)
        array = self._array.signature.members
        super().__init__(
            {
                "layer": In(LAYER),
                "enable": In(1),
                "x": In(TOKEN),
                "y": Out(TOKEN),
                **{name: member for name, member in array.items() if name.startswith("load_")},
                "busy": Out(1),
                "active": Out(1),
                "active_rows": array["active_rows"],
                "expert_used": Out(1),
                "token_done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, layer = self._config, self.layer
        x_blocks = config.max_hidden // BLOCK
        h_blocks = config.max_slots * config.max_intermediate // BLOCK

        m.submodules.x_quantiser = x_quantiser = BlockQuantiser(
            blocks=x_blocks, spread=config.activation_spread, router_spread=config.router_spread, floor=-126
        )
        m.submodules.x_buffer = x_buffer = ActivationBuffer(
            blocks=x_blocks, banks=2, sets=("code8", "high", "low")
        )
        m.submodules.array = array = self._array
        m.submodules.normalise = normalise = Normalise(config.acc_bits, user=4)
        m.submodules.router = router = Router(config)
        m.submodules.swiglu = swiglu = SwiGlu(user=2)
        m.submodules.h_quantiser = h_quantiser = BlockQuantiser(
            blocks=h_blocks, spread=config.activation_spread, router_spread=config.router_spread
        )
        m.submodules.h_buffer = h_buffer = ActivationBuffer(blocks=h_blocks, banks=1, sets=("code8",))
        m.submodules.combine = combine = Combine(config)
        m.submodules.scheduler = scheduler = Scheduler(config, router.route_layout)

        # Tokens in: two banks, one filled while the other is computed.
        fill_bank, full = Signal(), Signal(2)
        m.d.comb += [
            *[x_quantiser.i.payload.number[k].eq(v) for k, v in unpack(self.x.payload.bits).items()],
            x_quantiser.i.payload.last.eq(self.x.payload.last),
            x_quantiser.i.payload.end.eq(1),
            x_quantiser.i.valid.eq(self.x.valid),
            self.x.ready.eq(x_quantiser.i.ready),
            x_quantiser.grant.eq(~full.bit_select(fill_bank, 1)),
            x_buffer.code.eq(x_quantiser.code),
            x_buffer.code_valid.eq(x_quantiser.code_valid),
            x_buffer.write_bank.eq(fill_bank),
            scheduler.x_ready.eq(full),
        ]
        with m.If(scheduler.x_release):
            m.d.sync += full.bit_select(scheduler.x_bank, 1).eq(0)
        with m.If(x_quantiser.done):
            m.d.sync += [
                full.bit_select(fill_bank, 1).eq(1),
                scheduler.x_top[0].eq(Mux(fill_bank, scheduler.x_top[0], x_quantiser.token_top)),
                scheduler.x_top[1].eq(Mux(fill_bank, x_quantiser.token_top, scheduler.x_top[1])),
                fill_bank.eq(~fill_bank),
            ]

        # Passes: scheduler to array, activations by the step.
        wiring.connect(m, scheduler.o, array.i)
        from_h = Signal(ActivationBuffer.LATENCY)
        m.d.sync += from_h.eq(Cat(array.step.from_h, from_h[:-1]))
        m.d.comb += [
            scheduler.layer.eq(layer),
            scheduler.enable.eq(self.enable),
            x_buffer.read_set.eq(array.step.set),
            x_buffer.read_bank.eq(array.step.bank),
            x_buffer.read_block.eq(array.step.act),
            h_buffer.read_block.eq(array.step.act),
            array.act.eq(Mux(from_h[-1], h_buffer.act, x_buffer.act)),
            array.act_shift.eq(Mux(from_h[-1], h_buffer.shift, x_buffer.shift)),
            *[
                getattr(array, n).eq(getattr(self, n))
                for n in array.signature.members
                if n.startswith("load_")
            ],
        ]

        # Rows: down passes to the combine, all others to numbers, and those to the router or to SwiGLU.
        row, info = array.o.payload, array.o.payload.info
        is_down = info.kind == Kind.DOWN
        m.d.comb += [
            combine.i.payload.eq(row),
            combine.i.valid.eq(array.o.valid & is_down),
            combine.down_base.eq(layer.DOWN_BASE),
            normalise.i.payload.value.eq(row.acc),
            normalise.i.payload.exp.eq(info.base + row.row_exp),
            normalise.i.payload.user.eq(Cat(row.last, info.end & row.last, info.kind)),
            normalise.i.valid.eq(array.o.valid & ~is_down),
            array.o.ready.eq(Mux(is_down, combine.i.ready, normalise.i.ready)),
        ]
        number = normalise.o.payload.number
        last, end, kind = (
            normalise.o.payload.user[0],
            normalise.o.payload.user[1],
            normalise.o.payload.user[2:],
        )
        is_router = kind == Kind.ROUTER.value
        m.d.comb += [
            router.i.payload.number.eq(number),
            router.i.payload.last.eq(last),
            router.i.valid.eq(normalise.o.valid & is_router),
            router.experts.eq(layer.EXPERTS),
            router.top_k.eq(layer.TOP_K),
            router.renormalise.eq((layer.FLAGS & FLAG_RENORMALISE).any()),
            router.shared_gated.eq((layer.FLAGS & FLAG_SHARED_GATED).any()),
            scheduler.route.eq(router.route),
            scheduler.route_done.eq(router.done),
            router.ack.eq(scheduler.route_ack),
            swiglu.i.payload.number.eq(number),
            swiglu.i.payload.user.eq(Cat(last, end)),
            swiglu.i.valid.eq(normalise.o.valid & ~is_router),
            normalise.o.ready.eq(is_router | swiglu.i.ready),
        ]

        # h: collected over all experts of the token, then quantised on one LSB.
        m.d.comb += [
            h_quantiser.i.payload.number.eq(swiglu.o.payload.number),
            h_quantiser.i.payload.last.eq(swiglu.o.payload.user[0]),
            h_quantiser.i.payload.end.eq(swiglu.o.payload.user[1]),
            h_quantiser.i.valid.eq(swiglu.o.valid),
            swiglu.o.ready.eq(h_quantiser.i.ready),
            h_quantiser.grant.eq(1),
            h_buffer.code.eq(h_quantiser.code),
            h_buffer.code_valid.eq(h_quantiser.code_valid),
            scheduler.h_block_done.eq(h_quantiser.code_valid & h_quantiser.code.lane.all()),
            scheduler.h_top.eq(h_quantiser.token_top),
        ]

        wiring.connect(m, wiring.flipped(self.y), combine.o)
        inside = Signal(4)  # tokens between their first element in and their last one out
        arriving = Signal()
        first_in = Signal()
        m.d.comb += first_in.eq(self.x.valid & self.x.ready & ~arriving)
        with m.If(self.x.valid & self.x.ready):
            m.d.sync += arriving.eq(~self.x.payload.last)
        m.d.sync += inside.eq(inside + first_in - self.token_done)
        m.d.comb += [
            self.busy.eq(inside != 0),
            self.active.eq(array.active),
            self.active_rows.eq(array.active_rows),
            self.expert_used.eq(scheduler.expert_used),
            self.token_done.eq(self.y.valid & self.y.ready & self.y.payload.last),
        ]
        return m
