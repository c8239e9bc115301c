"""Compiler: a quantised layer to the weight image: macro words, scale entries, contexts, register values.

Placement: groups of ``2**split`` neighbouring tiles share the rows of a matrix, the split chosen for each
matrix (:mod:`sw_model.topology`). With n groups, row r lives in group ``r mod n`` as row slot ``r // n``, and
its block b in the group's tile ``b mod 2**split``. All tiles share one address map. Within a slot come the
blocks, within a block the stored nibbles, most significant first. Rows and blocks that do not fill the groups
are filled up with zeros. The router stands at address 0, its split in a register; a context says where an
expert's matrices are, in which format and split (the base expert has the context ``max_experts``).

    word      32 lanes x 4 bits, lane i in bits 4 i + 3 .. 4 i; a first nibble is {sign, top of the code}.
              Body "micro": two's complement. Body "lut": that too, but in nibble 8 k + g bits k of the lanes
              4 g .. 4 g + 3 as {the last one's counts minus, where the others differ from it}; 0 counts
              minus, but in the sign 1 does
    scale     {row exponent + 134 [8], shift [5], mantissa without its leading one [7]}
    context   four limbs: {split [31:28], format [27:24], word address [23:0]} and scale address of gate_up,
              then of down
    bias      signed Q7.24, one an expert: the router's selection bias
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntFlag

import numpy as np

from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError
from sw_model.formats import (
    BLOCK,
    MANT_BITS,
    NIBBLE,
    ROW_EXP_BIAS,
    SHIFT_BITS,
    QuantisedMatrix,
    WeightFormat,
)
from sw_model.gate import MAX_TAU, Q_MAX, entropy_scale
from sw_model.golden import fixed_bias, fixed_scale
from sw_model.image import LAYER_REGISTERS, Image
from sw_model.moe import Activation
from sw_model.packets import table
from sw_model.pages import PAGE_REGISTERS, Pages, fit
from sw_model.quantised import QuantisedExpert, QuantisedLayer, check_fits
from sw_model.topology import choose_split, entries

WORD_LIMBS = BLOCK * NIBBLE // 32  # 32-bit limbs of a macro word, and of a beat on the weight stream
FORMAT_LSB = 24  # of a context limb; word addresses stay below
SPLIT_LSB = 28


class Flag(IntFlag):
    """Bits of the FLAGS register: the rules of a layer."""

    RENORMALISE = 1
    SHARED = 2
    SHARED_GATED = 4
    SIGMOID = 8
    TOP2_GROUPS = 16
    ROUTER_BIASED = 32
    EXPERT_BIASED = 64
    CLAMPED = 128
    GATE = 256
    DENSITY_ROW = 512
    HIGH_NIBBLE = 1024


def _shares(a: np.ndarray, tiles: int, split: int) -> np.ndarray:
    """[rows, blocks, ...] as [tiles, slots * a tile's blocks, ...], filled up with zeros."""
    groups, width = tiles >> split, 1 << split
    a = np.pad(a, [(0, -a.shape[0] % groups), (0, -a.shape[1] % width)] + [(0, 0)] * (a.ndim - 2))
    a = a.reshape(a.shape[0] // groups, groups, a.shape[1] // width, width, *a.shape[2:])
    a = a.transpose(1, 3, 0, 2, *range(4, a.ndim))
    return a.reshape(tiles, a.shape[2] * a.shape[3], *a.shape[4:])


def pack_words(codes: np.ndarray, fmt: WeightFormat, body: str = "dsp") -> np.ndarray:
    """Signed magnitudes [..., BLOCK] as macro words uint32 [..., fmt.words, 4], top nibble first."""
    if body in ("lut", "micro"):
        stored = codes.astype(np.uint32)  # two's complement
    else:
        stored = fmt.encode(np.abs(codes)).astype(np.uint32)
        stored |= (codes < 0).astype(np.uint32) << (NIBBLE * fmt.words - 1)
    nibbles = np.stack([(stored >> (NIBBLE * p)) & 15 for p in reversed(range(fmt.words))], axis=-2)
    if body == "lut":
        nibbles = _planes(nibbles)
        nibbles[..., 0, (NIBBLE - 1) * (BLOCK // 4) :] ^= 8  # the first nibble's highest bit counts minus
    per_limb = 32 // NIBBLE
    nibbles = nibbles.reshape(*nibbles.shape[:-1], WORD_LIMBS, per_limb)
    limbs = np.bitwise_or.reduce(nibbles << (NIBBLE * np.arange(per_limb, dtype=np.uint32)), axis=-1)
    return limbs.astype(np.uint32)


def _planes(nibbles: np.ndarray) -> np.ndarray:
    """Nibbles [..., BLOCK] by bit planes: nibble 8 k + g holds bit k of lanes 4 g .. 4 g + 3 (see above)."""
    lanes = nibbles.reshape(*nibbles.shape[:-1], BLOCK // 4, 4)
    bits = np.stack([lanes >> k & 1 for k in range(NIBBLE)], axis=-3)
    last = bits[..., 3]
    differ = sum((bits[..., i] ^ last) << i for i in range(3))
    return (differ | (1 - last) << 3).reshape(nibbles.shape)


def pack_scales(m: QuantisedMatrix) -> np.ndarray:
    """Scale entries uint32 [rows, blocks]."""
    row = (m.row_exp + ROW_EXP_BIAS)[:, None] << (SHIFT_BITS + MANT_BITS - 1)
    return (row | m.shift << (MANT_BITS - 1) | (m.mant - (1 << (MANT_BITS - 1)))).astype(np.uint32)


class _Placer:
    """Appends matrices to the tiles' memories and keeps the addresses."""

    def __init__(self, config: HardwareConfig, split: int | None) -> None:
        self.config = config
        self.split = config.split if split is None else split  # of all matrices; None: each its own
        self.words: list[np.ndarray] = []
        self.scales: list[np.ndarray] = []
        self.address = (0, 0)

    def place(self, m: QuantisedMatrix) -> tuple[int, int]:
        """Append one matrix; returns the two limbs of its half of a context."""
        word, scale = self.address
        tiles, split = self.config.tiles, self.split
        if split is None:
            split = choose_split(m.rows, m.blocks, tiles, self.config.columns)
        codes = _shares(m.codes, tiles, split)
        words = pack_words(codes, m.fmt, self.config.body).reshape(tiles, -1, WORD_LIMBS)
        scales = _shares(pack_scales(m), tiles, split)
        self.words.append(words)
        self.scales.append(scales)
        self.address = (word + words.shape[1], scale + scales.shape[1])
        return split << SPLIT_LSB | m.fmt.code << FORMAT_LSB | word, scale

    def context(self, e: QuantisedExpert) -> tuple[int, ...]:
        return *self.place(e.gate_up), *self.place(e.down)


def _always(layer: QuantisedLayer) -> list[QuantisedMatrix]:
    """The matrices that every token may need: router, base expert, fallback."""
    shared = [] if layer.shared is None else [layer.shared.gate_up, layer.shared.down]
    return [layer.router, *shared, *([] if layer.fallback is None else [layer.fallback])]


def _size(
    matrices: Sequence[QuantisedMatrix], tiles: int, columns: int, split: int | None
) -> tuple[int, int]:
    def share(m: QuantisedMatrix) -> int:
        chosen = choose_split(m.rows, m.blocks, tiles, columns) if split is None else split
        return entries(m.rows, m.blocks, tiles, chosen)

    scales = [share(m) for m in matrices]
    return sum(n * m.fmt.words for n, m in zip(scales, matrices, strict=True)), sum(scales)


def size(layer: QuantisedLayer, tiles: int, columns: int = 1, split: int | None = None) -> tuple[int, int]:
    """Macro words and scale entries a tile that ``layer`` takes; ``split`` as :func:`compile` has it."""
    routed = [m for e in layer.experts for m in (e.gate_up, e.down)]
    return _size([*_always(layer), *routed], tiles, columns, split)


def paging(
    layer: QuantisedLayer, config: HardwareConfig, *, split: int | None = None, slots: int | None = None
) -> dict[str, int]:
    """Values of :data:`sw_model.pages.PAGE_REGISTERS`: all 0 if ``layer`` fits ``config`` whole.

    ``split``: as :func:`compile` has it; ``slots``: page the experts in any case, at most so many on chip.

    Raises
    ------
    ExpertileError : the layer does not fit, nor can it be paged
    """
    topology = (config.tiles, config.columns, config.split if split is None else split)
    needs = size(layer, *topology)
    fits = True
    for what, need, have in (("words", needs[0], config.words), ("scales", needs[1], config.scales)):
        fits &= need <= have
        if need > have and not config.page_slots:
            raise ExpertileError(
                f"config {config.name!r}: the layer needs {need} macro {what} a tile, over its {have}; use a "
                f"configuration with {what} >= {need}, more tiles or page_slots, or a narrower format"
            )
    if fits and slots is None:
        return dict.fromkeys(PAGE_REGISTERS, 0)
    experts = [_size([e.gate_up, e.down], *topology) for e in layer.experts]
    return fit(_size(_always(layer), *topology), experts, layer.rule.top_k, config, slots)


def compile(
    layer: QuantisedLayer, config: HardwareConfig, split: int | None = None, slots: int | None = None
) -> Image:
    """Place ``layer`` into the macros of ``config``; if its routed experts do not fit, they become pages.

    ``split``: one topology for all matrices, to compare with; None: for each the one with the fewest cycles.

    Raises
    ------
    ExpertileError : the layer does not fit the macros; says how many words or scales it needs
    """
    check_fits(layer, config)
    page_registers = paging(layer, config, split=split, slots=slots)
    placer = _Placer(config, split)
    router_split = placer.place(layer.router)[0] >> SPLIT_LSB
    contexts = np.zeros((config.max_experts + 1, WORD_LIMBS), dtype=np.uint32)
    if layer.shared is not None:
        contexts[-1] = placer.context(layer.shared)
    if layer.fallback is not None:  # the place of the base expert, which such a layer lacks
        contexts[-1] = (0, 0, *placer.place(layer.fallback))
    if any(page_registers.values()):
        pages = Pages.gather([_page(expert, config, split) for expert in layer.experts])
    else:
        pages = Pages.gather([])
        for e, expert in enumerate(layer.experts):
            contexts[e] = placer.context(expert)
    scales = np.concatenate(placer.scales, axis=1)
    biases = costs = domains = np.zeros(0, dtype=np.uint32)
    if layer.rule.scoring == "sigmoid":  # always, so that no bias of an earlier layer stays
        bias = np.zeros(layer.n_experts) if layer.selection_bias is None else layer.selection_bias
        biases = table(fixed_bias(bias))
    if layer.gate is not None:
        costs = table((layer.gate.miss << 16) | (layer.gate.cost & 0xFFFF))
        row = 1 << max(1, (config.max_experts - 1).bit_length())
        bias = np.zeros((len(layer.gate.domain_bias), row), dtype=np.int64)
        bias[:, : layer.n_experts] = layer.gate.domain_bias
        domains = table(bias.reshape(-1) & 0xFFFF)
    return Image(
        words=np.concatenate(placer.words, axis=1),
        scales=np.pad(scales, [(0, 0), (0, -scales.shape[1] % WORD_LIMBS)]),
        contexts=contexts,
        biases=biases,
        costs=costs,
        domains=domains,
        page_words=pages.words,
        page_scales=pages.scales,
        page_contexts=pages.contexts,
        page_sizes=pages.sizes,
        registers=_registers(layer, router_split) | page_registers,
        config=config.name,
    )


def _page(
    expert: QuantisedExpert, config: HardwareConfig, split: int | None
) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    placer = _Placer(config, split)
    context = placer.context(expert)
    return context, np.concatenate(placer.words, axis=1), np.concatenate(placer.scales, axis=1)


def _registers(layer: QuantisedLayer, router_split: int) -> dict[str, int]:
    rule = layer.rule
    flags = {
        Flag.RENORMALISE: rule.renormalise,
        Flag.SHARED: layer.shared is not None,
        Flag.SHARED_GATED: layer.shared_gated,
        Flag.SIGMOID: rule.scoring == "sigmoid",
        Flag.TOP2_GROUPS: rule.group_score == "top2",
        Flag.ROUTER_BIASED: layer.router_biased,
        Flag.EXPERT_BIASED: layer.expert_biased,
        Flag.CLAMPED: layer.activation is Activation.CLAMPED,
        Flag.GATE: layer.gate is not None,
        Flag.DENSITY_ROW: layer.gate is not None and layer.gate.density_row is not None,
        Flag.HIGH_NIBBLE: layer.high_nibble,
    }
    values = (
        layer.hidden,
        layer.intermediate,
        layer.shared_intermediate,
        layer.n_experts,
        rule.top_k,
        rule.groups,
        rule.top_groups,
        fixed_scale(rule.scale),
        int(sum(flag for flag, on in flags.items() if on)),
        int(np.float32(layer.limit).view(np.uint32)) if layer.activation is Activation.CLAMPED else 0,
        layer.down_base + ROW_EXP_BIAS,
        router_split,
        *_gate_registers(layer),
    )
    return dict(zip(LAYER_REGISTERS, values, strict=True))


def _gate_registers(layer: QuantisedLayer) -> Iterator[int]:
    """DOMAIN_ROWS and the gate's registers, in the order of ``LAYER_REGISTERS``; all 0 without a gate."""
    gate = layer.gate
    if gate is None:
        yield from (0,) * (9 + MAX_TAU)
        return
    yield 0 if gate.domain_rows is None else len(gate.domain_rows)
    tau = (*gate.tau, *(Q_MAX,) * (MAX_TAU - len(gate.tau)))
    scale = entropy_scale(layer.n_experts)
    signed = (gate.info, gate.entropy, None, gate.density, gate.lam, gate.phi, gate.psi, None, *tau)
    whole = {2: scale, 7: gate.cap}
    yield from (whole[i] if value is None else value & 0xFFFF for i, value in enumerate(signed))
