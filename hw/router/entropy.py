"""Router entropy, for the gate's first level."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.numerics.log2 import Log2
from hw.router.q78 import Q78
from sw_model.config import HardwareConfig
from sw_model.gate import ENTROPY_SCALE_FRACTION
from sw_model.tables import EXP2, EXP2_FRACTION

__all__ = ["DISTANCE_BITS", "Entropy"]

DISTANCE_BITS = 14  # Q6.8


class Entropy(wiring.Component):
    """H = (log2 sum p + sum (p * distance) / sum p) * scale, Q7.8.

    Members
    -------
    clear : a new token
    p, distance, valid : p = 2**-distance in Q1.24, distance in Q6.8 (saturated), of every expert
    start : all are in (one cycle)
    scale : 1 / log2(E) in Q0.16
    h : Q7.8; ``done`` (one cycle) when it stands

    Latency: ``DISTANCE_BITS`` + ``Log2.LATENCY`` + 4 cycles. Equals :func:`sw_model.gate.entropy`.
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._experts = config.max_experts
        super().__init__(
            {
                "clear": In(1),
                "p": In(EXP2.out_bits),
                "distance": In(DISTANCE_BITS),
                "valid": In(1),
                "start": In(1),
                "scale": In(ENTROPY_SCALE_FRACTION + 1),
                "h": Out(Q78),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        more = (self._experts - 1).bit_length()
        total = Signal(EXP2.out_bits + more)
        spread = Signal(EXP2.out_bits + DISTANCE_BITS + more)
        product = Signal(EXP2.out_bits + DISTANCE_BITS, reset_less=True)
        landing = Signal()
        m.d.sync += [product.eq(self.p * self.distance), landing.eq(self.valid)]
        with m.If(self.valid):
            m.d.sync += total.eq(total + self.p)
        with m.If(landing):
            m.d.sync += spread.eq(spread + product)
        with m.If(self.clear):
            m.d.sync += [total.eq(0), spread.eq(0)]

        m.submodules.log2 = log2 = Log2(len(total), EXP2_FRACTION)
        m.d.comb += log2.x.eq(total)

        # spread // total, at most DISTANCE_BITS bits, by trial subtraction from the top.
        rest = Signal(len(spread))
        quotient = Signal(DISTANCE_BITS)
        step = Signal(range(DISTANCE_BITS + 1))
        trial = Signal(len(total) + DISTANCE_BITS - 1)
        fits = Signal()
        bits = Signal(Q78)
        m.d.comb += [trial.eq((total << (DISTANCE_BITS - 1)) >> step), fits.eq(rest >= trial)]
        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.start):
                    m.next = "SETTLE"
            with m.State("SETTLE"):
                m.next = "LOAD"
            with m.State("LOAD"):
                m.d.sync += [rest.eq(spread), step.eq(0)]
                m.next = "DIVIDE"
            with m.State("DIVIDE"):
                m.d.sync += [
                    rest.eq(Mux(fits, rest - trial, rest)),
                    quotient.eq(Cat(fits, quotient[:-1])),
                    step.eq(step + 1),
                ]
                with m.If(step == DISTANCE_BITS - 1):
                    m.next = "ADD"
            with m.State("ADD"):
                m.d.sync += bits.eq(log2.y + quotient)
                m.next = "SCALE"
            with m.State("SCALE"):
                half = 1 << (ENTROPY_SCALE_FRACTION - 1)
                m.d.sync += self.h.eq((bits * self.scale + half) >> ENTROPY_SCALE_FRACTION)
                m.next = "DONE"
            with m.State("DONE"):
                m.d.comb += self.done.eq(1)
                m.next = "IDLE"
        return m
