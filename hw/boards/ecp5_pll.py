"""The ECP5's phase-locked loop, from one clock to others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amaranth.hdl import C, Instance, Signal, Value

__all__ = ["Dividers", "dividers", "instance"]

# Limits of the ECP5 family data sheet (sysCLOCK PLL timing), MHz.
VCO = (400.0, 800.0)
PHASE_DETECTOR = (10.0, 400.0)  # the oscillator after the input divider
LARGEST = 128  # of each divider
OUTPUTS = {"CLKOP": "A", "CLKOS": "B", "CLKOS2": "C", "CLKOS3": "D"}  # and their dividers
_EXACT = 1e-9  # MHz


@dataclass(frozen=True)
class Dividers:
    """outputs[0] = oscillator * feedback / input; the oscillator inside runs at outputs[k] * output[k]."""

    input: int
    feedback: int
    output: tuple[int, ...]


def dividers(oscillator_mhz: float, *clocks_mhz: float) -> Dividers:
    """Dividers that give exactly ``clocks_mhz``, the oscillator inside as near to the middle of its range as
    can be.

    Raises
    ------
    ValueError : there are none
    """
    middle = sum(VCO) / 2
    first = clocks_mhz[0]
    found = [
        (i, abs(first * o - middle), f, tuple(round(first * o / clock) for clock in clocks_mhz))
        for i in range(1, LARGEST + 1)
        if PHASE_DETECTOR[0] <= oscillator_mhz / i <= PHASE_DETECTOR[1]
        for f in [round(first * i / oscillator_mhz)]
        if 1 <= f <= LARGEST and abs(oscillator_mhz * f / i - first) < _EXACT
        for o in range(1, LARGEST + 1)
        if VCO[0] <= first * o <= VCO[1]
        if all(_divides(first * o, clock) for clock in clocks_mhz)
    ]
    if not found:
        wanted = " and ".join(f"{clock} MHz" for clock in clocks_mhz)
        raise ValueError(f"no dividers make {wanted} of {oscillator_mhz} MHz")
    i, _, f, outputs = min(found)
    return Dividers(i, f, outputs)


def _divides(mhz: float, clock: float) -> bool:
    divider = round(mhz / clock)
    return 1 <= divider <= LARGEST and abs(mhz / divider - clock) < _EXACT


def instance(
    clock: Signal, oscillator_mhz: float, outputs: Sequence[tuple[Value, float]], lock: Signal
) -> Instance:
    """The primitive, with feedback from its first output, no phase shift, and nothing dynamic.

    Parameters
    ----------
    clock : the oscillator
    outputs : one to four clocks to make, with their MHz
    lock : 1 when they are steady
    """
    d = dividers(oscillator_mhz, *(mhz for _, mhz in outputs))
    made = {}
    for (name, letter), (output, mhz), divider in zip(OUTPUTS.items(), outputs, d.output, strict=False):
        made |= {
            f"p_OUTDIVIDER_MUX{letter}": f"DIV{letter}",
            f"a_FREQUENCY_PIN_{name}": f"{mhz:g}",
            f"p_{name}_DIV": divider,
            f"p_{name}_ENABLE": "ENABLED",
            f"p_{name}_CPHASE": divider // 2 - 1 if name == "CLKOP" else divider - 1,
            f"p_{name}_FPHASE": 0,
            f"o_{name}": output,
        }
    return Instance(
        "EHXPLLL",
        a_FREQUENCY_PIN_CLKI=f"{oscillator_mhz:g}",
        # Loop filter: the values that the vendor's tool picks for this range.
        a_ICP_CURRENT="12",
        a_LPF_RESISTOR="8",
        a_MFG_ENABLE_FILTEROPAMP="1",
        a_MFG_GMCREF_SEL="2",
        p_PLLRST_ENA="DISABLED",
        p_INTFB_WAKE="DISABLED",
        p_STDBY_ENABLE="DISABLED",
        p_DPHASE_SOURCE="DISABLED",
        p_CLKI_DIV=d.input,
        p_CLKFB_DIV=d.feedback,
        p_FEEDBK_PATH="CLKOP",
        i_CLKI=clock,
        i_CLKFB=outputs[0][0],
        i_RST=C(0, 1),
        i_STDBY=C(0, 1),
        i_PHASESEL0=C(0, 1),
        i_PHASESEL1=C(0, 1),
        i_PHASEDIR=C(1, 1),
        i_PHASESTEP=C(1, 1),
        i_PHASELOADREG=C(1, 1),
        i_PLLWAKESYNC=C(0, 1),
        i_ENCLKOP=C(0, 1),
        o_LOCK=lock,
        **made,
    )
