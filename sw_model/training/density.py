"""Parameter Intelligence Density: what a model predicts, for what it computes with and for what it stores.

    q = 8 - b               bits that the model predicts of a byte; b: held-out bits per byte, mean of domains
    per active parameter    q / (parameters that take part in a byte's prediction, in millions)
    per stored bit          q / (bits of the stored model, in Mbit)

A byte that nothing is known of costs 8 bits. Stored are all parameters in bfloat16; at INT4 those of the
experts take 4 bits and, a block of 32, a scale of 20. A baseline that needs its training text stores that.
Both fall as a model grows, since the last bits are the dearest: they compare models of about one size.
"""

from dataclasses import dataclass

from sw_model.formats import BLOCK, INT4, SCALE_BITS

__all__ = ["Density", "of_model", "of_text"]

_BFLOAT16 = 16


@dataclass(frozen=True, kw_only=True)
class Density:
    """q in bits a byte; `active` of it for a million active parameters (None: it has no parameters);
    `stored` for a megabit."""

    predicted: float
    active: float | None
    stored: float


def of_model(shape: dict[str, int], bits_per_byte: float, *, int4: bool = False) -> Density:
    """Of a model whose `shape` is that of `model.shape`."""
    experts = shape["layers"] * shape["moe_layer"] if int4 else 0
    stored = (shape["parameters"] - experts) * _BFLOAT16 + experts * (INT4.bits + SCALE_BITS / BLOCK)
    q = 8 - bits_per_byte
    return Density(predicted=q, active=q / (shape["active"] / 1e6), stored=q / (stored / 1e6))


def of_text(text_bytes: int, bits_per_byte: float) -> Density:
    """Of a baseline made of its training text."""
    q = 8 - bits_per_byte
    return Density(predicted=q, active=None, stored=q / (8 * text_bytes / 1e6))
