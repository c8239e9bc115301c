"""The small core behind its serial line, against the golden model: results, counters, registers, packets."""

from dataclasses import replace

import numpy as np
import pytest
from random_layers import RULES, random_layer, random_tokens
from sim_layers import Case, random_quantised, same_bits

from driver.accelerator import BAD_WEIGHTS, CLEAR, ENABLE, Driver
from driver.link import Link, Refused
from driver.link_bus import LinkBus
from hw.boards.flow import find
from hw.host.frames import Error, Kind
from hw.host.registers import REGISTERS, address, present
from hw.micro.assembler import assemble
from hw.micro.firmware import firmware
from hw.micro.isa import Op
from sim.board import open_board
from sw_model import compiler, golden
from sw_model.config import load_config
from sw_model.energy.counters import of_array, of_work
from sw_model.errors import ExpertileError
from sw_model.packets import Kind as Packet
from sw_model.packets import packet
from sw_model.quantised import ExpertFormats, quantise

pytestmark = pytest.mark.sim

CONFIG = load_config("icebreaker")
SLVERR = 2
LAST = np.ones((2, 4), np.uint32)

PLAIN = {name: shape for name, shape in RULES.items() if "groups" not in shape and "clamped" not in shape}
SHAPES = {
    **PLAIN,
    "sigmoid": {
        "scoring": "sigmoid",
        "selection_bias": True,
        "renormalise": False,
        "scale": 2.5,
        "experts": 6,
    },
    "tiny": {"hidden": 160, "experts": 4, "shared": 64, "gated": True},
    "widest": {"hidden": 160, "width": 64, "experts": 2, "shared": 64},
    "ragged": {"hidden": 49, "width": 20, "experts": 3, "shared": 21},
    "one": {"hidden": 33, "experts": 1, "top_k": 1},
    "wild": {"hidden": 96, "width": 32, "shared": 32, "temper": "wild"},
}


@pytest.fixture
def driver():
    """Of a board of its own, as fast as its line can be."""
    driver = Driver(LinkBus(Link(open_board(find("icebreaker"), CONFIG, seed=7))))
    yield driver
    driver.close()


def check(driver, layer, x):
    """y and all counters that the golden model knows."""
    driver.require(CONFIG)
    driver.load(compiler.compile(layer, CONFIG))
    expected = golden.run(layer, x, CONFIG)
    assert same_bits(driver.run(x), expected.y)
    counters = driver.counters()
    want = of_work(expected) | of_array(layer, CONFIG, expected)
    assert {name: counters[name] for name in want} == want
    assert counters["ACTIVE_CYCLES"] <= counters["BUSY_CYCLES"] <= counters["CYCLES"]


@pytest.mark.parametrize("fmt", ["int4", "mixed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_golden(driver, shape: str, fmt: str) -> None:
    layer = random_quantised(Case(fmt=fmt, shape=SHAPES[shape]), CONFIG, seed=3)
    check(driver, layer, random_tokens(np.random.default_rng(4), 8, layer.hidden))


def test_a_noisy_line_loses_nothing() -> None:
    link = Link(open_board(find("icebreaker"), CONFIG, noise=5e-5, seed=8), timeout=0.03)
    driver = Driver(LinkBus(link))
    layer = random_quantised(Case(fmt="int4", shape={"hidden": 96, "shared": 32}), CONFIG, seed=3)
    check(driver, layer, random_tokens(np.random.default_rng(4), 3, 96))
    assert link.retries
    driver.close()


def test_another_layer_and_a_reset(driver) -> None:
    """Nothing of the last layer, or of a token that was not fetched, stays."""
    rng = np.random.default_rng(5)
    for seed, hidden in enumerate((64, 32, 96)):
        layer = random_quantised(Case(shape={"hidden": hidden, "shared": 32}), CONFIG, seed=seed)
        check(driver, layer, random_tokens(rng, 2, hidden))
        driver.bus._link.ask(Kind.TOKEN, [0, *[0x3F800000] * hidden])
        driver.bus._link.reset()
        assert driver.read("STATUS") == driver.read("CONTROL") == driver.read("HIDDEN") == 0


def test_registers(driver) -> None:
    """Every address: what there is reads back the bits it has, the rest answers with an error."""
    there = {r.offset: r for r in present(CONFIG.features).values()}
    absent = {"PAGE_SLOTS", "PAGE_WORDS", "PAGE_SCALES", "PAGE_WORD_BASE", "PAGE_SCALE_BASE"}
    for offset in (*range(0, 0x400, 4), 0xFFC, 1 << 20):
        r = there.get(offset)
        if r is None:
            assert driver.bus.read(offset) == (0, SLVERR)
            assert driver.bus.write(offset, 1) == SLVERR
        elif r.access.value == "ro":
            assert driver.bus.read(offset)[1] == 0
            assert driver.bus.write(offset, 1) == SLVERR
        elif r.name != "CONTROL":
            assert driver.bus.write(offset, 0xFFFFFFFF) == 0
            kept = 0 if r.name in absent else r.there(CONFIG.features)
            assert driver.bus.read(offset) == (kept, 0), r.name
    assert driver.bus.write(address("CONTROL"), 0xFFFFFFFF) == 0
    assert driver.read("CONTROL") == sum(1 << f.lsb for f in REGISTERS["CONTROL"].fields if not f.pulse)


def test_counters_are_held(driver) -> None:
    first = driver.counters()["CYCLES"]
    assert driver.counters()["CYCLES"] > first
    driver.write("CONTROL", 8)
    assert driver.read("CYCLES") == driver.read("CYCLES")


@pytest.mark.parametrize(
    ("kind", "words", "error"),
    [
        (0x2A, [], Error.UNKNOWN_KIND),
        (Kind.READ, [], Error.WRONG_LENGTH),
        (Kind.READ, [0, 0], Error.WRONG_LENGTH),
        (Kind.WRITE, [8], Error.WRONG_LENGTH),
        (Kind.TOKEN, [0], Error.WRONG_LENGTH),
        (Kind.TOKEN, [], Error.WRONG_LENGTH),
        (Kind.TOKEN, [0] * 165, Error.WRONG_LENGTH),
        (Kind.WEIGHTS, [0] * 5, Error.WRONG_LENGTH),
        (Kind.WEIGHTS, [], Error.WRONG_LENGTH),
        (Kind.FETCH, [0], Error.WRONG_LENGTH),
        (Kind.RESET, [0], Error.WRONG_LENGTH),
    ],
)
def test_refusals(driver, kind, words, error) -> None:
    with pytest.raises((Refused, ValueError)) as refused:
        driver.bus._link.ask(kind, words)
    if isinstance(refused.value, Refused):
        assert refused.value.error == error
    assert driver.read("ID") == REGISTERS["ID"].reset


def test_a_token_that_waits_is_busy_and_one_of_another_length_is_dropped(driver) -> None:
    layer = random_quantised(Case(shape={"hidden": 32}), CONFIG, seed=1)
    driver.load(compiler.compile(layer, CONFIG))
    link, token = driver.bus._link, [0, *[0x3F800000] * 32]
    link.ask(Kind.TOKEN, token)
    link.ask(Kind.TOKEN, token)
    with pytest.raises(Refused, match="busy"):
        link.ask(Kind.TOKEN, token)
    results = [link.ask(Kind.FETCH) for _ in range(3)]
    assert [r.kind for r in results] == [Kind.RESULT, Kind.RESULT, Kind.DONE]
    assert results[0].words == results[1].words
    assert not driver.read("STATUS") & 2
    for length in (31, 33):
        link.ask(Kind.TOKEN, token[: 1 + length] + [0] * (length - 32))
        assert link.ask(Kind.FETCH).kind == Kind.DONE
        assert driver.read("STATUS") & 2
    check(driver, layer, random_tokens(np.random.default_rng(1), 2, 32))


@pytest.mark.parametrize(
    "beats",
    [
        packet(Packet.WORDS, np.ones((2, 4), np.uint32), tile=1),
        packet(Packet.WORDS, np.ones((2, 4), np.uint32), start=CONFIG.words - 1),
        packet(Packet.SCALES, np.ones((1, 4), np.uint32), start=CONFIG.scales),
        packet(Packet.SCALES, np.ones((1, 4), np.uint32), start=2),
        packet(Packet.CONTEXTS, np.ones((1, 4), np.uint32), start=CONFIG.max_experts + 1),
        packet(Packet.BIASES, np.ones((1, 4), np.uint32), start=CONFIG.max_experts),
        packet(Packet.COSTS, np.ones((1, 4), np.uint32)),
        packet(Packet.WORDS, np.ones((1, 4), np.uint32), page=0),
        packet(Packet.WORDS),
        packet(Packet.WORDS, LAST, start=CONFIG.words - 2)[:-1],
        np.concatenate([packet(Packet.WORDS, LAST[:1], start=CONFIG.words - 1), LAST[:1]]),
    ],
)
def test_bad_packets_are_flagged_and_what_is_there_stays(driver, beats) -> None:
    """A packet for a place that there is not writes nothing; a short or long one up to its length."""
    layer = random_quantised(Case(shape={"hidden": 32}), CONFIG, seed=1)
    driver.load(compiler.compile(layer, CONFIG))
    driver.bus.send_weights([beats])
    assert driver.read("STATUS") & BAD_WEIGHTS
    driver.write("CONTROL", ENABLE | CLEAR)
    assert not driver.read("STATUS") & BAD_WEIGHTS
    x = random_tokens(np.random.default_rng(1), 2, 32)
    assert same_bits(driver.run(x), golden.run(layer, x, CONFIG).y)


def test_what_it_does_not_compute_is_refused() -> None:
    for shape, message in (
        ({"router_bias": True}, "computes no biases"),
        ({"expert_bias": True}, "computes no biases"),
        ({"clamped": True}, "clamp = false"),
        ({"experts": 8, "groups": 2}, "max_groups"),
    ):
        with pytest.raises(ExpertileError, match=message):
            random_quantised(Case(shape=shape), CONFIG, seed=1)
    layer = random_quantised(Case(shape={}), CONFIG, seed=1)
    assert layer.experts
    with pytest.raises(ExpertileError, match="read whole weights"):
        random_quantised(Case(fmt="int8-high"), CONFIG, seed=1)
    with pytest.raises(ExpertileError, match="do not multiply fp8"):
        random_quantised(Case(fmt="fp8"), CONFIG, seed=1)


def test_configurations() -> None:
    for change, message in (
        ({"tiles": 2}, 'tiles must be 1 with body "micro"'),
        ({"page_slots": 2}, "page_slots must be 0"),
        ({"gate": True}, "gate must be false"),
        ({"max_hidden": 1 << 15, "max_intermediate": 1 << 14}, "exceed the widths"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(CONFIG, **change)
    with pytest.raises(ExpertileError, match=r"no room \(line .*, over 480\); lower max_hidden"):
        firmware(replace(CONFIG, max_experts=64))
    assert CONFIG.macs_per_cycle == 16


def test_assembler() -> None:
    program = assemble(
        [
            ".array a 3\n.var b\n.word c N+1",
            "start: ld b ; comment\n.x: st a,x\nadd 1<<20\nsub 1<<20\njnz .x\njmp start",
        ],
        {"N": 6},
    )
    assert program.data == (0, 0, 0, 0, 7, 1 << 20)
    assert program.labels == {"start": 0, "start.x": 1}
    assert [word >> 11 for word in program.code] == [Op.LD, Op.ST, Op.ADD, Op.SUB, Op.JNZ, Op.JMP]
    assert [word & 0x7FF for word in program.code] == [3, 1 << 9, 5, 5, 1, 0]
    shared = assemble([".scratch s a b\n.scratch s c\nld a\nld b\nld c"], {})
    assert [word & 511 for word in shared.code] == [0, 1, 0] and len(shared.data) == 2
    for text, message in (
        ("jump x", "line 1: jump: no such operation"),
        ("ld 0\nld nobody", "line 2: LD nobody: 'nobody'"),
        ("jmp away", "line 1: JMP away: no such label"),
        (".var a a", "a is there already"),
        ("x: ld 0\nx: ld 0", "label x is there already"),
        (".array a 600", "600 words of data, over 480"),
        ("ld 0\n" * 2049, "2049 instructions, over 2048"),
    ):
        with pytest.raises(ValueError, match=message):
            assemble([text], {})


def test_formats_differ_from_expert_to_expert(driver) -> None:
    case = Case(shape={"hidden": 64, "experts": 3, "shared": 32})
    layer = random_layer(np.random.default_rng(1), **case.shape)
    formats = [ExpertFormats(gate_up=a, down=b) for a in ("int4", "int8") for b in ("int8", "int4")]
    check(driver, quantise(layer, formats, CONFIG), random_tokens(np.random.default_rng(2), 4, 64))
