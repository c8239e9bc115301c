"""Tables with a row for each of the layers on chip."""

from amaranth.hdl import Cat, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from sw_model.config import HardwareConfig

__all__ = ["hand_down", "in_row", "layer_member"]


def layer_member(config: HardwareConfig) -> dict:
    """Member ``layer``: the row of the table; none where one layer alone is on chip."""
    return {"layer": In(range(config.max_layers))} if config.max_layers > 1 else {}


def in_row(of: wiring.Component, address: Value) -> Value:
    """``address``, which is as wide as a row is long (:func:`sw_model.packets.row_bits`), in the row that the
    component is told of."""
    layer = getattr(of, "layer", None)
    return address if layer is None else Cat(address, layer)


def hand_down(of: wiring.Component, *to: wiring.Component) -> list:
    """The component's ``layer``, if it has one, for those inside it."""
    layer = getattr(of, "layer", None)
    return [] if layer is None else [component.layer.eq(layer) for component in to]
