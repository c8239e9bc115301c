"""Pages: put into any slots as the hardware does it, they make the image that holds all experts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_layers import random_gate, random_layer
from test_compiler import CASES, check, config

from sw_model import compiler
from sw_model.errors import ExpertileError
from sw_model.formats import EXPERT_FORMATS
from sw_model.image import Image
from sw_model.packets import HEADER, NARROW, Kind, packet, pieces
from sw_model.pages import PAGE_REGISTERS
from sw_model.quantised import ExpertFormats, QuantisedLayer, quantise


def header(whole: np.ndarray) -> dict[str, int]:
    """Fields of a packet's header beat."""
    value, fields = sum(int(limb) << 32 * i for i, limb in enumerate(whole[0])), {}
    for name, width in HEADER.items():
        fields[name], value = value & (1 << width) - 1, value >> width
    assert value == 0
    return fields


def mixed(case: str, seed: int) -> tuple[QuantisedLayer, Any]:
    cfg = config(4, page_slots=8)
    plain = random_layer(np.random.default_rng(seed), **CASES[case])
    names = list(EXPERT_FORMATS)
    formats = [
        ExpertFormats(gate_up=names[e % 4], down=names[e // 2 % 4]) for e in range(len(plain.everyone))
    ]
    gate = random_gate(np.random.default_rng(seed), plain)
    return quantise(plain, formats, cfg, gate=gate), cfg


def load(image: Image, slots: dict[int, int]) -> Image:
    """The image after the pages of ``slots`` (expert -> slot) were loaded, as one that was never paged."""
    r = image.registers
    words = np.zeros((len(image.words), 1 << 14, 4), np.uint32)
    scales = np.zeros((len(image.words), 1 << 14), np.uint32)
    words[:, : image.words.shape[1]] = image.words
    scales[:, : image.scales.shape[1]] = image.scales
    contexts = image.contexts.copy()
    for expert, slot in slots.items():
        word, scale = (r[f"PAGE_{w}_BASE"] + slot * r[f"PAGE_{w}S"] for w in ("WORD", "SCALE"))
        *packets, end = image.pages.packets(expert)
        for whole in packets:
            head = header(whole)
            assert (head["paged"], head["expert"], head["beats"]) == (1, expert, len(whole) - 1)
            if head["kind"] == Kind.CONTEXTS:
                contexts[expert] = whole[1] + np.array([word, scale, word, scale], np.uint32)
                continue
            memory, base, data = (
                (words, word, whole[1:]) if head["kind"] == Kind.WORDS else (scales, scale, whole[1:].ravel())
            )
            size = r["PAGE_WORDS"] if head["kind"] == Kind.WORDS else r["PAGE_SCALES"]
            assert head["start"] + len(data) <= size
            memory[head["tile"], base + head["start"] :][: len(data)] = data
        assert header(end)["kind"] == Kind.PAGE and len(end) == 1 and header(end)["expert"] == expert
    return replace(image, words=words, scales=scales, contexts=contexts)


@pytest.mark.parametrize("case", [c for c in CASES if c != "one"])
def test_pages_hold_the_layer(case: str) -> None:
    layer, cfg = mixed(case, seed=3)
    image = compiler.compile(layer, cfg, slots=layer.n_experts)
    assert image.registers["PAGE_SLOTS"] == layer.n_experts
    assert not image.contexts[: layer.n_experts].any()
    order = np.random.default_rng(4).permutation(layer.n_experts)
    check(load(image, dict(enumerate(order.tolist()))), layer)


def test_a_layer_that_fits_has_no_pages() -> None:
    layer, cfg = mixed("gated", seed=5)
    image = compiler.compile(layer, cfg)
    assert all(image.registers[name] == 0 for name in PAGE_REGISTERS)
    assert len(image.page_words) == len(image.page_scales) == len(image.page_sizes) == 0
    check(image, layer)


def test_a_page_is_as_long_as_its_expert() -> None:
    """Experts of narrow formats are not padded to the slot on their way in."""
    layer, cfg = mixed("gated", seed=6)
    pages = compiler.compile(layer, cfg, slots=4).pages
    beats = [sum(map(len, pages.packets(e))) for e in range(layer.n_experts)]
    assert len(set(beats)) > 1
    assert max(pages.sizes[:, 0]) == pages.words.shape[2] and max(pages.sizes[:, 1]) == pages.scales.shape[2]


def test_save_and_load(tmp_path: Path) -> None:
    layer, cfg = mixed("gated", seed=7)
    image, path = compiler.compile(layer, cfg, slots=4), tmp_path / "image.safetensors"
    image.save(path)
    again = Image.load(path)
    for e in range(layer.n_experts):
        for a, b in zip(again.pages.packets(e), image.pages.packets(e), strict=True):
            assert np.array_equal(a, b)
    broken = [
        {"page_sizes": image.page_sizes + np.uint32(4)},
        {"page_sizes": image.page_sizes[:, :1]},
        {"page_words": image.page_words[:, :1]},
        {"page_scales": image.page_scales[1:]},
        {"page_contexts": image.page_contexts[1:]},
        {
            f"page_{name}": getattr(image, f"page_{name}")[:-1]
            for name in ("words", "scales", "contexts", "sizes")
        },
    ]
    for changes in broken:
        replace(image, **changes).save(path)
        with pytest.raises(ExpertileError, match="not readable"):
            Image.load(path)


@pytest.mark.parametrize("kind", [Kind.WORDS, Kind.SCALES, Kind.DOMAINS])
def test_pieces(kind: Kind) -> None:
    """A packet cut for a small buffer writes the same entries."""
    data = np.random.default_rng(8).integers(0, 1 << 32, (11, 4), dtype=np.uint32)
    whole = packet(kind, data, tile=5, start=100, page=3)
    entries = 4 if kind in NARROW else 1
    for beats in (2, 3, 5, 12, 40):
        at, parts = 100, pieces(whole, beats)
        assert len(parts) == -(-11 // (beats - 1))
        for part in parts:
            assert len(part) <= beats
            assert header(part) == {**header(whole), "start": at, "beats": len(part) - 1}
            at += entries * (len(part) - 1)
        assert np.array_equal(np.concatenate([p[1:] for p in parts]), data)
