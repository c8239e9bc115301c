"""Energy control: the meter's tokens, one by one, to the governor, and its settings to the tokens."""

from typing import Any

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.energy.governor import SETTINGS, Governor
from hw.energy.meter import Meter
from hw.host.registers import GOVERNOR_WIDTHS
from sw_model.energy.governor import ENERGY_BITS, NO_CAP
from sw_model.energy.meter import WEIGHTS

__all__ = ["GOVERNED", "GOVERNOR", "EnergyControl"]

#: The governor's registers.
GOVERNOR = data.StructLayout(GOVERNOR_WIDTHS)

#: What it shows: its settings, and the energy of the last token.
GOVERNED = data.StructLayout({**SETTINGS, "energy": ENERGY_BITS})


class EnergyControl(wiring.Component):
    """A token is admitted when the one before is through and has been charged, so that what it runs under
    does not depend on time: equals :class:`sw_model.energy.meter.Governor`.

    Parameters
    ----------
    most : most of "reads", "computes" and "sums" in a cycle

    Members
    -------
    registers : steady while a token is in the core; start : afresh, with them (one cycle)
    reads, computes, sums, end, token : see :class:`~hw.energy.meter.Meter`
    admitted : a token has been admitted (one cycle); ``hold``: the next must wait
    o : what is decided (:data:`GOVERNED`)
    high : of the INT8 weights of the token that comes next the high nibble alone. Decided when the one before
        it was admitted, since its first passes may be issued before that one is through

    Without a budget nothing waits and nothing is decided.
    """

    def __init__(self, most: dict[str, int]) -> None:
        self._meter = Meter(most)
        members: dict[str, Any] = self._meter.signature.members
        super().__init__(
            {
                "registers": In(GOVERNOR),
                "start": In(1),
                **{name: members[name] for name in (*most, "end", "token")},
                "admitted": In(1),
                "hold": Out(1),
                "o": Out(GOVERNED, init={"cap": NO_CAP}),
                "high": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        registers = self.registers
        m.submodules.meter = meter = self._meter
        m.submodules.governor = governor = Governor()
        on, energy = Signal(), Signal(ENERGY_BITS)
        m.d.comb += [
            *[meter.weights[name].eq(registers[f"ENERGY_{name}"]) for name in WEIGHTS],
            *[getattr(meter, n).eq(getattr(self, n)) for n in ("reads", "computes", "sums", "end", "token")],
            governor.budget.eq(registers.GOVERNOR_BUDGET),
            governor.shift.eq(registers.GOVERNOR_SHIFT),
            governor.lambda_max.eq(registers.GOVERNOR_LAMBDA_MAX),
            governor.last_mode.eq(registers.GOVERNOR_LAST_MODE),
            governor.energy.eq(meter.energy),
            governor.done.eq(meter.done),
            *[self.o[name].eq(getattr(governor, name)) for name in SETTINGS],
            self.o.energy.eq(energy),
        ]
        m.d.sync += [on.eq(registers.GOVERNOR_BUDGET != 0), governor.start.eq(self.start | ~on)]
        with m.If(meter.done):
            m.d.sync += energy.eq(meter.energy)

        # Tokens that are admitted and not charged yet.
        charged, inside = Signal(Governor.LATENCY), Signal(2)
        m.d.sync += [
            charged.eq(Cat(meter.done, charged[:-1])),
            inside.eq(inside + self.admitted - charged[-1]),
        ]
        m.d.comb += self.hold.eq(on & (inside != 0))
        with m.If(self.admitted):
            m.d.sync += self.high.eq(governor.high)
        with m.If(governor.start):
            m.d.sync += self.high.eq(0)
        return m
