"""One driver over every way to reach an accelerator: AXI ports, a serial port, a socket to a simulation."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from random_layers import random_side, random_tokens
from sim_layers import DOMAINS, Case, random_quantised, same_bits

from driver.accelerator import Driver
from driver.link import Link
from driver.link_bus import LinkBus
from driver.pipes import PortPipe
from hw.boards.catalogue import BOARDS
from hw.host.frames import Frame, Kind
from hw.host.registers import OLDEST_VERSION, VERSION_VALUE
from sim.board import open_board
from sim.build import build_verilator, generated
from sim.server import Listener, Terminal, serve
from sim.verilator import Core
from sw_model import compiler, golden
from sw_model.config import load_config
from sw_model.errors import ExpertileError
from sw_model.pages import PageTable

pytestmark = pytest.mark.sim

CONFIG = load_config("tiny")
SHAPE = {"hidden": 32, "experts": 4, "shared": 32}
SMALL = {"hidden": 32, "experts": 2}
BOARD = BOARDS["ulx3s_85f"]
WAYS = ("axi", "serial", "socket")


@pytest.fixture(scope="module", params=WAYS)
def driver(request):
    """Over a core's AXI ports; else over a real port whose other end is a board, pins and all."""
    if request.param == "axi":
        with Core(build_verilator(generated(CONFIG))) as core:
            yield Driver(core)
        return
    stop, line = threading.Event(), open_board(BOARD, CONFIG)
    door = Terminal() if request.param == "serial" else Listener()
    thread = threading.Thread(target=serve, args=(line, door, stop), daemon=True)
    thread.start()
    driver = Driver(LinkBus(Link(PortPipe(door.name))))
    yield driver
    driver.close()
    stop.set()
    thread.join(10)
    door.close()


def tokens(n, seed):
    return random_tokens(np.random.default_rng(seed), n, 32)


def test_what_it_is(driver):
    driver.require(CONFIG)
    with pytest.raises(ExpertileError, match=r"made from configuration 'tiny' .*not 'two'.*--config tiny"):
        driver.require(replace(CONFIG, name="two"))


@pytest.mark.parametrize("fmt", ["mixed", "int4"])
def test_one_layer_after_the_other(driver, fmt):
    layer = random_quantised(Case(fmt=fmt, shape=SHAPE), CONFIG, seed=1)
    driver.load(compiler.compile(layer, CONFIG))
    for n in (4, 0, 1):
        x = tokens(n, seed=n)
        want = golden.run(layer, x, CONFIG)
        assert same_bits(driver.run(x), want.y)
        counters = driver.counters()
        assert counters["TOKENS"] == n
        assert counters["WORD_READS"] == want.stats.word_reads
        assert driver.read("STATUS") == 0


def test_gate(driver):
    """Side band and residency reach the gate."""
    layer = random_quantised(Case(fmt="int4", gate=True, shape=SHAPE), CONFIG, seed=2)
    driver.load(compiler.compile(layer, CONFIG))
    rng, x = np.random.default_rng(3), tokens(8, seed=3)
    side, resident = random_side(rng, len(x), DOMAINS), np.array([True, False, False, True])
    driver.set_resident(resident)
    want = golden.run(layer, x, CONFIG, side, resident)
    assert same_bits(driver.run(x, side), want.y)
    assert want.stats.removed.items() <= driver.counters().items()
    assert any(want.stats.removed.values())


def test_pages(driver):
    """Experts are sent when they are asked for, and residency is known from call to call."""
    layer = random_quantised(Case(fmt="int4", shape=SHAPE), CONFIG, seed=4)
    driver.load(compiler.compile(layer, CONFIG, slots=2))
    table = PageTable(2)
    assert not driver.resident().any()
    for n in (6, 1, 3):
        x = tokens(n, seed=10 + n)
        want = golden.run(layer, x, CONFIG)
        hits, loaded = table.follow(want)
        assert same_bits(driver.run(x), want.y)
        counters = driver.counters()
        assert (counters["PAGE_HITS"], counters["PAGE_MISSES"]) == (hits, len(loaded))
        assert np.array_equal(driver.resident(), table.mask(4))
    assert driver.read("STATUS") == 0


def test_refusals(driver):
    with pytest.raises(RuntimeError, match="write of ID: SLVERR"):
        driver.write("ID", 1)
    layer = random_quantised(Case(fmt="int4", shape=SMALL), CONFIG, seed=5)
    image = compiler.compile(layer, CONFIG)
    twice = {name: np.concatenate([getattr(image, name)] * 2) for name in ("words", "scales")}
    with pytest.raises(RuntimeError, match=r"refused weights: is 'tiny' what it was made from"):
        driver.load(replace(image, **twice))
    driver.load(image)
    assert same_bits(driver.run(tokens(1, seed=5)), golden.run(layer, tokens(1, seed=5), CONFIG).y)


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_lamps_and_noise(noise):
    """The lamps tell what goes on, an error too; and what the line damages is sent again."""
    line = open_board(BOARD, CONFIG, noise=noise, seed=3)
    link = Link(line, timeout=0.01)
    driver = Driver(LinkBus(link))
    heartbeat, busy, error, up, traffic = 1, 2, 4, 8, 0x30
    assert line.lamps & ~(heartbeat | error) == up | traffic
    layer = random_quantised(Case(fmt="int4", shape=SMALL), CONFIG, seed=6)
    driver.load(compiler.compile(layer, CONFIG))
    x = tokens(5, seed=6)
    assert same_bits(driver.run(x), golden.run(layer, x, CONFIG).y)
    assert (link.retries > 0) == (noise > 0)
    assert line.lamps & ~heartbeat == busy | up | traffic | (error if noise else 0)
    if not noise:
        with pytest.raises(RuntimeError):
            driver.write("ID", 1)
        assert line.lamps & error


class Fake:
    """The link of a device that answers as it is told: kind -> (kind, words) or an error."""

    capacity = 64

    def __init__(self, **answers):
        self.answers, self.asked = answers, []

    def ask(self, kind, words=()):
        self.asked.append(kind)
        answer = self.answers[kind.name]
        return Frame(answer[0], 0, tuple(answer[1]))


@pytest.mark.parametrize(
    ("fetched", "message"),
    [
        ((Kind.DONE, []), r"no result of token 0, asked for 64 times: it hangs"),
        ((Kind.RESULT, [0] * 31), r"result of 31 elements, not 32"),
        ((Kind.PAGE, [7 | 1 << 16]), r"asks for page 7, of 0"),
    ],
)
def test_a_device_that_is_wrong(fetched, message):
    bus = LinkBus(Fake(TOKEN=(Kind.DONE, []), FETCH=fetched))
    with pytest.raises(RuntimeError, match=message):
        bus.run(tokens(3, seed=1))


def test_not_an_accelerator():
    def device(**registers):
        class Bus:
            def read(self, address):
                return {0: registers.get("ID", 0x45585054), 4: registers["VERSION"]}.get(address, 0), 0

        return Driver(Bus())

    with pytest.raises(ExpertileError, match="ID is 0x00000007: no Expertile"):
        device(ID=7, VERSION=0).require(CONFIG)
    assert OLDEST_VERSION == 0x02_0500
    for version in (0x01_0200, 0x02_0100, 0x02_0400, 0x03_0200):
        with pytest.raises(ExpertileError, match=r"register map is .*build the bitstream anew"):
            device(VERSION=version).require(CONFIG)


@pytest.mark.parametrize("version", [VERSION_VALUE, OLDEST_VERSION])
def test_the_preset_is_named(version):
    class Bus:
        def read(self, address):
            return {0: 0x45585054, 4: version, 16: int(load_config("tiny").hash[:8], 16)}[address], 0

    Driver(Bus()).require(load_config("tiny"))
    with pytest.raises(ExpertileError, match=r"configuration 'tiny' .*not 'base' .*use --config tiny"):
        Driver(Bus()).require(load_config("base"))
