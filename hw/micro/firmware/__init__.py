"""The program of the scalar processor: all that is not the array, in assembly (the ``.s`` files beside this
one)."""

from __future__ import annotations

from importlib import resources

from hw.host.frames import Error, Kind
from hw.host.registers import (
    COUNTERS,
    COUNTERS_AT,
    ID_VALUE,
    REGISTERS,
    VERSION_VALUE,
    Access,
    config_id,
    present,
)
from hw.micro.assembler import Program, assemble
from hw.micro.layout import Layout
from sw_model import packets
from sw_model.compiler import Flag
from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError
from sw_model.formats import MAG_BITS, ROW_EXP_BIAS, TOP_MIN
from sw_model.golden import FIXED_MAX
from sw_model.pages import PAGE_REGISTERS
from sw_model.tables import EXP2, SIGMOID, LinearTable

__all__ = ["TABLE_BITS", "firmware"]

_TEXTS = ("link", "weights", "quantise", "route", "experts", "numbers")

#: The table of constants: knots of the functions, then where the registers are, one entry each offset.
TABLE_DEPTH, TABLE_BITS = 512, 32
_SIGMOID_AT, _EXP2_AT, _MAP_AT = 0, 257, 384
_WRITABLE, _PRESENT, _WIDTH_AT = 1 << 30, 1 << 31, 16

#: Registers that are kept under another name, as they count the same here; and those that are always 0.
_KEPT = {"CYCLES": "CYCLES_COUNTED", "NIBBLE_PASSES": "WORD_READS", "ACT_READS": "BLOCK_SUMS"}
_NOTHING = (
    "EMPTY_TOKENS", "REMOVED_DENSITY", "REMOVED_DOMAIN", "REMOVED_COST", "REMOVED_CAP", "PAGE_HITS",
    "PAGE_MISSES", "PAGE_STALL_CYCLES", *PAGE_REGISTERS,
)  # fmt: skip


def _knots(table: LinearTable) -> tuple[int, ...]:
    """Its segments' ends: their slopes are the differences."""
    return (*table.base, table.base[-1] + table.slope[-1])


def _names(config: HardwareConfig) -> dict[str, int]:
    """What the texts call by name."""
    layout = Layout(config)
    control = {f.name: 1 << f.lsb for f in REGISTERS["CONTROL"].fields}
    status = {f.name: 1 << f.lsb for f in REGISTERS["STATUS"].fields}
    assert status["held"] == control["hold_counters"] and status["busy"] == 1
    return {
        **{kind.name: kind.value for kind in Kind},
        **{error.name: error.value for error in Error},
        **{kind.name: kind.value for kind in packets.Kind if kind is not packets.Kind.WORDS},
        "ID_VALUE": ID_VALUE,
        "VERSION_VALUE": VERSION_VALUE,
        "HASH_VALUE": config_id(config),
        "CAPACITY": layout.capacity,
        "REGISTER_MAP": _MAP_AT,
        "FIRST_COUNTER": COUNTERS_AT >> 2,
        "COUNTERS": len(COUNTERS),
        "ENABLE": control["enable"],
        "CLEAR": control["clear_counters"],
        "HOLD": control["hold_counters"],
        "ERRORS": status["error_token_length"] | status["error_weights"],
        "LENGTH_ERROR": status["error_token_length"],
        "WEIGHTS_ERROR": status["error_weights"],
        "CONTROL_AT": REGISTERS["CONTROL"].offset >> 2,
        "FLAGS_AT": REGISTERS["FLAGS"].offset >> 2,
        "FLAGS_THERE": REGISTERS["FLAGS"].there(config.features),
        "WORDS": config.words,
        "SCALE_ENTRIES": config.scales,
        "FIRST_SCALE": layout.first_scale,
        "MAX_EXPERTS": config.max_experts,
        "SLOTS": config.max_slots,
        "ELEMENTS": layout.elements,
        "MAX_BLOCKS": layout.x_blocks,
        "RESULT_WORDS": config.max_hidden // 2,
        "HIGH": layout.high,
        "LOW": layout.low,
        "H": layout.h,
        "ACTIVATION_SPREAD": config.activation_spread,
        "ROUTER_SPREAD": config.router_spread,
        "ROW_EXP_BIAS": ROW_EXP_BIAS,
        "TOP_BIAS": -TOP_MIN,
        "MAG": (1 << MAG_BITS) - 1,
        "FIXED_MAX": FIXED_MAX,
        "SIGMOID": _SIGMOID_AT,
        "EXP2": _EXP2_AT,
        "SIGMOID_SCORES": Flag.SIGMOID,
        "SHARED": Flag.SHARED,
        "SHARED_GATED": Flag.SHARED_GATED,
        "RENORMALISE": Flag.RENORMALISE,
    }


def firmware(config: HardwareConfig) -> tuple[Program, tuple[int, ...]]:
    """The program for ``config``, and the contents of the table of constants, of TABLE_BITS each.

    Raises
    ------
    ExpertileError : the maxima of ``config`` are too large for the processor's memory
    """
    folder = resources.files("hw.micro.firmware")
    texts = [(folder / f"{name}.s").read_text() for name in _TEXTS]
    try:
        program = assemble(texts, _names(config))
    except ValueError as e:
        raise ExpertileError(
            f"config {config.name!r}: the processor of body 'micro' has no room ({e}); lower max_hidden, "
            "max_intermediate, max_experts or max_top_k"
        ) from None
    table = [0] * TABLE_DEPTH
    for at, knots in ((_SIGMOID_AT, _knots(SIGMOID)), (_EXP2_AT, _knots(EXP2))):
        table[at : at + len(knots)] = knots
    for name, register in present(config.features).items():
        missing = name in _NOTHING
        place = program.places["NOTHING" if missing else _KEPT.get(name, name)]
        writable = _WRITABLE if register.access is Access.RW else 0
        width = 0 if missing else register.width
        table[_MAP_AT + (register.offset >> 2)] = _PRESENT | writable | width << _WIDTH_AT | place
    return program, tuple(table)
