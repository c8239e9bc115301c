"""Weight images: decoded again from words, scales and registers alone, they hold the quantised layer."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from random_layers import RULES, random_gate, random_layer

from hw.host.registers import LAYER_WIDTHS
from sw_model import compiler
from sw_model.config import HardwareConfig, load_config
from sw_model.errors import ExpertileError
from sw_model.formats import EXPERT_FORMATS, QuantisedMatrix
from sw_model.image import REGISTER_NAMES, Image
from sw_model.moe import Activation
from sw_model.quantised import ExpertFormats, QuantisedLayer, quantise

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "gated": {"hidden": 40, "width": 33, "shared": 20, "gated": True, "temper": "wild"},
    "ungated": {
        "hidden": 33, "width": 64, "shared": 7, "experts": 5, "renormalise": False, "temper": "wild",
    },
    "one": {"hidden": 2, "width": 1, "experts": 1, "top_k": 1},
    **{f"{name}": {**RULES[name], "hidden": 31, "width": 20} for name in ("gpt_oss", "deepseek_v3")},
}  # fmt: skip


def config(tiles: int, **changes: int) -> HardwareConfig:
    shape = {"words": 1 << 14, "scales": 1 << 14, "max_hidden": 64, "max_intermediate": 64, "max_experts": 8}
    return HardwareConfig(name="image", tiles=tiles, **{**shape, "max_top_k": 2, **changes})


class Decoder:
    """Reads matrices out of an image as the hardware does: row r in group r mod groups of tiles, as slot
    r // groups, block b in the group's tile b mod width."""

    def __init__(self, image: Image) -> None:
        self.words = [[sum(int(v) << 32 * i for i, v in enumerate(w)) for w in tile] for tile in image.words]
        self.scales = image.scales.tolist()
        self.used: set[tuple[str, int, int]] = set()

    def matrix(self, word: int, scale: int, rows: int, blocks: int, fmt: int, split: int) -> np.ndarray:
        """float64 [rows, blocks * 32] of a matrix in the format that is named by number ``fmt``."""
        width, out = 1 << split, np.zeros((rows, blocks * 32))
        groups, shares = len(self.words) // width, -(-blocks // width)
        nibbles, value = ELEMENTS[fmt]
        for r in range(rows):
            for b in range(blocks):
                at, tile = r // groups * shares + b // width, r % groups * width + b % width
                self.used.add(("scale", tile, scale + at))
                entry = self.scales[tile][scale + at]
                size = (128 | entry & 127) * 2.0 ** ((entry >> 7 & 31) + (entry >> 12) - 134)
                codes = [0] * 32
                for p in range(nibbles):
                    address = word + at * nibbles + p
                    self.used.add(("word", tile, address))
                    for lane in range(32):
                        codes[lane] = codes[lane] << 4 | self.words[tile][address] >> 4 * lane & 15
                out[r, 32 * b : 32 * b + 32] = np.array([value(c) for c in codes]) * size
        return out


def _integer(nibbles: int) -> Callable[[int], float]:
    sign = 1 << 4 * nibbles - 1
    return lambda code: -(code & (sign - 1)) if code & sign else code


def _float(kind: type, unit: int) -> Callable[[int], float]:
    """A code whose sign is its top bit, as ml_dtypes has it."""
    return lambda code: float(np.array(code, np.uint8).view(kind)) * unit


#: Stored nibbles and value of an element, by the number of its format.
ELEMENTS: dict[int, tuple[int, Callable[[int], float]]] = {
    0: (1, _integer(1)),
    1: (2, _integer(2)),
    2: (4, _integer(4)),
    3: (1, _float(ml_dtypes.float4_e2m1fn, 2)),
    4: (2, _float(ml_dtypes.float8_e4m3fn, 512)),
}
NUMBERS = {"int4": 0, "int8": 1, "int16": 2, "mxfp4": 3, "fp8": 4}


def check(image: Image, layer: QuantisedLayer) -> None:
    d, r = Decoder(image), image.registers
    hidden = -(-r["HIDDEN"] // 32)
    router_bias, expert_bias = (r["FLAGS"] >> bit & 1 for bit in (5, 6))

    def same(m: QuantisedMatrix, word: int, scale: int, rows: int, blocks: int, topology: int) -> None:
        number, split = topology & 15, topology >> 4
        assert number == NUMBERS[m.fmt.name]
        size = np.ldexp(m.mant.astype(np.float64), m.shift + m.row_exp[:, None])
        decoded = (m.codes * size[:, :, None]).reshape(m.rows, -1)
        assert np.array_equal(d.matrix(word, scale, rows, blocks, number, split), decoded)

    router_rows = r["EXPERTS"] + (r["FLAGS"] >> 2 & 1) + (r["FLAGS"] >> 9 & 1) + r["DOMAIN_ROWS"]
    same(layer.router, 0, 0, router_rows, hidden + router_bias, 2 | r["ROUTER_SPLIT"] << 4)
    contexts = image.contexts.tolist()
    used = set()
    places = [(e, expert, r["INTERMEDIATE"]) for e, expert in enumerate(layer.experts)]
    if layer.shared is not None:
        places.append((len(contexts) - 1, layer.shared, r["SHARED_INTERMEDIATE"]))
    for e, expert, wide in places:
        used.add(e)
        up, up_scale, down, down_scale = contexts[e]
        at, number = up & 0xFFFFFF, up >> 24
        same(expert.gate_up, at, up_scale, 2 * wide, hidden + expert_bias, number)
        at, number = down & 0xFFFFFF, down >> 24
        same(expert.down, at, down_scale, r["HIDDEN"], -(-wide // 32) + expert_bias, number)
    if layer.fallback is not None:
        used.add(len(contexts) - 1)
        up, up_scale, down, down_scale = contexts[-1]
        assert (up, up_scale) == (0, 0)
        same(layer.fallback, down & 0xFFFFFF, down_scale, r["HIDDEN"], 1, down >> 24)
    assert all(not any(c) for e, c in enumerate(contexts) if e not in used)
    # Nothing stands outside of the matrices.
    for what, data in (("word", d.words), ("scale", [[v & 127 for v in tile] for tile in d.scales])):
        for tile, values in enumerate(data):
            assert all((what, tile, i) in d.used for i, v in enumerate(values) if v)


@pytest.mark.parametrize("fmt", ["int8", "int4", "fp8", "mxfp4", "mixed"])
@pytest.mark.parametrize(("tiles", "columns"), [(1, 1), (2, 1), (8, 1), (8, 4), (32, 8)])
@pytest.mark.parametrize("case", CASES)
def test_image_holds_the_layer(case: str, tiles: int, columns: int, fmt: str) -> None:
    cfg = config(tiles, columns=columns)
    plain = random_layer(np.random.default_rng(tiles), **CASES[case])
    names = list(EXPERT_FORMATS)
    mixed = [ExpertFormats(gate_up=names[e % 4], down=names[(e + 1) % 4]) for e in range(len(plain.everyone))]
    layer = quantise(plain, mixed if fmt == "mixed" else fmt, cfg)
    image = compiler.compile(layer, cfg)
    check(image, layer)
    assert image.words.dtype == image.scales.dtype == image.contexts.dtype == np.uint32
    assert image.words.shape[0] == image.scales.shape[0] == tiles
    assert image.words.shape[2] == 4 and image.scales.shape[1] % 4 == 0
    assert image.contexts.shape == (cfg.max_experts + 1, 4)
    assert (image.scales < 1 << 20).all()
    assert (image.words.shape[1], -(-image.scales.shape[1] // 4)) == (
        compiler.size(layer, tiles, columns)[0],
        -(-compiler.size(layer, tiles, columns)[1] // 4),
    )
    assert set(image.registers) == set(REGISTER_NAMES)
    assert all(0 <= v < 1 << LAYER_WIDTHS[n] for n, v in image.registers.items())
    assert image.config == "image"
    r, rule = image.registers, plain.rule
    shared = plain.shared is not None
    assert (r["HIDDEN"], r["INTERMEDIATE"], r["EXPERTS"], r["TOP_K"], r["GROUPS"], r["TOP_GROUPS"]) == (
        plain.hidden, plain.intermediate, plain.n_experts, rule.top_k, rule.groups, rule.top_groups,
    )  # fmt: skip
    assert r["SHARED_INTERMEDIATE"] == plain.shared_intermediate
    assert r["FLAGS"] == (
        rule.renormalise
        | shared << 1
        | (plain.shared_gate is not None) << 2
        | (rule.scoring == "sigmoid") << 3
        | (rule.group_score == "top2") << 4
        | (plain.router_bias is not None) << 5
        | plain.experts[0].biased << 6
        | (plain.activation is Activation.CLAMPED) << 7
    )
    high = compiler.compile(replace(layer, high_nibble=True), cfg)
    assert high.registers == {**r, "FLAGS": r["FLAGS"] | 1 << 10}
    assert np.array_equal(high.words, image.words)
    assert r["ROUTER_SCALE"] == round(rule.scale * 1024)
    limit = plain.limit if plain.activation is Activation.CLAMPED else 0  # others do not have one
    assert np.array(r["LIMIT"], np.uint32).view(np.float32) == np.float32(limit)
    assert not any(v for n, v in r.items() if n.startswith(("GATE", "DOMAIN")))
    exps = np.concatenate([e.down.row_exp for e in layer.everyone])
    assert r["DOWN_BASE"] == exps.min() + 134
    assert exps.max() - exps.min() <= cfg.down_spread
    want = np.zeros(0) if rule.scoring == "softmax" else np.zeros(-(-plain.n_experts // 4) * 4)
    if plain.selection_bias is not None:
        want[: plain.n_experts] = np.rint(plain.selection_bias.astype(np.float64) * (1 << 24))
    assert np.array_equal(image.biases.view(np.int32), want)
    assert image.costs.size == image.domains.size == 0


@pytest.mark.parametrize("split", [0, 1, 2, None])
def test_one_split_for_all(split: int | None) -> None:
    """As asked for, or the best for each; that one takes the least room."""
    cfg = config(8, columns=4)
    layer = quantise(random_layer(np.random.default_rng(4), **CASES["gated"]), "int8", cfg)
    image = compiler.compile(layer, cfg, split)
    check(image, layer)
    seen = {int(c) >> 28 for c in image.contexts[[0, 1, -1]][:, [0, 2]].ravel()}
    seen.add(image.registers["ROUTER_SPLIT"])
    assert seen == {split} if split is not None else len(seen) > 1
    assert image.words.shape[1] >= compiler.compile(layer, cfg).words.shape[1]


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("case", ["plain", "gated", "gpt_oss", "deepseek_v3"])
def test_image_holds_the_gate(case: str, rows: bool) -> None:
    rng = np.random.default_rng(rows)
    cfg = config(4)
    plain = random_layer(rng, **CASES[case])
    gate = random_gate(rng, plain, domains=3, rows=rows, density=not rows)
    image = compiler.compile(layer := quantise(plain, "int8", cfg, gate=gate), cfg)
    check(image, layer)
    r = image.registers
    assert all(0 <= v < 1 << LAYER_WIDTHS[n] for n, v in r.items())
    assert (r["FLAGS"] >> 8 & 1, r["FLAGS"] >> 9 & 1, r["DOMAIN_ROWS"]) == (1, not rows, 3 * rows)

    def signed(name: str) -> int:
        return r[f"GATE_{name}"] - (r[f"GATE_{name}"] >> 15 << 16)

    names = {
        "INFO": "info",
        "ENTROPY": "entropy",
        "DENSITY": "density",
        "LAMBDA": "lam",
        "PHI": "phi",
        "PSI": "psi",
    }
    assert {n: signed(n) for n in names} == {n: getattr(gate, field) for n, field in names.items()}
    assert r["GATE_CAP"] == gate.cap
    assert [signed(f"TAU{j}") for j in range(8)] == [*gate.tau, *[32767] * (8 - len(gate.tau))]
    assert r["GATE_ENTROPY_SCALE"] == round(65536 / np.log2(plain.n_experts))
    costs = image.costs[: plain.n_experts].view(np.int16).reshape(-1, 2)
    assert np.array_equal(costs[:, 0], gate.cost) and np.array_equal(costs[:, 1], gate.miss)
    table = image.domains.view(np.int32).reshape(3, 8)[:, : plain.n_experts]
    assert np.array_equal(table.astype(np.int16), gate.domain_bias)


TABLES = ("words", "scales", "contexts", "biases", "costs", "domains")
ARRAYS = (*TABLES, "page_words", "page_scales", "page_contexts", "page_sizes")


def make(case: str) -> Image:
    """With a gate, and so with most of the tables that an image may have."""
    cfg, rng = config(4), np.random.default_rng(5)
    layer = random_layer(rng, **CASES[case])
    return compiler.compile(quantise(layer, "int8", cfg, gate=random_gate(rng, layer)), cfg)


def test_packets_rebuild_the_memories() -> None:
    """Every memory once, whole; tables that a layer does not have are not sent."""
    image = make("deepseek_v3")
    memories = {
        **{(t, 0): np.zeros_like(image.words[t]) for t in range(4)},
        **{(t, 1): np.zeros_like(image.scales[t]) for t in range(4)},
        **{(0, k): np.zeros_like(getattr(image, TABLES[k])) for k in range(2, 6)},
    }
    seen = set()
    for packet in image.packets():
        assert packet.dtype == np.uint32 and packet.shape[1] == 4 and len(packet) > 1
        head, start, beats, rest = packet[0].tolist()
        assert (beats, rest) == (len(packet) - 1, 0)
        tile, kind = head & 0xFFFF, head >> 16
        assert (tile, kind) not in seen
        seen.add((tile, kind))
        data, memory = packet[1:], memories[tile, kind]
        if memory.ndim == 1:
            memory[start : start + data.size] = data.ravel()
        else:
            memory[start : start + len(data)] = data
    assert seen == set(memories)
    for (tile, kind), memory in memories.items():
        whole = getattr(image, TABLES[kind])
        assert np.array_equal(memory, whole[tile] if kind < 2 else whole)


def test_a_layer_without_tables() -> None:
    cfg = config(2)
    plain = compiler.compile(quantise(random_layer(np.random.default_rng(5)), "int8", cfg), cfg)
    assert {int(p[0, 0]) >> 16 for p in plain.packets()} == {0, 1, 2}


@pytest.mark.parametrize("what", ["words", "scales"])
def test_too_small(what: str) -> None:
    """The message names the need, and that need is the least that will do."""
    cfg = config(4)
    plain = random_layer(np.random.default_rng(6), **CASES["gated"])
    layer = quantise(plain, "int8", cfg)
    image = compiler.compile(layer, cfg)
    blocks = [(5, 2), *[(66, 2), (40, 2)] * 4, (40, 2), (40, 1)]  # rows, blocks of every matrix
    scales = sum(-(-rows // 4) * n for rows, n in blocks)
    words = 2 * scales + 2 * 2 * -(-5 // 4)  # the router has four
    assert (image.words.shape[1], image.scales.shape[1]) == (words, -(-scales // 4) * 4)
    need = words if what == "words" else scales
    exact = -(-need // 4) * 4 if what == "scales" else need
    compiler.compile(layer, replace(cfg, **{what: exact}))
    less = need - 1 if what == "words" else exact - 4
    with pytest.raises(
        ExpertileError, match=rf"'image'.* {need} macro {what} a tile, over its {less};.*{what} >= {need}"
    ) as e:
        compiler.compile(layer, replace(cfg, **{what: less}))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("change", "shape", "message"),
    [
        ({"max_hidden": 32}, {"hidden": 40}, "hidden size 40 .*max_hidden of 32.*max_hidden >= 40"),
        ({"max_intermediate": 32}, {"width": 33}, "expert width 33 .*max_intermediate >= 33"),
        ({"max_intermediate": 32}, {"shared": 64}, "base expert width 64 .*max_intermediate >= 64"),
        ({"max_experts": 3}, {"experts": 4}, "number of experts 4 .*max_experts >= 4"),
        ({"max_top_k": 1}, {"top_k": 2}, "top-k.* 2 .*max_top_k >= 2"),
        ({"max_groups": 2}, {"groups": 4, "top_groups": 2}, "expert groups 4 .*max_groups >= 4"),
        # The block of constants that biases ride on takes room too.
        ({}, {"expert_bias": True}, "hidden size 96 .*max_hidden >= 96"),
        ({}, {"router_bias": True}, "hidden size 96 .*max_hidden >= 96"),
        ({}, {"hidden": 32, "width": 33, "expert_bias": True}, "expert width 96 .*max_intermediate >= 96"),
    ],
)
def test_over_the_maxima(change: dict[str, int], shape: dict[str, Any], message: str) -> None:
    with pytest.raises(ExpertileError, match=message):
        quantise(random_layer(np.random.default_rng(7), **shape), "int8", config(2, **change))


def test_compiled_for_a_smaller_configuration() -> None:
    """A layer quantised for one configuration must not be placed on another that cannot hold it."""
    layer = quantise(random_layer(np.random.default_rng(7)), "int8", config(2))
    with pytest.raises(ExpertileError, match="hidden"):
        compiler.compile(layer, config(2, max_hidden=32))


def test_a_hidden_size_of_one_is_refused() -> None:
    layer = random_layer(np.random.default_rng(8), hidden=1)
    with pytest.raises(ExpertileError, match="hidden size 1: at least 2"):
        quantise(layer, "int8", config(2))


def test_quantise_refuses_formats() -> None:
    layer = random_layer(np.random.default_rng(8), expert_bias=True, hidden=32)
    with pytest.raises(ExpertileError, match=r"'int3'.*int8.*native"):
        quantise(layer, "int3", config(2))
    with pytest.raises(ExpertileError, match="int8"):
        quantise(layer, "int16", config(2))
    with pytest.raises(ExpertileError, match="'native': the checkpoint is not quantised"):
        quantise(layer, "native", config(2))
    with pytest.raises(ExpertileError, match="body 'lut' read whole weights; use int8 or int4"):
        quantise(layer, "int8-high", config(2, body="lut"))


@pytest.mark.parametrize("fmt", EXPERT_FORMATS)
@pytest.mark.parametrize(
    ("where", "bad"),
    [
        *[(w, np.nan) for w in ("down", "gate", "up", "up_bias", "down_bias", "router")],
        *[(w, np.inf) for w in ("up_bias", "down_bias", "router")],
        *[(w, np.inf) for w in ("down", "gate", "up")],
    ],
)
def test_quantise_refuses_what_is_not_finite(where: str, bad: float, fmt: str) -> None:
    layer = random_layer(np.random.default_rng(8), expert_bias=True, hidden=32)
    array = layer.router if where == "router" else getattr(layer.experts[1], where)
    array.flat[3] = bad
    with pytest.raises(ExpertileError, match="finite"):
        quantise(layer, fmt, config(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tau": (0,)}, "1 thresholds tau.* needs 2"),
        ({"cost": np.zeros(5, np.int64)}, r"cost has shape \[5\].*\[4\]"),
        ({"miss": np.zeros((4, 1), np.int64)}, r"miss has shape \[4, 1\].*\[4\]"),
        ({"domain_bias": np.zeros((3, 3), np.int64)}, r"domain_bias .*\[3, 4\]"),
        ({"domain_bias": np.zeros((9, 4), np.int64), "domain_rows": None}, "9 domains .*max_domains of 8"),
        ({"domain_rows": np.zeros((2, 64), np.float32)}, r"domain_rows .*\[3, 64\]"),
        ({"density_row": np.zeros(63, np.float32)}, r"density_row .*\[64\]"),
        ({"fallback": None}, "fallback"),
        ({"fallback": np.zeros(3, np.float32)}, r"fallback .*\[64\]"),
    ],
)
def test_gates_that_do_not_belong(change: dict[str, Any], message: str) -> None:
    rng = np.random.default_rng(9)
    layer = random_layer(rng)
    gate = replace(random_gate(rng, layer), **change)
    with pytest.raises(ExpertileError, match=message) as error:
        quantise(layer, "int8", config(2), gate=gate)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"phi": -40000}, {"tau": (0, 32768)}, {"cap": 256}, {"info": 1 << 16}])
def test_gates_beyond_their_registers_are_refused(change: dict[str, Any]) -> None:
    rng = np.random.default_rng(10)
    layer = random_layer(rng)
    with pytest.raises(ExpertileError, match="gate"):
        quantise(layer, "int8", config(2), gate=replace(random_gate(rng, layer), **change))


def test_shipped_presets_hold_a_layer() -> None:
    cfg = load_config("tiny")
    layer = random_layer(np.random.default_rng(9), hidden=cfg.max_hidden, width=32, shared=32)
    compiler.compile(quantise(layer, "int4", cfg), cfg)
