"""Counts of work equal those of a walk through the layer, row by row, that shares no code with them."""

from typing import Any

import numpy as np
import pytest
from random_layers import RULES, random_gate, random_layer, random_side, random_tokens

from sw_model import compiler, golden
from sw_model.config import load_config
from sw_model.energy.counts import of_shape, weight_words
from sw_model.formats import EXPERT_FORMATS
from sw_model.quantised import QuantisedLayer, quantise

CONFIG = load_config("tiny")
NIBBLES = {  # words, products
    "int4": (1, 1), "mxfp4": (1, 1), "int8": (2, 2), "int8-high": (1, 1), "fp8": (2, 5), "int16": (4, 4),
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    **RULES,
    "ragged": {"hidden": 33, "width": 35, "shared": 37, "experts": 5},
    "biased": {"hidden": 31, "width": 21, "expert_bias": True, "experts": 3, "clamped": True},
}


def walk(layer: QuantisedLayer, chosen: list[int]) -> dict[str, int]:
    """One token that runs the routed experts ``chosen``, an event at a time."""
    seen = dict.fromkeys(
        "tokens experts_used macs word_reads routed_reads routed_sums nibble_passes block_sums act_writes "
        "router_rows activations combine_rows".split(),
        0,
    )

    def row(fmt: str, blocks: int, sets: int, routed: bool) -> None:
        words, products = NIBBLES[fmt]
        for _ in range(blocks):
            seen["macs"] += 32
            for _ in range(sets):
                seen["block_sums"] += 1
                seen["routed_sums"] += routed
                seen["word_reads"] += words
                seen["routed_reads"] += words * routed
                seen["nibble_passes"] += products

    def filled(elements: int, biased: bool) -> int:
        return (elements + 31) // 32 + biased

    def read(fmt: str) -> str:
        return "int8-high" if fmt == "int8" and layer.high_nibble else fmt

    seen["tokens"] += 1
    seen["act_writes"] += 3 * filled(layer.hidden, layer.router_biased or layer.expert_biased)
    for _ in layer.router.row_exp:
        seen["router_rows"] += 1
        row("int16", filled(layer.hidden, layer.router_biased), 2, routed=False)
    run = [(layer.experts[e], True) for e in chosen] + ([(layer.shared, False)] if layer.shared else [])
    for expert, routed in run:
        seen["experts_used"] += routed
        seen["act_writes"] += filled(expert.intermediate, layer.expert_biased)
        for _ in range(expert.intermediate):
            seen["activations"] += 1
            for _ in ("gate", "up"):
                row(read(expert.gate_up.fmt.name), filled(layer.hidden, layer.expert_biased), 1, routed)
        for _ in range(layer.hidden):
            seen["combine_rows"] += 1
            row(read(expert.down.fmt.name), filled(expert.intermediate, layer.expert_biased), 1, routed)
    if not run and layer.fallback is not None:
        seen["act_writes"] += 1
        for _ in range(layer.hidden):
            seen["combine_rows"] += 1
            row("int8", 1, 1, routed=False)
    return seen


@pytest.mark.parametrize("fmt", ["int4", "int8", "int8-high", "fp8", "mxfp4"])
@pytest.mark.parametrize("name", SHAPES)
def test_counts_are_those_of_a_walk(name: str, fmt: str) -> None:
    rng = np.random.default_rng(len(name))
    layer = random_layer(rng, **SHAPES[name])
    gate = random_gate(rng, layer)
    x, side = random_tokens(rng, 9, layer.hidden), random_side(rng, 9, 3)
    for chosen_gate in (None, gate):
        quantised = quantise(layer, fmt, CONFIG, gate=chosen_gate)
        result = golden.run(quantised, x, CONFIG, side)
        kept = np.ones_like(result.experts, bool) if result.decisions is None else result.decisions.kept
        for t, (experts, stay) in enumerate(zip(result.experts, kept, strict=True)):
            want = walk(quantised, experts[stay].tolist())
            assert {k: int(getattr(result.work, k)[t]) for k in want} == want
        total = result.work.figures()
        assert total["word_reads"] == result.stats.word_reads == int(result.work.total().word_reads)
        assert (result.work + result.work).figures() == {k: 2 * v for k, v in total.items()}


@pytest.mark.parametrize("shared", [0, 32])
@pytest.mark.parametrize("fmt", ["int4", "fp8"])
def test_a_shape_tells_what_its_layer_does(fmt: str, shared: int) -> None:
    rng = np.random.default_rng(shared)
    layer = random_layer(
        rng, hidden=64, width=32, experts=5, top_k=2, shared=shared, gated=shared > 0, renormalise=False
    )
    quantised = quantise(layer, fmt, CONFIG)
    done = golden.run(quantised, random_tokens(rng, 4, 64), CONFIG).work.figures()
    want = of_shape(64, 32, 5, 2, EXPERT_FORMATS[fmt], shared)
    assert done == {name: 4 * value for name, value in want.items()}
    some, more = (of_shape(64, 32, 5, used, EXPERT_FORMATS[fmt], shared) for used in (1.2, 2.2))
    assert more["word_reads"] - some["word_reads"] == pytest.approx(done["routed_reads"] / 8)


def test_loading_writes_what_the_image_holds() -> None:
    layer = random_layer(np.random.default_rng(0), hidden=64, width=32, experts=4, shared=32)
    quantised = quantise(layer, "int8", CONFIG)
    image = compiler.compile(quantised, CONFIG)  # rows fill the two tiles, so nothing is padding
    words, scales = weight_words(quantised)
    assert (words, scales) == (image.words.shape[0] * image.words.shape[1], image.scales.size)
    each = [weight_words(e) for e in quantised.everyone]
    router = quantised.router.rows * quantised.router.blocks
    assert (sum(w for w, _ in each) + 4 * router, sum(s for _, s in each) + router) == (words, scales)
