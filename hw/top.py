"""The accelerator with its host side: AXI4-Lite registers, AXI4-Stream tokens and weights."""

from amaranth.hdl import C, Cat, ClockDomain, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.cdc import ResetSynchronizer
from amaranth.lib.wiring import In, Out

from hw.energy.counters import Counters
from hw.host.axil import SIGNALS, RegisterFile
from hw.host.registers import COUNTERS, GOVERNOR_WIDTHS, LAYER_WIDTHS, REGISTERS, config_id, present
from hw.host.tokens import TokenInput
from hw.host.weights import WeightLoader
from hw.layer import MoELayer
from hw.pe.lookup_array import ARRAY_DOMAIN
from hw.router.gate import SIDE
from sw_model.config import HardwareConfig
from sw_model.image import Image
from sw_model.packets import LAYER_KINDS, Kind, capacities

__all__ = ["PORTS", "Top", "ports"]


def _axis(prefix: str, width: int, flow: type) -> dict:
    back = In if flow is Out else Out
    return {
        f"{prefix}_tdata": flow(width),
        f"{prefix}_tvalid": flow(1),
        f"{prefix}_tready": back(1),
        f"{prefix}_tlast": flow(1),
    }


#: Ports of the accelerator, named as the AXI specifications name them.
PORTS = {
    "aclk": In(1),
    "aresetn": In(1),
    **{f"s_axil_{name}": member for name, member in SIGNALS.items()},
    **_axis("s_axis_x", 32, In),
    "s_axis_x_tuser": In(SIDE.size),
    **_axis("s_axis_w", 128, In),
    **_axis("m_axis_y", 32, Out),
    **_axis("m_axis_page", 32, Out),
    "sparse_attention": Out(2),
}


def ports(config: HardwareConfig) -> dict:
    """:data:`PORTS`, and the array's clock where it is not the core's."""
    return {**PORTS, "array_clk": In(1)} if config.array_clock > 1 else PORTS


class Top(wiring.Component):
    """One MoE layer as an AXI peripheral, or several, through one of which at a time tokens go.

    Parameters
    ----------
    config : what it can hold
    image : weights and registers that it wakes up with (for a standalone FPGA image); None: all loaded at run
        time, and ``CONTROL.enable`` is 0 after reset

    Members
    -------
    aclk, aresetn : clock; synchronous reset, active low (the weights outlive it)
    array_clk : the array's clock, where ``config.array_clock`` is above 1; of any phase and frequency
    s_axil_* : AXI4-Lite, see :mod:`hw.host.registers`
    s_axis_x_*, m_axis_y_* : tokens, a binary32 element a beat, tlast at the end of a token; s_axis_x_tuser
        with the first beat: information [7:0], domain tag [14:8], tagged [15] (:data:`hw.router.gate.SIDE`)
    s_axis_w_* : weight packets, see :class:`hw.host.weights.WeightLoader`
    m_axis_page_* : requests for pages, a beat each: expert [15:0], the slot that it will fill [31:16]
    sparse_attention : level that the governor asks of whatever computes attention, 0 (all keys) to 3
    """

    def __init__(self, config: HardwareConfig, image: Image | None = None) -> None:
        self._config = config
        self._image = image
        super().__init__(ports(config))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.domains.sync = domain = ClockDomain()
        m.d.comb += [domain.clk.eq(self.aclk), domain.rst.eq(~self.aresetn)]
        if self._config.array_clock > 1:
            array = ClockDomain(ARRAY_DOMAIN)
            m.domains += array
            m.d.comb += array.clk.eq(self.array_clk)
            m.submodules.array_reset = ResetSynchronizer(domain.rst, domain=ARRAY_DOMAIN)

        reset = {} if self._image is None else {**self._image.registers, "CONTROL": 1}
        m.submodules.registers = registers = RegisterFile(reset, self._config.features)
        m.submodules.tokens = tokens = TokenInput()
        m.submodules.weights = weights = WeightLoader(self._config)
        m.submodules.core = core = MoELayer(self._config, self._image)

        for name, member in SIGNALS.items():
            inner, outer = getattr(registers, name), getattr(self, f"s_axil_{name}")
            m.d.comb += inner.eq(outer) if member.flow is In else outer.eq(inner)
        m.d.comb += [
            tokens.i.payload.eq(Cat(self.s_axis_x_tdata, self.s_axis_x_tlast)),
            tokens.i.valid.eq(self.s_axis_x_tvalid),
            self.s_axis_x_tready.eq(tokens.i.ready),
            weights.i.payload.eq(Cat(self.s_axis_w_tdata, self.s_axis_w_tlast)),
            weights.i.valid.eq(self.s_axis_w_tvalid),
            self.s_axis_w_tready.eq(weights.i.ready),
            self.m_axis_y_tdata.eq(core.y.payload.bits),
            self.m_axis_y_tlast.eq(core.y.payload.last),
            self.m_axis_y_tvalid.eq(core.y.valid),
            core.y.ready.eq(self.m_axis_y_tready),
            core.enable.eq(registers.rw_CONTROL[0]),
            *[
                core.layer[name].eq(getattr(registers, f"rw_{name}"))
                for name in LAYER_WIDTHS
                if name in present(self._config.features)
            ],
            tokens.hidden.eq(registers.rw_HIDDEN),
            core.side.eq(self.s_axis_x_tuser),
            core.load_tile.eq(weights.tile),
            core.load_addr.eq(weights.addr),
            core.load_word.eq(weights.word),
            core.load_scale.eq(weights.lane),
            core.load_word_en.eq(weights.words_en),
            core.load_scale_en.eq(weights.scales_en),
            core.load_context_en.eq(weights.contexts_en),
            *[
                getattr(core, f"load_{k.name.lower()}_en").eq(getattr(weights, f"{k.name.lower()}_en"))
                for k in capacities(self._config)
                if k not in (Kind.WORDS, Kind.SCALES, Kind.CONTEXTS)
            ],
            core.page_flush.eq(registers.pulse_flush_pages),
            core.page.eq(weights.page),
            core.page_locate.eq(weights.locate),
            core.page_done.eq(weights.page_done),
            weights.located.eq(core.page_located),
            weights.location.eq(core.page_location),
            weights.page_words.eq(registers.rw_PAGE_WORDS),
            weights.page_scales.eq(registers.rw_PAGE_SCALES),
            self.m_axis_page_tdata.eq(core.page_request.payload),
            self.m_axis_page_tvalid.eq(core.page_request.valid),
            self.m_axis_page_tlast.eq(1),
            core.page_request.ready.eq(self.m_axis_page_tready),
        ]
        if self._config.governor:
            self._govern(m, registers, core)
        # Tokens enter only while the core is enabled.
        m.d.comb += [
            core.x.payload.eq(tokens.o.payload),
            core.discard.eq(tokens.discard),
            core.x.valid.eq(tokens.o.valid & core.enable),
            tokens.o.ready.eq(core.x.ready & core.enable),
        ]
        self._count(m, registers, tokens, weights, core)
        return m

    def _govern(self, m: Module, registers: RegisterFile, core: MoELayer) -> None:
        governed = core.governed
        state = {f.name: f.lsb for f in REGISTERS["GOVERNOR_STATE"].fields}
        shown = {"lambda": governed.lam, "cap": governed.cap, "mode": governed.mode, "high": governed.high}
        m.d.comb += [
            *[core.governor[name].eq(getattr(registers, f"rw_{name}")) for name in GOVERNOR_WIDTHS],
            core.governor_start.eq(registers.pulse_start_governor),
            registers.ro_GOVERNOR_STATE.eq(sum(value << state[name] for name, value in shown.items())),
            registers.ro_GOVERNOR_CREDIT.eq(governed.credit),
            registers.ro_GOVERNOR_ENERGY.eq(governed.energy),
            self.sparse_attention.eq(governed.mode),
        ]

    def _count(
        self,
        m: Module,
        registers: RegisterFile,
        tokens: TokenInput,
        weights: WeightLoader,
        core: MoELayer,
    ) -> None:
        events = {
            "CYCLES": C(1),
            "BUSY_CYCLES": core.busy,
            "ACTIVE_CYCLES": core.active,
            "TOKENS": core.token_done,
            "EXPERTS_USED": core.expert_used,
            "EMPTY_TOKENS": core.empty,
            **{
                name: Mux(core.removed_valid, core.removed[level], 0)
                for level, name in enumerate(
                    ("REMOVED_DENSITY", "REMOVED_DOMAIN", "REMOVED_COST", "REMOVED_CAP")
                )
            },
            "WORD_READS": core.reads,
            "ROUTED_CYCLES": Mux(core.routed, core.active, 0),
            "ROUTED_READS": Mux(core.routed, core.reads, 0),
            "NIBBLE_PASSES": core.computes,
            "PAGE_HITS": core.page_hit,
            "PAGE_MISSES": core.page_miss,
            "PAGE_STALL_CYCLES": core.page_stall,
            "WORDS_LOADED": weights.words_en,
            "SCALES_LOADED": weights.scales_en,
            "BLOCK_SUMS": core.sums,
            "ROUTED_SUMS": Mux(core.routed, core.sums, 0),
            "ACT_READS": core.act_reads,
            "ACT_WRITES": core.act_writes,
            "ROUTER_ROWS": core.router_rows,
            "ACTIVATIONS": core.activations,
            "COMBINE_ROWS": core.combine_rows,
        }
        assert tuple(events) == COUNTERS
        m.submodules.counters = counters = Counters(
            {name: (1 << len(Value.cast(event))) - 1 for name, event in events.items()}
        )
        flags = Signal(2)  # a token's length; a weight packet
        clear = registers.pulse_clear_counters
        m.d.comb += [
            *[counters.events[name].eq(event) for name, event in events.items()],
            counters.clear.eq(clear),
            counters.hold.eq(registers.rw_CONTROL[3]),
            counters.addr.eq(registers.counter_addr),
            counters.en.eq(registers.counter_en),
            registers.counter.eq(counters.value),
            registers.ro_STATUS.eq(Cat(core.busy, flags, counters.held)),
            registers.ro_CONFIG_HASH.eq(config_id(self._config)),
            registers.ro_FEATURES.eq(int(self._config.features)),
        ]
        m.d.sync += flags.eq(Mux(clear, 0, flags) | Cat(tokens.length_error, weights.error))
        if self._image is not None:
            image = Signal(
                32, init=self._image.id, reset_less=True
            )  # the weights outlive a reset, as it does
            kinds = [k for k in LAYER_KINDS if k in capacities(self._config)]
            loaded = Cat(getattr(weights, f"{k.name.lower()}_en") for k in kinds)
            with m.If(loaded.any()):
                m.d.sync += image.eq(0)
            m.d.comb += registers.ro_IMAGE.eq(image)
