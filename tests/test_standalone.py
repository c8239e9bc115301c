"""A bitstream with a layer in it answers tokens at its serial pins from power-up on."""

import json
from dataclasses import replace

import numpy as np
import pytest
from random_layers import random_side, random_tokens
from sim_layers import DOMAINS, Case, random_quantised, same_bits

from driver.accelerator import Driver
from driver.link import Link
from driver.link_bus import LinkBus
from driver.spi_pipe import SpiPipe
from hw import verilog
from hw.boards.catalogue import BOARDS
from hw.boards.tools import run_yosys
from sim.board import open_board, open_spi
from sw_model import compiler, golden
from sw_model.config import HardwareConfig
from sw_model.joined import join
from sw_model.packets import Kind

pytestmark = pytest.mark.sim

BOARD = BOARDS["orangecrab_85f"]  # its lamps and button are active low
CONFIG = HardwareConfig(
    name="alone", tiles=1, words=2048, scales=1024, max_hidden=32, max_intermediate=32, max_experts=8,
    max_top_k=2,
)  # fmt: skip
SEVERAL = replace(CONFIG, name="alone3", scales=1536, max_layers=3)
SHAPE = {"hidden": 32, "experts": 4, "shared": 32}


@pytest.fixture(scope="module")
def layer():
    return random_quantised(Case(fmt="mixed", gate=True, shape=SHAPE), CONFIG, seed=31)


@pytest.fixture
def bus(layer):
    return LinkBus(Link(open_board(BOARD, CONFIG, image=compiler.compile(layer, CONFIG), seed=5)))


@pytest.fixture(params=["uart", "spi"])
def line(request, layer):
    """The byte pipe to a board, and where its lamps are seen."""
    image = compiler.compile(layer, CONFIG)
    if request.param == "uart":
        found = open_board(BOARD, CONFIG, image=image, seed=5)
        return found, found
    found = open_spi(BOARDS["orangecrab_85f_spi"], CONFIG, image=image, seed=5)
    return SpiPipe(found), found


def tokens(n, seed):
    return random_tokens(np.random.default_rng(seed), n, 32)


def test_tokens_alone(line, layer):
    """Nothing but tokens goes in."""
    pipe, board = line
    link, x = Link(pipe), tokens(6, seed=1)
    bus = LinkBus(link)
    assert same_bits(bus.run(x), golden.run(layer, x, CONFIG).y)
    heartbeat, busy = 1, 2
    assert board.lamps & ~heartbeat == busy
    link.reset()
    assert same_bits(bus.run(x[:2]), golden.run(layer, x[:2], CONFIG).y)


def test_neither_lamps_nor_button(layer):
    board, x = BOARDS["colorlight_5a75b"], tokens(2, seed=3)
    line = open_board(board, CONFIG, image=compiler.compile(layer, CONFIG), seed=5)
    assert not board.button and not board.leds
    assert same_bits(LinkBus(Link(line)).run(x), golden.run(layer, x, CONFIG).y)
    assert line.lamps == 0


def test_a_driver_sends_only_what_is_not_there(bus, layer):
    driver, x = Driver(bus), tokens(3, seed=2)
    image = compiler.compile(layer, CONFIG)
    assert driver.read("IMAGE") == image.id
    sent = bus.send_weights
    bus.send_weights = None  # an error if it is called
    driver.load(image)
    assert same_bits(driver.run(x), golden.run(layer, x, CONFIG).y)

    bus.send_weights = sent
    other = random_quantised(Case(fmt="int4", shape=SHAPE), CONFIG, seed=32)
    driver.load(compiler.compile(other, CONFIG))
    assert driver.read("IMAGE") == 0
    assert same_bits(driver.run(x), golden.run(other, x, CONFIG).y)
    driver.load(image)
    assert same_bits(driver.run(x), golden.run(layer, x, CONFIG).y)
    bus._link.reset()  # registers as at power-up; but what was loaded is not what it woke up with
    assert driver.read("IMAGE") == 0


def test_several_layers_alone():
    """All weights are in the bitstream: it wakes up as the first layer, and the driver writes registers."""
    shapes = (SHAPE, {"hidden": 32, "experts": 3, "scoring": "sigmoid", "selection_bias": True})
    cases = [Case(fmt="int4", gate=True, shape=shape) for shape in (*shapes, SHAPE)]
    layers = [random_quantised(case, SEVERAL, seed=40 + i) for i, case in enumerate(cases)]
    image = join([compiler.compile(layer, SEVERAL) for layer in layers], SEVERAL)
    bus = LinkBus(Link(open_board(BOARD, SEVERAL, image=image, seed=5)))
    x = tokens(3, seed=6)
    assert same_bits(bus.run(x), golden.run(layers[0], x, SEVERAL).y)

    kinds, send = [], bus.send_weights

    def watched(packets):
        packets = list(packets)
        kinds.extend(Kind(int(packet[0, 0]) >> 16 & 7) for packet in packets)
        send(packets)

    bus.send_weights = watched
    driver, rng = Driver(bus), np.random.default_rng(7)
    driver.require(SEVERAL)
    driver.load(image)
    for number in (2, 1, 0, 1, 2, 0):
        layer, x = layers[number], random_tokens(rng, 2, 32)
        driver.select(number)
        driver.set_resident(np.ones(layer.n_experts, dtype=bool))
        side = random_side(rng, 2, DOMAINS)
        assert same_bits(driver.run(x, side), golden.run(layer, x, SEVERAL, side).y)
    assert set(kinds) == {Kind.RESIDENT} and driver.read("IMAGE") == image.id
    driver.load(compiler.compile(layers[1], SEVERAL))
    assert driver.read("IMAGE") == 0
    x = tokens(2, seed=8)
    assert same_bits(driver.run(x), golden.run(layers[1], x, SEVERAL).y)


def test_contents_in_files_are_those_of_the_text(tmp_path, layer):
    """What Yosys reads for a bitstream holds the weights that a simulator reads."""
    text = verilog.generate(CONFIG, compiler.compile(layer, CONFIG))
    short, files = verilog.contents_apart(text)
    for name, file in ({"whole.v": text, "short.v": short} | files).items():
        (tmp_path / name).write_text(file)
    found = []
    for name in ("whole", "short"):
        read = f"hierarchy -top {verilog.MODULE}; proc; opt_clean; memory_collect; flatten"
        run_yosys([f"read_verilog {name}.v", read, f"write_json {name}.json"], tmp_path, f"{name}.log")
        cells = json.loads((tmp_path / f"{name}.json").read_text())["modules"][verilog.MODULE]["cells"]
        memories = {n: cell for n, cell in cells.items() if cell["type"] == "$mem_v2" and "$auto" not in n}
        found.append({n: cell["parameters"]["INIT"] for n, cell in memories.items()})
    assert found[0] == found[1]
    assert sum(bits.count("1") for bits in found[0].values()) > 8 * len(compiler.compile(layer, CONFIG).words)


def test_an_image_has_a_name_of_its_own(layer):
    image = compiler.compile(layer, CONFIG)
    names = {image.id, compiler.compile(layer, CONFIG).id}
    assert len(names) == 1 and 0 not in names
    words = image.words.copy()
    words[0, 0, 0] ^= 1
    registers = image.registers | {"TOP_K": 1}
    names |= {replace(image, words=words).id, replace(image, registers=registers).id}
    assert len(names) == 3
