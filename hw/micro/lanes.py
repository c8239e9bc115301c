"""Two small signed products in one multiplier."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["MODULE", "TwoProducts"]

MODULE = "expertile_two_products"
BITS = 8


class TwoProducts(wiring.Component):
    """low = a_low * b_low, high = a_high * b_high, signed, 8 x 8 to 16 bits each; operands and products
    registered.

    In generated Verilog all are instances of the module :data:`MODULE`, for which a flow may put a device's
    own multiplier (an SB_MAC16 of the iCE40 UltraPlus does both).

    Latency: 2 cycles. Throughput: one a cycle.
    """

    def __init__(self) -> None:
        operands = {f"{x}_{part}": In(BITS) for x in "ab" for part in ("low", "high")}
        super().__init__({**operands, **{part: Out(2 * BITS) for part in ("low", "high")}})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for part in ("low", "high"):
            a, b = (Signal(BITS, name=f"{x}_{part}_held", reset_less=True) for x in "ab")
            product = Signal(2 * BITS, name=f"{part}_held", reset_less=True)
            m.d.sync += [
                a.eq(getattr(self, f"a_{part}")),
                b.eq(getattr(self, f"b_{part}")),
                product.eq(a.as_signed() * b.as_signed()),
            ]
            m.d.comb += getattr(self, part).eq(product)
        return m
