"""The MoE layer: reads as the block diagram.

x ─▶ x_quantiser ─▶ x_buffer ─┐                       ┌─▶ router ─▶ scheduler, contexts ─▶ (passes)
                                  ├─▶ array ─▶ normalise ─┴─▶ activate ─▶ h_quantiser ─▶ h_buffer
                        h_buffer ─┘     └─▶ combine ─▶ y
"""

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.energy.control import GOVERNED, GOVERNOR, EnergyControl
from hw.numerics.float32 import unpack
from hw.numerics.normalise import Normalise
from hw.numerics.quantiser import BlockQuantiser
from hw.numerics.scaled import SCALED
from hw.pe.activate import Activate, numbers_layout
from hw.pe.activations import ActivationBuffer
from hw.pe.array import PeArray
from hw.pe.blocks import read_width
from hw.pe.combine import Combine
from hw.pe.contexts import ContextTable
from hw.pe.drain import Kind
from hw.pe.lookup_array import LookupArray
from hw.pe.paging import LOCATION, REQUEST, Paging
from hw.pe.scheduler import Scheduler, layer_layout
from hw.pe.serialiser import Serialiser
from hw.router.gate import SIDE
from hw.router.q78 import saturate
from hw.router.router import Router
from hw.skid import Skid
from sw_model.compiler import Flag
from sw_model.config import HardwareConfig
from sw_model.energy.counts import X_BYTES
from sw_model.formats import BLOCK
from sw_model.gate import MAX_TAU
from sw_model.golden import ALPHA
from sw_model.image import Image, integers
from sw_model.moe import Activation

__all__ = ["TOKEN", "MoELayer"]

#: One element of a token on its way in or out: a binary32 word, ``last`` of the token.
TOKEN = stream.Signature(data.StructLayout({"bits": 32, "last": 1}))

_ROUTER_TABLES = ("biases", "costs", "domains", "resident")
_RULE_REGISTERS = ("experts", "top_k", "groups", "top_groups")
_RULE_FLAGS = ("renormalise", "sigmoid", "shared_gated", "density_row")
_GATE_REGISTERS = ("info", "entropy", "entropy_scale", "density", "phi", "psi")
_EVENTS = ("active", "reads", "computes", "sums", "act_reads", "routed")
_ROW_EVENTS = ("router_rows", "activations", "combine_rows")
_PAGE_EVENTS = ("page_hit", "page_miss", "page_stall")


class MoELayer(wiring.Component):
    """y = sum_e w_e E_e(x) + w_base E_base(x), bit for bit as :func:`sw_model.golden.run`.

    Parameters
    ----------
    config : what it can hold
    image : weights that it wakes up with; None: all are loaded at run time

    Members
    -------
    layer : the layer's registers; steady while a token is in the core, but for the high-nibble flag
    enable : take tokens
    governor : its registers, steady while a token is in the core; governor_start : afresh, with them
    governed : what it has decided (:data:`~hw.energy.control.GOVERNED`)
    x, y : streams of binary32 elements, ``last`` at the end of a token
    discard : with an element of x: its token is forgotten
    side : what comes with a token, beside its first element
    load_* : weight loading, see :class:`~hw.pe.array.PeArray`
    page_flush, page_request, page, page_locate, page_located, page_location, page_done : see
        :class:`~hw.pe.paging.Paging`; a configuration without page slots asks for nothing
    busy, the rest : events for the counters, see :mod:`hw.energy.counters`

    The next tokens are taken in and quantised while this one is computed, and one is routed ahead.
    """

    def __init__(self, config: HardwareConfig, image: Image | None = None) -> None:
        self._config = config
        words = scales = contexts = None
        if image is not None:
            words = [integers(tile) for tile in image.words]
            scales = image.scales.tolist()
            contexts = integers(image.contexts)
        self._array = (LookupArray if config.body == "lut" else PeArray)(config, words, scales)
        self._contexts = ContextTable(config, contexts)
        self._router = Router(config, image)
        array, router = self._array.signature.members, self._router.signature.members
        super().__init__(
            {
                "layer": In(layer_layout(config)),
                "enable": In(1),
                "governor": In(GOVERNOR),
                "governor_start": In(1),
                "governed": Out(GOVERNED),
                "x": In(TOKEN),
                "discard": In(1),
                "side": In(SIDE),
                "y": Out(TOKEN),
                **{name: member for name, member in array.items() if name.startswith("load_")},
                "load_context_en": In(1),
                **{f"load_{table}_en": In(1) for table in _ROUTER_TABLES},
                "busy": Out(1),
                **{name: array[name] for name in _EVENTS},
                "act_writes": Out(range(X_BYTES + 2)),
                **{name: Out(range(config.drain + 1)) for name in _ROW_EVENTS},
                "expert_used": Out(1),
                "removed": router["removed"],
                "removed_valid": Out(1),
                "empty": Out(1),
                "token_done": Out(1),
                "page_flush": In(1),
                "page_request": Out(stream.Signature(REQUEST)),
                "page": In(12),
                "page_locate": In(1),
                "page_located": Out(1),
                "page_location": Out(LOCATION),
                "page_done": In(1),
                **{name: Out(1) for name in _PAGE_EVENTS},
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, layer = self._config, self.layer

        def flag(which: Flag) -> Value:
            return (layer.FLAGS & which).any()

        # The array of lookups reads the blocks of its columns one after the other, and each in parts.
        lookup = config.body == "lut"
        columns, width = (1, read_width(config)) if lookup else (config.columns, BLOCK)
        x_blocks = config.max_hidden // BLOCK
        h_blocks = config.max_slots * config.max_intermediate // BLOCK

        lanes = config.drain
        spreads = {"spread": config.activation_spread, "router_spread": config.router_spread}
        buffer = {"columns": columns, "give": lanes, "width": width}
        m.submodules.x_quantiser = x_quantiser = BlockQuantiser(
            blocks=x_blocks, **spreads, floor=-126, give=lanes, user=SIDE.size
        )
        m.submodules.x_buffer = x_buffer = ActivationBuffer(
            blocks=x_blocks, banks=2, sets=("code8", "high", "low"), **buffer
        )
        m.submodules.array = array = self._array
        m.submodules.serialiser = serialiser = Serialiser(SCALED, lanes)
        m.submodules.router = router = self._router
        m.submodules.contexts = contexts = self._contexts
        m.submodules.activate = activate = Activate(lanes, clamp=config.clamp)
        m.submodules.h_skid = h_skid = Skid(numbers_layout(activate.lanes))
        m.submodules.h_quantiser = h_quantiser = BlockQuantiser(
            blocks=h_blocks,
            **spreads,
            take=activate.lanes,
            give=lanes,
            ahead=config.max_intermediate // BLOCK,
        )
        m.submodules.h_buffer = h_buffer = ActivationBuffer(
            blocks=h_blocks, banks=1, sets=("code8",), **buffer
        )
        m.submodules.combine = combine = Combine(config)
        m.submodules.scheduler = scheduler = Scheduler(config)

        # Tokens in: two banks, one filled while the other is computed.
        fill_bank, full = Signal(), Signal(2)
        side = Signal(SIDE)  # of the token that is coming in
        sides = [Signal(SIDE, name=f"side{i}") for i in range(2)]
        m.d.comb += [
            *[x_quantiser.i.payload.numbers[0][k].eq(v) for k, v in unpack(self.x.payload.bits).items()],
            x_quantiser.i.payload.count.eq(1),
            x_quantiser.i.payload.last.eq(self.x.payload.last),
            x_quantiser.vectors.payload.count.eq(1),
            x_quantiser.vectors.payload.user.eq(side),
            x_quantiser.vectors.valid.eq(1),
            x_quantiser.i.valid.eq(self.x.valid),
            x_quantiser.discard.eq(self.discard),
            self.x.ready.eq(x_quantiser.i.ready),
            x_quantiser.constants.eq(flag(Flag.ROUTER_BIASED) | flag(Flag.EXPERT_BIASED)),
            x_quantiser.grant.eq(~full.bit_select(fill_bank, 1)),
            x_buffer.code.eq(x_quantiser.code),
            x_buffer.code_valid.eq(x_quantiser.code_valid),
            x_buffer.write_bank.eq(fill_bank),
            scheduler.x_ready.eq(full),
        ]
        m.d.sync += full.eq(full & ~scheduler.x_release)
        with m.If(x_quantiser.done):
            m.d.sync += [
                full.bit_select(fill_bank, 1).eq(1),
                scheduler.x_top[0].eq(Mux(fill_bank, scheduler.x_top[0], x_quantiser.token_top)),
                scheduler.x_top[1].eq(Mux(fill_bank, x_quantiser.token_top, scheduler.x_top[1])),
                fill_bank.eq(~fill_bank),
            ]
            for bank in range(2):
                with m.If(fill_bank == bank):
                    m.d.sync += sides[bank].eq(x_quantiser.token_user)

        # Passes: scheduler to array, activations by the step.
        wiring.connect(m, scheduler.o, array.i)
        reading = array.step_valid if lookup else array.act_reads != 0
        if lookup:
            m.d.comb += [x_buffer.read_word.eq(array.step.word), h_buffer.read_word.eq(array.step.word)]
        loads = [name for name in array.signature.members if name.startswith("load_")]
        assert array.act_at == ActivationBuffer.LATENCY
        from_h = Signal(array.act_at)
        m.d.sync += from_h.eq(Cat(array.step.from_h, from_h[:-1]))
        m.d.comb += [
            scheduler.layer.eq(layer),
            scheduler.enable.eq(self.enable),
            x_buffer.read_set.eq(array.step.set),
            x_buffer.read_bank.eq(array.step.bank),
            x_buffer.read_block.eq(array.step.act),
            h_buffer.read_block.eq(array.step.act),
            x_buffer.read_en.eq(reading & ~array.step.from_h),
            h_buffer.read_en.eq(reading & array.step.from_h),
            x_buffer.split.eq(array.step.split),
            h_buffer.split.eq(array.step.split),
            *[b.read_blocks.eq(array.step.acts) for b in (x_buffer, h_buffer) if columns > 1],
            array.act.eq(Mux(from_h[-1], h_buffer.act, x_buffer.act)),
            array.act_shift.eq(Mux(from_h[-1], h_buffer.shift, x_buffer.shift)),
            *[getattr(array, name).eq(getattr(self, name)) for name in loads],
            contexts.write_addr.eq(self.load_addr),
            contexts.write_data.eq(self.load_word),
            contexts.write_en.eq(self.load_context_en),
            contexts.read_addr.eq(scheduler.context_addr),
            scheduler.context.eq(contexts.context),
            *[table.layer.eq(layer.LAYER) for table in (contexts, router) if config.max_layers > 1],
            router.load_addr.eq(self.load_addr),
            router.load_data.eq(self.load_scale),
            *[getattr(router, f"load_{t}_en").eq(getattr(self, f"load_{t}_en")) for t in _ROUTER_TABLES],
        ]

        # Rows: down passes to the combine, all others to numbers, and those to the router or the activation.
        beat, info = array.o.payload, array.o.payload.info
        is_down = info.kind == Kind.DOWN
        m.d.comb += [
            combine.i.payload.eq(beat),
            combine.i.valid.eq(array.o.valid & is_down),
            combine.down_base.eq(layer.DOWN_BASE),
        ]
        tag = data.StructLayout({"last": 1, "kind": 2, "count": range(lanes + 1)})
        normalise = [Normalise(config.acc_bits, user=tag.size) for _ in range(lanes)]  # in step
        for lane, one in enumerate(normalise):
            m.submodules[f"normalise{lane}"] = one
            m.d.comb += [
                one.i.payload.value.eq(beat.rows[lane].acc),
                one.i.payload.exp.eq(info.base + beat.rows[lane].row_exp),
                one.i.payload.user.eq(Cat(beat.last, info.kind, beat.count)),
                one.i.valid.eq(array.o.valid & ~is_down),
                serialiser.i.payload["items"][lane].eq(one.o.payload.number),
                activate.i.payload.numbers[lane].eq(one.o.payload.number),
            ]
        first, user = normalise[0], data.View(tag, normalise[0].o.payload.user)
        is_router = user.kind == Kind.ROUTER.value
        m.d.comb += [
            array.o.ready.eq(Mux(is_down, combine.i.ready, first.i.ready)),
            *[one.o.ready.eq(Mux(is_router, serialiser.i.ready, activate.i.ready)) for one in normalise],
            serialiser.i.payload.count.eq(user.count),
            serialiser.i.payload.last.eq(user.last),
            serialiser.i.valid.eq(first.o.valid & is_router),
            serialiser.o.ready.eq(1),
            router.i.payload.number.eq(serialiser.o.payload.item),
            router.i.payload.last.eq(serialiser.o.payload.last),
            router.i.valid.eq(serialiser.o.valid),
            *[router.rule[name].eq(layer[name.upper()]) for name in _RULE_REGISTERS],
            *[router.rule[name].eq(flag(Flag[name.upper()])) for name in _RULE_FLAGS],
            router.rule.top2.eq(flag(Flag.TOP2_GROUPS)),
            router.rule.scale.eq(layer.ROUTER_SCALE),
            router.gate.enable.eq(flag(Flag.GATE)),
            *[router.gate[name].eq(layer[f"GATE_{name.upper()}"]) for name in _GATE_REGISTERS],
            *[router.gate.tau[j].eq(layer[f"GATE_TAU{j}"]) for j in range(MAX_TAU)],
            router.side.eq(Mux(scheduler.x_bank, sides[1], sides[0])),
            scheduler.route.shared.eq(router.route.shared),
            router.ack.eq(scheduler.route_ack),
            activate.i.payload.count.eq(user.count),
            activate.i.payload.last.eq(user.last),
            activate.i.valid.eq(first.o.valid & ~is_router),
            activate.clamped.eq(flag(Flag.CLAMPED)),
            *[activate.limit[k].eq(v) for k, v in unpack(layer.LIMIT).items()],
            activate.alpha.eq(Mux(flag(Flag.CLAMPED), ALPHA[Activation.CLAMPED], ALPHA[Activation.SILU])),
        ]
        self._page(m, router, scheduler)
        self._govern(m, router, scheduler)

        # h: collected over all experts of the token, then quantised on one LSB.
        wiring.connect(m, activate.o, h_skid.i)
        wiring.connect(m, h_skid.o, h_quantiser.i)
        wiring.connect(m, scheduler.h_vectors, h_quantiser.vectors)
        h_full = Signal()
        with m.If(scheduler.h_release):
            m.d.sync += h_full.eq(0)
        with m.If(h_quantiser.done):
            m.d.sync += h_full.eq(1)
        m.d.comb += [
            h_quantiser.constants.eq(flag(Flag.EXPERT_BIASED)),
            h_quantiser.grant.eq(~h_full),
            h_buffer.code.eq(h_quantiser.code),
            h_buffer.code_valid.eq(h_quantiser.code_valid),
            scheduler.h_block_done.eq(h_quantiser.code_valid & (h_quantiser.code.lane == BLOCK - lanes)),
            scheduler.h_top.eq(h_quantiser.token_top),
        ]

        # Events: rows as they leave the array, elements of h, blocks written.
        x_block_done = x_quantiser.code_valid & (x_quantiser.code.lane == BLOCK - lanes)
        rows = Mux(array.o.valid & array.o.ready, beat.count, 0)
        m.d.comb += [
            self.router_rows.eq(Mux(info.kind == Kind.ROUTER, rows, 0)),
            self.combine_rows.eq(Mux(is_down, rows, 0)),
            self.activations.eq(Mux(activate.o.valid & activate.o.ready, activate.o.payload.count, 0)),
            self.act_writes.eq(Mux(x_block_done, X_BYTES, 0) + scheduler.h_block_done),
        ]

        wiring.connect(m, wiring.flipped(self.y), combine.o)
        inside = Signal(4)  # tokens between their first element in and their last one out
        arriving = Signal()
        first_in, taken = Signal(), Signal()
        m.d.comb += [taken.eq(self.x.valid & self.x.ready), first_in.eq(taken & ~arriving)]
        with m.If(taken):
            m.d.sync += arriving.eq(~self.x.payload.last & ~self.discard)
        m.d.sync += inside.eq(inside + first_in - self.token_done - (taken & self.discard))
        with m.If(first_in):
            m.d.sync += side.eq(self.side)
        m.d.comb += [
            self.busy.eq(inside != 0),
            *[getattr(self, name).eq(getattr(array, name)) for name in _EVENTS],
            self.expert_used.eq(scheduler.expert_used),
            *[getattr(self, name).eq(getattr(router, name)) for name in ("removed", "removed_valid")],
            self.empty.eq(router.removed_valid & (router.route.chosen.count == 0)),
            self.token_done.eq(self.y.valid & self.y.ready & self.y.payload.last),
        ]
        return m

    def _govern(self, m: Module, router: Router, scheduler: Scheduler) -> None:
        """Energy of each token, and what the next may cost, if the design has a governor."""
        array, step, layer = self._array, self._array.step, self.layer
        high = (layer.FLAGS & Flag.HIGH_NIBBLE).any()
        if not self._config.governor:
            gate = router.gate
            m.d.comb += [gate.lam.eq(layer.GATE_LAMBDA), gate.cap.eq(layer.GATE_CAP), scheduler.high.eq(high)]
            return
        most = {n: (1 << len(Value.cast(getattr(array, n)))) - 1 for n in ("reads", "computes", "sums")}
        m.submodules.energy = energy = EnergyControl(most)
        ends = Cat(step.set != 0, step.from_h & array.routed, step.from_h & ~array.routed, step.final)
        m.d.comb += [
            energy.registers.eq(self.governor),
            energy.start.eq(self.governor_start),
            *[getattr(energy, name).eq(getattr(array, name)) for name in most],
            energy.token.eq(step.bank),
            energy.end.eq(Mux(array.step_valid & step.end, ends, 0)),
            energy.admitted.eq(scheduler.route_ack),
            router.hold.eq(energy.hold),
            router.gate.lam.eq(saturate(layer.GATE_LAMBDA.as_signed() + energy.o.lam)),
            router.gate.cap.eq(Mux(layer.GATE_CAP < energy.o.cap, layer.GATE_CAP, energy.o.cap)),
            scheduler.high.eq(high | energy.high),
            self.governed.eq(energy.o),
        ]

    def _page(self, m: Module, router: Router, scheduler: Scheduler) -> None:
        """The route on its way to the scheduler, by way of the pages where the design has them."""
        layer, row = self.layer, self._array.o
        if not self._config.page_slots:
            m.d.comb += [
                scheduler.route.chosen.eq(router.route.chosen),
                scheduler.route_done.eq(router.done),
                scheduler.here.eq(~0),
                self.page_located.eq(1),
            ]
            return
        m.submodules.paging = paging = Paging(self._config)
        wiring.connect(m, paging.request, wiring.flipped(self.page_request))
        m.d.comb += [
            paging.slots.eq(layer.PAGE_SLOTS),
            paging.slot_words.eq(layer.PAGE_WORDS),
            paging.slot_scales.eq(layer.PAGE_SCALES),
            paging.base_words.eq(layer.PAGE_WORD_BASE),
            paging.base_scales.eq(layer.PAGE_SCALE_BASE),
            paging.flush.eq(self.page_flush),
            paging.i.eq(router.route.chosen),
            paging.i_done.eq(router.done),
            paging.ack.eq(scheduler.route_ack),
            scheduler.route.chosen.eq(paging.o),
            scheduler.route_done.eq(paging.o_done),
            scheduler.here.eq(paging.here),
            paging.release.eq(
                row.valid
                & row.ready
                & row.payload.last
                & (row.payload.info.kind == Kind.DOWN)
                & row.payload.info.final
            ),
            paging.page.eq(self.page),
            paging.locate.eq(self.page_locate),
            paging.page_done.eq(self.page_done),
            self.page_located.eq(paging.located),
            self.page_location.eq(paging.location),
            self.page_hit.eq(paging.hit),
            self.page_miss.eq(paging.miss),
            self.page_stall.eq(scheduler.waits & self._array.i.ready),
        ]
