"""The hardware's configuration: what a generated design can hold, and the widths that follow from it."""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import MISSING, asdict, dataclass, fields
from enum import IntFlag
from importlib import resources
from pathlib import Path

from sw_model.errors import ExpertileError
from sw_model.formats import (
    ACT8_BITS,
    ACT8_MAX,
    ACT16_LOW_BITS,
    ACT16_MAX,
    BLOCK,
    EXPERT_FORMATS,
    FP8,
    INT4,
    INT8,
    MANT_BITS,
    NIBBLE,
    ROUTER_FORMAT,
    SHIFT_BITS,
    WeightFormat,
)
from sw_model.gate import MAX_TAU
from sw_model.tables import WEIGHT_BITS

COMBINE_LIMB = 20  # bits of a limb in the golden model's combine

#: Bodies of the macro, and the formats of experts' weights that each multiplies.
BODIES = {
    "dsp": tuple(EXPERT_FORMATS.values()),
    "lut": (INT8, INT4),
    "asic": tuple(EXPERT_FORMATS.values()),
    "micro": (INT8, INT4),
}


class Feature(IntFlag):
    """Blocks that a design may be made without: keys of a configuration, and bits of register FEATURES.
    LAYERS: room for several layers at once."""

    GATE = 1
    GOVERNOR = 2
    CLAMP = 4
    LAYERS = 8


NO_FEATURES, ALL_FEATURES = Feature(0), ~Feature(0)

# Widths of registers and counters bound some maxima; the rest are bounded by addresses of 24 bits.
_MOST = {
    "tiles": 1 << 12,
    "array_clock": 8,
    "columns": 1 << 12,
    "drain": 8,
    "act_bits": ACT8_BITS,
    "max_hidden": (1 << 16) - BLOCK,
    "max_intermediate": (1 << 15) - BLOCK,
    "max_experts": 1 << 12,
    "max_top_k": MAX_TAU,
    "max_groups": 128,
    "max_domains": 128,
    "max_layers": 256,
    "page_slots": 64,
}
_LEAST = {"page_slots": 0}
#: What a design of body "micro" has one of, or none.
_MICRO = {
    **{"tiles": 1, "max_groups": 1, "max_layers": 1, "page_slots": 0},
    **{"gate": False, "governor": False, "clamp": False},
}
#: Its widths: shifts of a block sum, and two limbs of 24 bits that weighted rows of down projections have.
_MICRO_SHIFT, _MICRO_DOWN_BITS = 31, 48


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """Maxima of a generated accelerator; any layer within them runs on it.

    Parameters
    ----------
    name : preset name, used for folders and reports
    tiles : tiles in the array (macro + scale + accumulator), a power of two but with body "lut"
    columns : activation blocks that the array takes in a step, a power of two that divides ``tiles``: so many
        neighbouring tiles can share a matrix row and split its blocks between them (see
        :mod:`sw_model.topology`); with body "lut" 1 or 2, and shared by all rows in the same way
    drain : rows that leave the array a cycle, and hence the width of what follows it: 1, 2, 4 or 8, at most
        ``tiles``
    words : macro depth, in words of 32 lanes x 4 bits, per tile
    scales : scale store depth, in entries (one a block), per tile; a multiple of 4
    max_hidden : largest hidden size (elements, a multiple of 32)
    max_intermediate : largest width of a routed or base expert (elements, a multiple of 32)
    max_experts : most routed experts
    max_top_k : most routed experts a token
    max_groups : most groups of experts (group-limited routing)
    max_domains : most domains that the gate tells apart
    max_layers : most layers that are on chip at once (:func:`sw_model.joined.join`); above 1 registers say
        which of them the tokens go through
    page_slots : most page slots for experts that are loaded on demand; 0: the design cannot page
    weight_spread, activation_spread : octaves below the largest block scale of a row / of a token
    fp8_spread : the same for rows of FP8, whose elements have a range of their own
    router_spread : the same for both operands of the router
    down_spread : octaves between the row exponents of a layer's down projections
    body : what a macro multiplies with: "dsp", multipliers; "asic", adder trees that take activations bit by
        bit, for silicon; both for every format; "lut", lookups of shared tables of activation sums, for
        integers; "micro", 16 multipliers and a processor for all that is not the array, for the smallest
        devices, for integers without biases. All give the same sums
    act_bits : bits of an activation that a macro takes a cycle: 8, or with body "asic" 1, 2, 4 or 8
    array_clock : clock of the array over that of the core; above 1 only with body "lut", whose array then
        has a clock input of its own
    gate : has the three-level gate; a layer with one needs it
    governor : has the energy governor and its meter, which move the gate, so not without it
    clamp : has the clamped activation of gpt_oss beside SwiGLU
    """

    name: str
    tiles: int
    words: int
    scales: int
    max_hidden: int
    max_intermediate: int
    max_experts: int
    max_top_k: int
    max_groups: int = 8
    max_domains: int = 8
    max_layers: int = 1
    page_slots: int = 0
    weight_spread: int = 8
    fp8_spread: int = 4
    activation_spread: int = 10
    router_spread: int = 4
    down_spread: int = 12
    body: str = "dsp"
    act_bits: int = ACT8_BITS
    array_clock: int = 1
    columns: int = 1
    drain: int = 1
    gate: bool = True
    governor: bool = True
    clamp: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "name":
                if not isinstance(value, str) or not value:
                    raise ValueError(f"name must be a text, not {value!r}")
                continue
            if field.name == "body":
                if value not in BODIES:
                    raise ValueError(f"body must be one of {', '.join(BODIES)}, not {value!r}")
                continue
            if field.type == "bool":
                if type(value) is not bool:
                    raise ValueError(f"{field.name} must be true or false, not {value!r}")
                continue
            least, most = _LEAST.get(field.name, 1), _MOST.get(field.name, 1 << 24)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{field.name} must be an integer from {least} to {most}, not {value!r}")
        if self.body != "lut" and self.tiles & (self.tiles - 1):
            raise ValueError(f"tiles must be a power of two, not {self.tiles}")
        if self.act_bits not in (1, 2, 4, ACT8_BITS):
            raise ValueError(f"act_bits must be 1, 2, 4 or 8, not {self.act_bits}")
        if self.body != "asic" and self.act_bits != ACT8_BITS:
            raise ValueError(f'act_bits must be 8 with body "{self.body}", not {self.act_bits}')
        if self.body != "lut" and self.array_clock > 1:
            raise ValueError(f'array_clock must be 1 with body "{self.body}", not {self.array_clock}')
        if self.body == "lut" and self.columns > 2:
            raise ValueError(f'columns must be 1 or 2 with body "lut", not {self.columns}')
        if self.body == "lut" and self.tiles % (self.columns * self.drain):
            raise ValueError(
                f"tiles must be a multiple of columns x drain ({self.columns * self.drain}), not {self.tiles}"
            )
        if self.tiles % self.columns or self.columns & (self.columns - 1):
            raise ValueError(
                f"columns must be a power of two that divides the {self.tiles} tiles, not {self.columns}"
            )
        if self.drain & (self.drain - 1) or self.drain > self.tiles:
            raise ValueError(
                f"drain must be 1, 2, 4 or 8, and at most the {self.tiles} tiles, not {self.drain}"
            )
        if self.body == "micro":
            for name, value in _MICRO.items():
                if getattr(self, name) != value:
                    raise ValueError(
                        f'{name} must be {str(value).lower()} with body "micro", not {getattr(self, name)!r}'
                    )
        if self.governor and not self.gate:
            raise ValueError("governor must be false without a gate")
        for name in ("max_hidden", "max_intermediate"):
            if getattr(self, name) % BLOCK:
                raise ValueError(f"{name} must be a multiple of {BLOCK}, not {getattr(self, name)}")
        if self.words < 2:
            raise ValueError("words must be at least 2")
        if self.scales % 4:
            raise ValueError(f"scales must be a multiple of 4, not {self.scales}")
        if self.max_top_k > self.max_experts:
            raise ValueError("max_top_k must not exceed max_experts")
        for name in ("weight_spread", "fp8_spread", "activation_spread", "router_spread", "down_spread"):
            if getattr(self, name) >= 1 << SHIFT_BITS:
                raise ValueError(f"{name} must be below {1 << SHIFT_BITS}")
        if self.body == "micro" and (
            self.shift_max > _MICRO_SHIFT or self.down_bound.bit_length() > _MICRO_DOWN_BITS
        ):
            raise ValueError(
                'sums exceed the widths of body "micro"; lower a spread, max_hidden or max_intermediate'
            )
        slots = (self.max_slots - 1).bit_length()
        if self.acc_bits > 63 or COMBINE_LIMB + WEIGHT_BITS + self.down_spread + slots > 62:
            raise ValueError(
                "accumulators exceed the 63 bits that the golden model computes in; lower a spread, "
                "max_hidden or max_intermediate"
            )

    @property
    def step_cycles(self) -> int:
        """Cycles of the array's clock that a step takes: a nibble pass of every tile."""
        return 2 if self.body == "micro" else ACT8_BITS // self.act_bits  # of 32 lanes 16 at a time

    @property
    def whole_weights(self) -> bool:
        """Macros hold two's complement, and read all nibbles of a weight or none."""
        return self.body in ("lut", "micro")

    @property
    def split(self) -> int | None:
        """The split of all passes, see :mod:`sw_model.topology`; None: the array takes any."""
        return self.columns.bit_length() - 1 if self.body == "lut" else None

    @property
    def features(self) -> Feature:
        """The blocks that it has, of those that a design may be made without."""
        there = {
            Feature.GATE: self.gate,
            Feature.GOVERNOR: self.governor,
            Feature.CLAMP: self.clamp,
            Feature.LAYERS: self.max_layers > 1,
        }
        return Feature(sum(f for f, has in there.items() if has))

    def require(self, feature: Feature, who: str) -> None:
        """Raise :class:`ExpertileError` unless it has ``feature``, which ``who`` needs."""
        if feature not in self.features:
            key = str(feature.name).lower()
            raise ExpertileError(
                f"config {self.name!r}: made without what {who} needs ({key} = false); use a configuration "
                f"with {key} = true"
            )

    @property
    def formats(self) -> tuple[WeightFormat, ...]:
        """Formats that an expert's weights may have."""
        return BODIES[self.body]

    @property
    def macs_per_cycle(self) -> int:
        """Nibble products that the array makes in a cycle of its clock."""
        return BLOCK * self.tiles // self.step_cycles

    @property
    def max_blocks(self) -> int:
        """Blocks of the longest reduction."""
        return max(self.max_hidden, self.max_intermediate) // BLOCK

    @property
    def max_act_blocks(self) -> int:
        """Blocks of activations that passes may read: a token's, or its h of all experts."""
        return max(self.max_hidden, self.max_slots * self.max_intermediate) // BLOCK

    @property
    def max_rows(self) -> int:
        """Rows of the largest matrix; the router's are experts, two more, and domains."""
        return max(self.max_hidden, 2 * self.max_intermediate, self.max_experts + 2 + self.max_domains)

    @property
    def max_slots(self) -> int:
        """Expert results that one token combines: the routed ones and the base expert."""
        return self.max_top_k + 1

    def spread(self, fmt: WeightFormat) -> int:
        """Octaves that the block scales of a row may differ by."""
        return (
            self.router_spread
            if fmt is ROUTER_FORMAT
            else self.fp8_spread
            if fmt is FP8
            else self.weight_spread
        )

    @property
    def down_bound(self) -> int:
        """Largest magnitude of a row of an expert's projection, any operands, any order of summation."""
        most = max(f.max_magnitude << self.spread(f) for f in self.formats)
        return self._row_bound(most, ACT8_MAX << self.activation_spread)

    @property
    def acc_bound(self) -> int:
        """Largest magnitude that a row accumulator can reach."""
        # High and low bytes come one after the other; the high ones alone reach no further than their sum.
        spread = self.router_spread
        router = self._row_bound(ROUTER_FORMAT.max_magnitude << spread, ACT16_MAX << spread)
        return max(self.down_bound, router)

    def _row_bound(self, weight: int, act: int) -> int:
        return BLOCK * self.max_blocks * ((1 << MANT_BITS) - 1) * weight * act

    @property
    def acc_bits(self) -> int:
        """Width of the signed row accumulator."""
        return self.acc_bound.bit_length() + 1

    @property
    def shift_max(self) -> int:
        """Largest shift of a scaled block sum, of high nibbles alone too, onto the row's LSB."""
        expert = self.weight_spread + self.activation_spread + NIBBLE - 1
        return max(expert, 2 * self.router_spread + ACT16_LOW_BITS)

    @property
    def nibble_shift_max(self) -> int:
        """The same for the sum of one nibble of each weight."""
        expert = (
            self.weight_spread + self.activation_spread + NIBBLE * (max(f.words for f in self.formats) - 1)
        )
        router = 2 * self.router_spread + ACT16_LOW_BITS + NIBBLE * (ROUTER_FORMAT.words - 1)
        return max(expert, router)

    @property
    def scale_shift_bits(self) -> int:
        """Width of the shifts that block scales can have."""
        return max(self.spread(fmt) for fmt in (*self.formats, ROUTER_FORMAT)).bit_length()

    @property
    def combine_bits(self) -> int:
        """Width of the signed combine accumulator (row sum x Q1.16 weight, aligned, over all slots)."""
        bound = self.down_bound * ((1 << WEIGHT_BITS) - 1) * (1 << self.down_spread) * self.max_slots
        return bound.bit_length() + 1

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that name this configuration; a key at its default does not count, so
        that designs keep their names when there are new keys."""
        defaults = {f.name: f.default for f in fields(self)}
        keys = {name: value for name, value in asdict(self).items() if value != defaults[name]}
        return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:12]


def presets() -> list[str]:
    """Names of the configurations that come with Expertile."""
    folder = resources.files("sw_model") / "presets"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def load_config(name_or_path: str) -> HardwareConfig:
    """A preset by name, or a TOML file of the same keys.

    Raises
    ------
    ExpertileError : unknown preset, missing file, bad TOML, unknown key or value out of range
    """
    if name_or_path in presets():
        path = Path(str(resources.files("sw_model") / "presets" / f"{name_or_path}.toml"))
    else:
        path = Path(name_or_path)
        if path.suffix != ".toml":
            raise ExpertileError(
                f"config {name_or_path!r}: no such preset; choose one of {', '.join(presets())}, "
                "or give a .toml file"
            )
    try:
        data = tomllib.loads(path.read_text())
    except OSError as e:
        raise ExpertileError(f"config {path}: cannot be read ({e.strerror}); check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ExpertileError(f"config {path}: not valid TOML ({e})") from None
    known = {f.name for f in fields(HardwareConfig)}
    unknown, missing = (
        sorted(set(data) - known),
        sorted(
            f.name
            for f in fields(HardwareConfig)
            if f.name not in data and f.name != "name" and f.default is MISSING
        ),
    )
    if unknown:
        raise ExpertileError(
            f"config {path}: unknown key {unknown[0]!r}; known keys: {', '.join(sorted(known))}"
        )
    if missing:
        raise ExpertileError(f"config {path}: missing key {missing[0]!r}")
    try:
        return HardwareConfig(**{"name": path.stem, **data})
    except (ValueError, TypeError) as e:
        raise ExpertileError(f"config {path}: {e}") from None
