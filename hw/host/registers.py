"""The register map: one description, from which come decoder, Verilog's JSON and driver's addresses."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from sw_model.compiler import Flag
from sw_model.config import NO_FEATURES, Feature, HardwareConfig
from sw_model.energy.governor import BUDGET_BITS, LAMBDA_BITS, MODES
from sw_model.energy.meter import WEIGHTS
from sw_model.gate import MAX_TAU
from sw_model.topology import SPLIT_BITS

__all__ = [
    "COUNTERS",
    "COUNTERS_AT",
    "GOVERNOR_WIDTHS",
    "ID_VALUE",
    "LAYER_WIDTHS",
    "OLDEST_VERSION",
    "REGISTERS",
    "VERSION_VALUE",
    "Access",
    "Field",
    "Register",
    "address",
    "config_id",
    "present",
]


class Access(Enum):
    """RW: written by the host; RO: read only; writes to it are answered with SLVERR."""

    RW = "rw"
    RO = "ro"


@dataclass(frozen=True)
class Field:
    """Bits ``lsb`` .. ``lsb + width - 1``; ``pulse`` fields read as 0 and act for one cycle. A design made
    without ``feature`` has no such bits: they read as 0."""

    name: str
    lsb: int
    width: int
    doc: str
    pulse: bool = False
    feature: Feature = NO_FEATURES


@dataclass(frozen=True)
class Register:
    """One 32-bit register; ``width`` bits of it exist. A design made without ``feature`` does not have it."""

    name: str
    offset: int
    access: Access
    width: int
    doc: str
    reset: int = 0
    fields: tuple[Field, ...] = ()
    feature: Feature = NO_FEATURES

    def there(self, features: Feature) -> int:
        """The bits that a design with ``features`` has of it."""
        absent = sum(((1 << f.width) - 1) << f.lsb for f in self.fields if f.feature not in features)
        return ((1 << self.width) - 1) & ~absent


ID_VALUE = 0x45585054  # "EXPT"
VERSION_VALUE = 0x00_02_06_00  # major, minor, patch
OLDEST_VERSION = 0x00_02_05_00  # that a host of today can drive: what came later is of several layers alone

_IDENTITY = (
    Register("ID", 0x000, Access.RO, 32, "The letters EXPT.", ID_VALUE),
    Register(
        "VERSION", 0x004, Access.RO, 32, "Version of the register map: major, minor, patch.", VERSION_VALUE
    ),
    Register(
        "CONTROL",
        0x008,
        Access.RW,
        5,
        "Start and housekeeping.",
        fields=(
            Field("enable", 0, 1, "Take tokens. Write the layer's registers and weights first."),
            Field("clear_counters", 1, 1, "Set every counter to 0.", pulse=True),
            Field("flush_pages", 2, 1, "Forget which experts are on chip; while no token is.", pulse=True),
            Field(
                "hold_counters",
                3,
                1,
                "Keep the counters' registers as of one cycle; counting goes on. Without it they follow "
                "within 100 cycles.",
            ),
            Field(
                "start_governor",
                4,
                1,
                "Governor: nothing owed, nothing saved, mode 0; after a new budget, "
                "while no token is in the core.",
                pulse=True,
                feature=Feature.GOVERNOR,
            ),
        ),
    ),
    Register(
        "STATUS",
        0x00C,
        Access.RO,
        4,
        "What the core is doing.",
        fields=(
            Field("busy", 0, 1, "A token is in the core."),
            Field(
                "error_token_length",
                1,
                1,
                "A token was shorter or longer than HIDDEN: it was dropped. Cleared with the counters.",
            ),
            Field(
                "error_weights",
                2,
                1,
                "A weight packet was refused, or its tlast came early or late. Cleared with the counters.",
            ),
            Field("held", 3, 1, "The counters' registers are held, with all that came before hold_counters."),
        ),
    ),
    Register(
        "CONFIG_HASH", 0x010, Access.RO, 32, "Names the configuration that the design was generated from."
    ),
    Register(
        "IMAGE",
        0x014,
        Access.RO,
        32,
        "Names the weights that the design woke up with; 0: none, or others were loaded since.",
    ),
    Register(
        "FEATURES",
        0x018,
        Access.RO,
        len(Feature),
        "Blocks that the design has, of those that one may lack. A missing block's registers answer "
        "as other addresses do, its bits read as 0.",
        fields=tuple(
            Field(str(f.name).lower(), f.bit_length() - 1, 1, doc)
            for f, doc in (
                (Feature.GATE, "The three-level gate."),
                (Feature.GOVERNOR, "The energy governor."),
                (Feature.CLAMP, "The clamped activation of gpt_oss."),
                (Feature.LAYERS, "Room for several layers at once."),
            )
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
    ("GROUPS", 8, "Groups of experts; 1: the choice is not limited to groups."),
    ("TOP_GROUPS", 8, "Groups that experts are chosen from."),
    ("ROUTER_SCALE", 16, "Factor on every routing weight, Q6.10."),
    ("FLAGS", 11, "Rules of the layer."),
    ("LIMIT", 32, "Limit of the clamped activation, binary32."),
    ("DOWN_BASE", 8, "Least row exponent of all down projections, plus 134."),
    ("ROUTER_SPLIT", SPLIT_BITS, "log2 of the tiles that share a row of the router and split its blocks."),
    ("DOMAIN_ROWS", 8, "Router rows that tell domains apart; 0: the request's tag alone does."),
    ("GATE_INFO", 16, "Gate: weight of the token's information, Q7.8 like all of the gate's numbers."),
    ("GATE_ENTROPY", 16, "Gate: weight of the router's entropy."),
    ("GATE_ENTROPY_SCALE", 17, "Gate: 1 / log2(E), Q0.16."),
    ("GATE_DENSITY", 16, "Gate: weight of the density in level 3."),
    ("GATE_LAMBDA", 16, "Gate: weight of the cost in level 3."),
    ("GATE_PHI", 16, "Gate: threshold of level 2."),
    ("GATE_PSI", 16, "Gate: threshold of level 3."),
    ("GATE_CAP", 8, "Gate: most experts a token."),
    *((f"GATE_TAU{j}", 16, f"Gate: density from which expert {j + 1} is allowed.") for j in range(MAX_TAU)),
    ("PAGE_SLOTS", 8, "Page slots for routed experts; 0: all experts are on chip."),
    ("PAGE_WORDS", 24, "Macro words of a page slot, in every tile."),
    ("PAGE_SCALES", 24, "Scale entries of a page slot, in every tile."),
    ("PAGE_WORD_BASE", 24, "First macro word of page slot 0."),
    ("PAGE_SCALE_BASE", 24, "First scale entry of page slot 0."),
    (
        "LAYER",
        8,
        "Which of the layers on chip tokens go through: row of the tables of contexts, biases, costs and "
        "domains.",
    ),
    ("LAYER_WORD_BASE", 24, "First macro word of that layer, its router's."),
    ("LAYER_SCALE_BASE", 24, "First scale entry of that layer, its router's."),
)

#: Registers of the layer that belong to a block, by the first word of their names.
_LAYER_FEATURES = {
    "GATE": Feature.GATE,
    "DOMAIN": Feature.GATE,
    "LIMIT": Feature.CLAMP,
    "LAYER": Feature.LAYERS,
}

_FLAG_DOCS = {
    Flag.RENORMALISE: "Divide the chosen experts' weights by their sum.",
    Flag.SHARED: "The layer has a base (shared) expert.",
    Flag.SHARED_GATED: "The base expert is weighted by sigmoid(g . x), g the last router row.",
    Flag.SIGMOID: "Sigmoid scores (and the selection bias) instead of softmax.",
    Flag.TOP2_GROUPS: "A group's score is the sum of its two largest, instead of its largest.",
    Flag.ROUTER_BIASED: "Router rows end in a bias block.",
    Flag.EXPERT_BIASED: "Expert rows end in a bias block.",
    Flag.CLAMPED: "The clamped activation of gpt_oss instead of SwiGLU.",
    Flag.GATE: "The three-level gate is on.",
    Flag.DENSITY_ROW: "The router has a row for the semantic density.",
    Flag.HIGH_NIBBLE: "Read the high nibble alone of experts' INT8 weights (not with body lut); looked at "
    "as a token's router pass is issued, so it may change while tokens are inside.",
}
_FLAG_FEATURES = {
    Flag.CLAMPED: Feature.CLAMP,
    Flag.GATE: Feature.GATE,
    Flag.DENSITY_ROW: Feature.GATE,
}
_FLAG_FIELDS = tuple(
    Field(flag.name.lower(), flag.bit_length() - 1, 1, doc, feature=_FLAG_FEATURES.get(flag, NO_FEATURES))
    for flag, doc in _FLAG_DOCS.items()
)

# name, doc
_COUNTED = (
    ("CYCLES", "Clock cycles since the counters were cleared."),
    ("BUSY_CYCLES", "Cycles with a token in the core."),
    (
        "ACTIVE_CYCLES",
        "Cycles in which the array works; a nibble pass of every tile takes 8 / act_bits of them.",
    ),
    ("TOKENS", "Tokens finished."),
    ("EXPERTS_USED", "Routed experts run, over all tokens."),
    ("EMPTY_TOKENS", "Tokens that the gate left without a routed expert."),
    ("REMOVED_DENSITY", "Candidates that level 1 of the gate removed."),
    ("REMOVED_DOMAIN", "Candidates that level 2 of the gate removed."),
    ("REMOVED_COST", "Candidates that level 3 of the gate removed."),
    ("REMOVED_CAP", "Candidates over the gate's cap."),
    ("WORD_READS", "Macro words read for matrix rows, over all tiles."),
    ("ROUTED_CYCLES", "Cycles in which the array works for a routed expert."),
    ("ROUTED_READS", "Macro words read for rows of routed experts, over all tiles."),
    ("NIBBLE_PASSES", "Words multiplied (32 nibble MACs each) for matrix rows, over all tiles."),
    ("PAGE_HITS", "Routed experts that were found in a page slot."),
    ("PAGE_MISSES", "Routed experts that were asked for."),
    ("PAGE_STALL_CYCLES", "Cycles in which the array could have begun a pass whose page was not there."),
    ("WORDS_LOADED", "Macro words written by the weight stream, over all tiles."),
    ("SCALES_LOADED", "Scale entries written by the weight stream, over all tiles."),
    (
        "BLOCK_SUMS",
        "Blocks of matrix rows finished, over all tiles; each reads a scale and updates the row's sum.",
    ),
    ("ROUTED_SUMS", "The same, for rows of routed experts."),
    ("ACT_READS", "Blocks of 32 bytes read from the activation buffers; tiles in step share one."),
    ("ACT_WRITES", "Blocks of 32 bytes written to them: of x three (INT8, high and low byte), of h one."),
    ("ROUTER_ROWS", "Rows of the router worked out."),
    ("ACTIVATIONS", "Elements of h worked out."),
    ("COMBINE_ROWS", "Rows of down projections added up to y."),
)

_WEIGHT_DOCS = {
    "READ": "a macro word read",
    "PASS": "a word multiplied (32 nibble MACs)",
    "SUM": "a block of a row finished",
    "TOKEN": "a token: its blocks written to the activation buffers, its router rows, and what the host adds",
    "EXPERT": "a routed expert besides its words, products and sums",
    "BASE": "the base expert, or the gate's constant answer, besides those",
}
# name, width, doc
_GOVERNOR = (
    (
        "GOVERNOR_BUDGET",
        BUDGET_BITS,
        "Energy of a token to be kept, in units of the host's choice, at least 4096; 0: the governor is off.",
    ),
    ("GOVERNOR_SHIFT", 4, "Bits of its number that what is owed loses to become lambda."),
    ("GOVERNOR_LAMBDA_MAX", LAMBDA_BITS + 1, "Most that is added to lambda, Q7.8."),
    ("GOVERNOR_LAST_MODE", (MODES - 1).bit_length(), "Highest level of sparse attention."),
    *((f"ENERGY_{name}", bits, f"Units of {_WEIGHT_DOCS[name]}.") for name, bits in WEIGHTS.items()),
)
_GOVERNED = (
    Register(
        "GOVERNOR_STATE",
        0x240,
        Access.RO,
        32,
        "What the governor has decided.",
        fields=(
            Field("lambda", 0, LAMBDA_BITS + 1, "Added to the gate's lambda, Q7.8."),
            Field("cap", 16, 8, "Most experts of the next token; 255: no bound."),
            Field("mode", 24, 2, "Level of sparse attention, as on the output."),
            Field("high", 28, 1, "Of INT8 weights the high nibble alone, from the token after next on."),
        ),
        feature=Feature.GOVERNOR,
    ),
    Register(
        "GOVERNOR_CREDIT",
        0x244,
        Access.RO,
        32,
        "Units saved; owed where negative. Signed.",
        feature=Feature.GOVERNOR,
    ),
    Register(
        "GOVERNOR_ENERGY", 0x248, Access.RO, 32, "Units that the last token took.", feature=Feature.GOVERNOR
    ),
)

COUNTERS = tuple(name for name, _ in _COUNTED)
COUNTERS_AT = 0x100

_ALL = (
    *_IDENTITY,
    *(
        Register(
            name,
            0x040 + 4 * i,
            Access.RW,
            width,
            doc,
            fields=_FLAG_FIELDS if name == "FLAGS" else (),
            feature=_LAYER_FEATURES.get(name.partition("_")[0], NO_FEATURES),
        )
        for i, (name, width, doc) in enumerate(_LAYER)
    ),
    *(
        Register(name, COUNTERS_AT + 4 * i, Access.RO, 32, f"{doc} Low word.")
        for i, (name, doc) in enumerate(_COUNTED)
    ),
    Register(
        "COUNTER_HIGH",
        COUNTERS_AT + 4 * len(_COUNTED),
        Access.RO,
        16,
        "Bits 47 to 32 of the counter that was read last.",
    ),
    *(
        Register(name, 0x200 + 4 * i, Access.RW, width, doc, feature=Feature.GOVERNOR)
        for i, (name, width, doc) in enumerate(_GOVERNOR)
    ),
    *_GOVERNED,
)

REGISTERS: dict[str, Register] = {r.name: r for r in _ALL}


def present(features: Feature) -> dict[str, Register]:
    """The registers that a design with ``features`` has."""
    return {name: r for name, r in REGISTERS.items() if r.feature in features}


def address(name: str) -> int:
    """Byte offset of a register by name."""
    return REGISTERS[name].offset


def config_id(config: HardwareConfig) -> int:
    """What CONFIG_HASH reads in a design made from ``config``: the first 32 bits of its hash."""
    return int(config.hash[:8], 16)


#: The registers that describe the layer: name -> width in bits.
LAYER_WIDTHS: dict[str, int] = {name: width for name, width, _ in _LAYER}

#: The registers of the governor and its meter: name -> width in bits.
GOVERNOR_WIDTHS: dict[str, int] = {name: width for name, width, _ in _GOVERNOR}
