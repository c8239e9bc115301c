"""The register map: one description, from which come decoder, Verilog's JSON and driver's addresses."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = [
    "COUNTERS",
    "ID_VALUE",
    "LAYER_WIDTHS",
    "REGISTERS",
    "VERSION_VALUE",
    "Access",
    "Field",
    "Register",
    "address",
]


class Access(Enum):
    """RW: written by the host; RO: read only; writes to it are answered with SLVERR."""

    RW = "rw"
    RO = "ro"


@dataclass(frozen=True)
class Field:
    """Bits ``lsb`` .. ``lsb + width - 1``; ``pulse`` fields read as 0 and act for one cycle."""

    name: str
    lsb: int
    width: int
    doc: str
    pulse: bool = False


@dataclass(frozen=True)
class Register:
    """One 32-bit register; ``width`` bits of it exist."""

    name: str
    offset: int
    access: Access
    width: int
    doc: str
    reset: int = 0
    fields: tuple[Field, ...] = ()


ID_VALUE = 0x45585054  # "EXPT"
VERSION_VALUE = 0x00_01_00_00  # major, minor, patch

_IDENTITY = (
    Register("ID", 0x000, Access.RO, 32, "The letters EXPT.", ID_VALUE),
    Register(
        "VERSION", 0x004, Access.RO, 32, "Version of the register map: major, minor, patch.", VERSION_VALUE
    ),
    Register(
        "CONTROL",
        0x008,
        Access.RW,
        2,
        "Start and housekeeping.",
        fields=(
            Field("enable", 0, 1, "Take tokens. Write the layer's registers and weights first."),
            Field("clear_counters", 1, 1, "Set every counter to 0.", pulse=True),
        ),
    ),
    Register(
        "STATUS",
        0x00C,
        Access.RO,
        2,
        "What the core is doing.",
        fields=(
            Field("busy", 0, 1, "A token is in the core."),
            Field(
                "error_token_length",
                1,
                1,
                "A token's tlast came early or late; it was padded or cut. Cleared with the counters.",
            ),
        ),
    ),
)

# name, width, doc
_LAYER = (
    ("HIDDEN", 16, "Hidden size H, in elements."),
    ("INTERMEDIATE", 16, "Width I of a routed expert, in elements."),
    ("SHARED_INTERMEDIATE", 16, "Width of the base expert, in elements."),
    ("EXPERTS", 16, "Number of routed experts E."),
    ("TOP_K", 8, "Routed experts a token."),
    ("FLAGS", 3, "Rules of the layer."),
    ("PLANES", 3, "Nibble planes of an expert weight: 1 for INT4, 2 for INT8."),
    ("DOWN_BASE", 8, "Least row exponent of all down projections, plus 134."),
    ("SHARED_WORD", 32, "Word address of the base expert's gate_up."),
    ("SHARED_SCALE", 32, "Scale address of the base expert's gate_up."),
    ("SHARED_DOWN_WORD", 32, "Word address of the base expert's down."),
    ("SHARED_DOWN_SCALE", 32, "Scale address of the base expert's down."),
    ("EXPERT_WORD", 32, "Word address of expert 0's gate_up."),
    ("EXPERT_SCALE", 32, "Scale address of expert 0's gate_up."),
    ("EXPERT_DOWN_WORD", 32, "Word address of expert 0's down."),
    ("EXPERT_DOWN_SCALE", 32, "Scale address of expert 0's down."),
    ("EXPERT_WORD_STRIDE", 32, "Words from one expert to the next."),
    ("EXPERT_SCALE_STRIDE", 32, "Scale entries from one expert to the next."),
)

_FLAG_FIELDS = (
    Field("renormalise", 0, 1, "Divide the chosen experts' weights by their sum."),
    Field("shared", 1, 1, "The layer has a base (shared) expert."),
    Field("shared_gated", 2, 1, "The base expert is weighted by sigmoid(g . x), g the last router row."),
)

# name, doc
_COUNTED = (
    ("CYCLES", "Clock cycles since the counters were cleared."),
    ("BUSY_CYCLES", "Cycles with a token in the core."),
    ("ACTIVE_CYCLES", "Cycles in which the array reads macro words (one nibble pass of every tile)."),
    ("TOKENS", "Tokens finished."),
    ("EXPERTS_USED", "Routed experts run, over all tokens."),
    ("WORD_READS", "Macro words read for matrix rows (32 nibble MACs each), over all tiles."),
)

COUNTERS = tuple(name for name, _ in _COUNTED)

_ALL = (
    *_IDENTITY,
    *(
        Register(name, 0x040 + 4 * i, Access.RW, width, doc, fields=_FLAG_FIELDS if name == "FLAGS" else ())
        for i, (name, width, doc) in enumerate(_LAYER)
    ),
    *(Register(name, 0x100 + 4 * i, Access.RO, 32, doc) for i, (name, doc) in enumerate(_COUNTED)),
)

REGISTERS: dict[str, Register] = {r.name: r for r in _ALL}


def address(name: str) -> int:
    """Byte offset of a register by name."""
    return REGISTERS[name].offset


#: The registers that describe the layer: name -> width in bits.
LAYER_WIDTHS: dict[str, int] = {name: width for name, width, _ in _LAYER}
