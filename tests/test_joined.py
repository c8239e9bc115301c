"""Several layers on chip at once: each is bit for bit the golden model's, in any order."""

from dataclasses import replace

import numpy as np
import pytest
from random_layers import RULES, random_side, random_tokens
from sim_layers import Case, random_quantised, same_bits

from driver.accelerator import Driver
from expertile.options import ROOT
from hw.host.registers import REGISTERS, address, present
from sim.build import build_verilator, generated
from sim.verilator import Core
from sw_model import compiler, golden
from sw_model.checkpoint import Checkpoint
from sw_model.config import Feature, HardwareConfig, load_config
from sw_model.energy.counters import of_array, of_work
from sw_model.errors import ExpertileError
from sw_model.gate_file import load
from sw_model.image import PLACE_REGISTERS, Image
from sw_model.joined import for_layers, join
from sw_model.packets import Kind, capacities
from sw_model.quantised import quantise

pytestmark = pytest.mark.sim

# Neither layers nor experts nor domains are powers of two.
CONFIG = HardwareConfig(
    name="several", tiles=2, words=10244, scales=10240, max_hidden=192, max_intermediate=64, max_experts=9,
    max_top_k=2, max_domains=5, max_layers=5,
)  # fmt: skip
LOOKUP = replace(CONFIG, name="several_lut", tiles=4, columns=2, body="lut")

#: Rules, sizes and tables of every kind beside each other.
CASES = (
    Case(fmt="mixed", gate=True, shape={"hidden": 32, "experts": 9, "shared": 32}),
    Case(fmt="int4", shape={**RULES["sigmoid"], "selection_bias": True}),
    Case(fmt="int4", gate=True, shape={"experts": 5}),
    Case(fmt="int8", shape={**RULES["gpt_oss"], "experts": 3}),
    Case(fmt="int8", gate=True, shape={**RULES["sigmoid"], "selection_bias": True, "hidden": 32}),
)


def layers_of(config: HardwareConfig) -> list:
    return [random_quantised(case, config, seed=24 + i) for i, case in enumerate(CASES)]


def joined(layers: list, config: HardwareConfig) -> Image:
    return join([compiler.compile(layer, config) for layer in layers], config)


def check(driver: Driver, number: int, layer, config: HardwareConfig, rng: np.random.Generator, n=6) -> None:
    """Some tokens through a layer: the golden model's bits and counters."""
    x = random_tokens(rng, n, layer.hidden)
    side = resident = None
    driver.select(number)
    if layer.gate is not None:
        side = random_side(rng, n, len(layer.gate.domain_bias))
        resident = rng.random(layer.n_experts) < 0.6
        driver.set_resident(resident)
    want = golden.run(layer, x, config, side, resident)
    assert same_bits(driver.run(x, side), want.y), f"layer {number}"
    counters = driver.counters()
    expected = of_work(want) | of_array(layer, config, want) | {"WORDS_LOADED": 0}
    assert {name: counters[name] for name in expected} == expected
    assert driver.read("STATUS") & 0x7 == 0


@pytest.mark.parametrize("stalls", [0.0, 0.3])
@pytest.mark.parametrize(
    "config", [CONFIG, pytest.param(LOOKUP, marks=pytest.mark.slow)], ids=lambda c: c.name
)
def test_in_any_order(config: HardwareConfig, stalls: float) -> None:
    layers, rng = layers_of(config), np.random.default_rng(7)
    with Core(build_verilator(generated(config)), stalls=stalls, seed=7) as core:
        driver = Driver(core)
        driver.require(config)
        driver.load(joined(layers, config))
        order = [*range(len(layers)), *rng.integers(0, len(layers), 20).tolist()]
        for number in order:
            check(driver, number, layers[number], config, rng)
        # A layer alone again, then all of them.
        driver.load(compiler.compile(layers[1], config))
        check(driver, 0, layers[1], config, rng)
        driver.load(joined(layers[::-1], config))
        for number in (4, 0, 2):
            check(driver, number, layers[::-1][number], config, rng)


def test_only_what_differs_is_written() -> None:
    layers = layers_of(CONFIG)
    image = joined(layers, CONFIG)
    with Core(build_verilator(generated(CONFIG))) as core:
        driver = Driver(core)
        driver.load(image)
        written, write = [], core.write
        core.write = lambda at, value: (written.append((at, value)), write(at, value))[1]
        driver.select(0)
        assert written == []
        now = dict.fromkeys(PLACE_REGISTERS, 0) | image.registers
        for number in (3, 3, 1, 0, 4):
            then = dict.fromkeys(PLACE_REGISTERS, 0) | image.layers[number]
            written.clear()
            driver.select(number)
            assert sorted(written) == sorted((address(n), v) for n, v in then.items() if now[n] != v)
            assert all(driver.read(name) == value for name, value in then.items())
            now = then


def test_the_shipped_model() -> None:
    """All four layers of models/tiny with its gate."""
    checkpoint = Checkpoint.open(ROOT / "models" / "tiny")
    gates = load(ROOT / "models" / "tiny" / "gate.json")
    numbers, rng = checkpoint.moe_layers, np.random.default_rng(9)
    layers = [quantise(checkpoint.moe_layer(n), "int4", CONFIG, gate=gates.gate(n)) for n in numbers]
    image = joined(layers, CONFIG)
    with Core(build_verilator(generated(CONFIG)), stalls=0.1, seed=9) as core:
        driver = Driver(core)
        driver.load(image)
        for number in (0, 1, 2, 3, 1, 0, 3, 2):
            check(driver, number, layers[number], CONFIG, rng)
    preset = load_config("ulx3s_85f_layers")  # has room for it, to the last word
    assert len(image.layers) == 4 and image.words.shape[1] == preset.words
    same = [
        compiler.compile(quantise(checkpoint.moe_layer(n), "int4", preset, gate=gates.gate(n)), preset)
        for n in numbers
    ]
    assert np.array_equal(join(same, preset).words, image.words)


def test_what_is_where() -> None:
    """Every layer is found again at the place that its registers name, and nothing of it changed."""
    images = [compiler.compile(layer, CONFIG) for layer in layers_of(CONFIG)]
    whole = join(images, CONFIG)
    assert len(whole.layers) == len(images) and whole.registers == images[0].registers
    ends = (0, 0)
    for number, (one, registers) in enumerate(zip(images, whole.layers, strict=True)):
        at, word, scale = (registers.get(name, 0) for name in PLACE_REGISTERS)
        assert (at, word, scale) == (number, *ends)
        assert {k: v for k, v in registers.items() if k not in PLACE_REGISTERS} == one.registers
        ends = (word + one.words.shape[1], scale + one.scales.shape[1])
        assert np.array_equal(whole.words[:, word : ends[0]], one.words)
        assert np.array_equal(whole.scales[:, scale : ends[1]], one.scales)
        moved = whole.contexts[16 * number :][: len(one.contexts)] - [word, scale, word, scale]
        assert np.array_equal(moved, one.contexts)
        for name, row, used in (("biases", 16, 9), ("costs", 16, 9), ("domains", 128, 16 * 5)):
            mine = getattr(one, name)[:used]
            assert np.array_equal(getattr(whole, name)[row * number :][: len(mine)], mine), name
    assert (whole.words.shape[1], whole.scales.shape[1]) == ends
    rooms = capacities(CONFIG)
    assert len(whole.contexts) == rooms[Kind.CONTEXTS] == 4 * 16 + 10
    assert rooms[Kind.BIASES] == rooms[Kind.COSTS] == 4 * 16 + 9
    assert rooms[Kind.DOMAINS] == 4 * 128 + 5 * 16
    assert rooms[Kind.RESIDENT] == 9
    assert join(images[:1], CONFIG) is images[0]


def test_its_name() -> None:
    """It tells layers, their order and their rules."""
    images = [compiler.compile(layer, CONFIG) for layer in layers_of(CONFIG)]
    other = replace(images[1], registers=images[1].registers | {"TOP_K": 1})
    orders = ([0], [0, 1], [1, 0], [0, 1, 2])
    names = {join([images[i] for i in order], CONFIG).id for order in orders}
    names.add(join([images[0], other], CONFIG).id)
    assert len(names) == 5 and 0 not in names


def test_refusals() -> None:
    layers = layers_of(CONFIG)
    images = [compiler.compile(layer, CONFIG) for layer in layers]
    with pytest.raises(
        ExpertileError, match=r"'several': 6 layers are over its max_layers of 5; .*max_layers >= 6"
    ):
        join([*images, images[0]], CONFIG)
    words = sum(image.words.shape[1] for image in images)
    scales = sum(image.scales.shape[1] for image in images)
    for what, need in (("words", words), ("scales", scales)):
        full = replace(CONFIG, **{what: need})
        assert join(images, full).layers == join(images, CONFIG).layers
        short = replace(CONFIG, **{what: need - 4})
        with pytest.raises(
            ExpertileError, match=f"5 layers need {need} macro {what} a tile.*{what} >= {need}"
        ):
            join(images, short)
    paging = replace(CONFIG, page_slots=4)
    paged = compiler.compile(layers[1], paging, slots=2)
    with pytest.raises(ExpertileError, match="fits only in part"):
        join([images[0], paged], paging)


def test_a_design_for_one_layer_refuses_several() -> None:
    """It has no registers for them."""
    one = load_config("tiny")
    assert Feature.LAYERS in CONFIG.features and Feature.LAYERS not in one.features
    missing = {*REGISTERS} - {*present(one.features)}
    assert missing == {*PLACE_REGISTERS}
    with Core(build_verilator(generated(one))) as core:
        assert all(core.read(address(name)) == (0, 2) for name in missing)
        with pytest.raises(ExpertileError, match="device: made without what LAYER = 0x1 of the image is for"):
            Driver(core).configure(joined(layers_of(CONFIG), CONFIG))


def test_room_for_layers() -> None:
    """The preset like a board's own that holds so many layers, if it does not do so itself."""
    one, several = load_config("ulx3s_85f"), load_config("ulx3s_85f_layers")
    assert for_layers(one, 1) is one and for_layers(several, 8) is several
    assert for_layers(one, 2) == for_layers(one, 8) == several
    for config, layers in ((one, 9), (several, 9), (load_config("tiny"), 2)):
        most = config.max_layers
        with pytest.raises(ExpertileError, match=f"{layers} layers are over its max_layers of {most}; use a"):
            for_layers(config, layers)
