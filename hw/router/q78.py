"""Arithmetic of the gate: signed Q7.8, saturated at 16 bits."""

from amaranth.hdl import Mux, Signal, Value, signed

from sw_model.gate import FRACTION, Q_MAX, Q_MIN

__all__ = ["Q78", "product", "saturate", "signed16"]

Q78 = signed(16)


def signed16(value: int) -> int:
    """The low 16 bits of ``value`` as a signed number."""
    return ((value & 0xFFFF) ^ 0x8000) - 0x8000


def saturate(value: Value) -> Value:
    """``value`` clipped to Q7.8."""
    return Mux(value > Q_MAX, Q_MAX, Mux(value < Q_MIN, Q_MIN, value))


def product(a: Value | Signal, b: Value | Signal) -> Value:
    """a * b in Q7.8, rounded half up, not saturated."""
    return (a * b + (1 << (FRACTION - 1))) >> FRACTION
