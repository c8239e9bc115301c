"""The energy governor: a token bucket that moves lambda, the cap on experts and the mode."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from sw_model.energy.governor import (
    BUDGET_BITS,
    CREDIT_SHIFT,
    DEBT_SHIFT,
    ENERGY_BITS,
    LAMBDA_BITS,
    MODES,
    NO_CAP,
)

__all__ = ["SETTINGS", "Governor"]

CREDIT_BITS = BUDGET_BITS + DEBT_SHIFT + 1  # signed; most that is owed: 8 b

#: What the governor gives: name -> shape.
SETTINGS: dict[str, Any] = {
    "lam": LAMBDA_BITS + 1,
    "cap": 8,
    "mode": range(MODES),
    "high": 1,
    "credit": signed(CREDIT_BITS),
}


class Governor(wiring.Component):
    """After each token, with e its energy and b the budget:

        credit = clip(credit + b - e, -8 b, b / 4)        owed = max(0, -credit)
        mode   : up from owed >= b / 4 on, down at credit = b / 4, one turn, not twice running
        lam    = min(max(0, owed - b / 4) >> shift, lambda_max)
        high   : 1 from b / 2 on until owed < b / 4
        cap    : 1 from 3/4 b on until owed < b / 2; 0 from b on until owed < 3/4 b; else NO_CAP

    Members
    -------
    budget, shift, lambda_max, last_mode : registers, see :class:`sw_model.energy.governor.Registers`
    start : the budget was written: nothing owed, mode 0
    energy, done : units that a token took, with its end (one cycle)
    lam : added to the gate's lambda, Q7.8; cap : most experts a token; mode : level of sparse attention
    high : of INT8 weights the high nibble alone, from the token after next on
    credit : signed, for the host to look at

    Latency: ``LATENCY`` from ``done``. Throughput: a token every ``LATENCY`` cycles. Equals
    :func:`sw_model.energy.governor.step`, bit for bit.
    """

    LATENCY = 4

    def __init__(self) -> None:
        super().__init__(
            {
                "budget": In(BUDGET_BITS),
                "shift": In(range(BUDGET_BITS - LAMBDA_BITS)),
                "lambda_max": In(LAMBDA_BITS + 1),
                "last_mode": In(range(MODES)),
                "start": In(1),
                "energy": In(ENERGY_BITS),
                "done": In(1),
                **{name: Out(shape) for name, shape in SETTINGS.items()},
                "cap": Out(SETTINGS["cap"], init=NO_CAP),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        b = self.budget
        at = Signal(self.LATENCY - 1)
        m.d.sync += at.eq(Cat(self.done, at[:-1]))

        # One cycle each: the sum, its bounds, the comparisons; then the settings.
        total = Signal(signed(ENERGY_BITS + 2))
        m.d.sync += total.eq(self.credit + b - self.energy)
        least, most = Signal(signed(CREDIT_BITS)), Signal(signed(CREDIT_BITS))
        m.d.comb += [least.eq(-(b << DEBT_SHIFT)), most.eq(b >> CREDIT_SHIFT)]
        with m.If(at[0]):
            m.d.sync += self.credit.eq(Mux(total < least, least, Mux(total > most, most, total)))

        owed = Signal(CREDIT_BITS)
        half, quarter = b >> 1, b >> 2
        over = Signal(signed(CREDIT_BITS + 1))
        m.d.comb += [owed.eq(Mux(self.credit < 0, -self.credit, 0)), over.eq(owed - quarter)]
        rest, turned = Signal(), Signal()
        upward, downward = Signal(), Signal()  # the way of the mode's last step
        none, one, up, down, high = Signal(), Signal(), Signal(), Signal(), Signal()
        lam = Signal(CREDIT_BITS)
        m.d.sync += [
            none.eq((owed >= b) | ((self.cap == 0) & (owed >= half + quarter))),
            one.eq((owed >= half + quarter) | ((self.cap != NO_CAP) & (owed >= half))),
            high.eq((owed >= half) | (self.high & (owed >= quarter))),
            up.eq(~rest & (owed >= quarter) & (self.mode < self.last_mode) & ~(downward & turned)),
            down.eq(~rest & (self.credit == most) & (self.mode != 0) & ~(upward & turned)),
            lam.eq(Mux(over > 0, over, 0) >> self.shift),
        ]
        with m.If(at[2]):
            m.d.sync += [
                self.cap.eq(Mux(none, 0, Mux(one, 1, NO_CAP))),
                self.lam.eq(Mux(lam > self.lambda_max, self.lambda_max, lam)),
                self.mode.eq(self.mode + up - down),
                self.high.eq(high),
                rest.eq(up | down),
            ]
            with m.If(up | down):
                m.d.sync += [
                    upward.eq(up),
                    downward.eq(down),
                    turned.eq(turned | (up & downward) | (down & upward)),
                ]
        with m.If(self.start):
            m.d.sync += [
                at.eq(0),
                *[signal.eq(0) for signal in (self.credit, self.lam, self.mode, self.high)],
                *[signal.eq(0) for signal in (rest, turned, upward, downward)],
                self.cap.eq(NO_CAP),
            ]
        return m
