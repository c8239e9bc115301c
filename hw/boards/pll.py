"""The ECP5's phase-locked loop, from one clock to another."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import C, Instance, Signal

__all__ = ["Dividers", "dividers", "instance"]

# Limits of the ECP5 family data sheet (sysCLOCK PLL timing), MHz.
VCO = (400.0, 800.0)
PHASE_DETECTOR = (10.0, 400.0)  # the oscillator after the input divider
LARGEST = 128  # of each divider


@dataclass(frozen=True)
class Dividers:
    """out = oscillator * feedback / input; the oscillator inside runs at out * output."""

    input: int
    feedback: int
    output: int


def dividers(oscillator_mhz: float, clock_mhz: float) -> Dividers:
    """Dividers that give exactly ``clock_mhz``, the oscillator inside as near to the middle of its range as
    can be.

    Raises
    ------
    ValueError : there are none
    """
    middle = sum(VCO) / 2
    found = [
        (i, abs(clock_mhz * o - middle), f, o)
        for i in range(1, LARGEST + 1)
        if PHASE_DETECTOR[0] <= oscillator_mhz / i <= PHASE_DETECTOR[1]
        for f in [round(clock_mhz * i / oscillator_mhz)]
        if 1 <= f <= LARGEST and abs(oscillator_mhz * f / i - clock_mhz) < 1e-9
        for o in range(1, LARGEST + 1)
        if VCO[0] <= clock_mhz * o <= VCO[1]
    ]
    if not found:
        raise ValueError(f"no dividers make {clock_mhz} MHz of {oscillator_mhz} MHz")
    i, _, f, o = min(found)
    return Dividers(i, f, o)


def instance(
    clock: Signal, oscillator_mhz: float, output: Signal, clock_mhz: float, lock: Signal
) -> Instance:
    """The primitive, with feedback from its output, no phase shift, and nothing dynamic."""
    d = dividers(oscillator_mhz, clock_mhz)
    return Instance(
        "EHXPLLL",
        a_FREQUENCY_PIN_CLKI=f"{oscillator_mhz:g}",
        a_FREQUENCY_PIN_CLKOP=f"{clock_mhz:g}",
        # Loop filter: the values that the vendor's tool picks for this range.
        a_ICP_CURRENT="12",
        a_LPF_RESISTOR="8",
        a_MFG_ENABLE_FILTEROPAMP="1",
        a_MFG_GMCREF_SEL="2",
        p_PLLRST_ENA="DISABLED",
        p_INTFB_WAKE="DISABLED",
        p_STDBY_ENABLE="DISABLED",
        p_DPHASE_SOURCE="DISABLED",
        p_OUTDIVIDER_MUXA="DIVA",
        p_CLKI_DIV=d.input,
        p_CLKFB_DIV=d.feedback,
        p_CLKOP_DIV=d.output,
        p_CLKOP_ENABLE="ENABLED",
        p_CLKOP_CPHASE=d.output // 2 - 1,
        p_CLKOP_FPHASE=0,
        p_FEEDBK_PATH="CLKOP",
        i_CLKI=clock,
        i_CLKFB=output,
        i_RST=C(0, 1),
        i_STDBY=C(0, 1),
        i_PHASESEL0=C(0, 1),
        i_PHASESEL1=C(0, 1),
        i_PHASEDIR=C(1, 1),
        i_PHASESTEP=C(1, 1),
        i_PHASELOADREG=C(1, 1),
        i_PLLWAKESYNC=C(0, 1),
        i_ENCLKOP=C(0, 1),
        o_CLKOP=output,
        o_LOCK=lock,
    )
