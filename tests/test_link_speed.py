"""Weights and tokens timed over every link."""

import json

import numpy as np
import pytest
from random_layers import random_tokens
from sim_layers import Case, random_quantised
from test_cli import run
from test_standalone import BOARD, CONFIG, SHAPE

from hw.boards.catalogue import BOARDS
from sim import link_speed
from sim.verilator import Core
from sw_model import compiler
from sw_model.errors import ExpertileError


@pytest.fixture(scope="module")
def layer():
    return random_quantised(Case(fmt="mixed", gate=True, shape=SHAPE), CONFIG, seed=31)


def measure(layer, board=BOARD, tokens=3):
    image = compiler.compile(layer, CONFIG)
    x = random_tokens(np.random.default_rng(1), tokens, 32)
    return list(link_speed.measure(board, CONFIG, layer, image, x, 2048))


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(3600)  # three models to build
def test_links(layer, monkeypatch):
    rows = {row["link"]: row for row in measure(layer)}
    assert list(rows) == ["AXI", "UART", "SPI"] and all(
        row.keys() == link_speed.COLUMNS.keys() for row in rows.values()
    )
    # A byte takes 10 bits of the UART's line and 8 of the SPI's; frames, escapes and answers are on top.
    line = {"UART": BOARD.baud / 10, "SPI": BOARD.clock_mhz * 1e6 / 8 / 8}
    for name, most in line.items():
        assert 0.3 * most < 1000 * rows[name]["weights_kb_s"] < most
        assert rows[name]["latency_us"] > 1e6 * 2 * 4 * 32 / most  # elements there and back
    assert 0.2 < rows["AXI"]["weights_kb_s"] / (BOARD.clock_mhz * 16e3) < 1
    assert rows["AXI"]["latency_us"] < rows["SPI"]["latency_us"] < rows["UART"]["latency_us"]
    assert all(row["per_token_us"] < 1.1 * row["latency_us"] for row in rows.values())

    run = Core.run
    monkeypatch.setattr(Core, "run", lambda core, x: run(core, x) + 1)
    with pytest.raises(RuntimeError, match="AXI: results are not"):
        measure(layer)


def test_refusals(layer):
    with pytest.raises(ExpertileError, match="a board with a UART"):
        measure(layer, board=BOARDS["orangecrab_85f_spi"])
    with pytest.raises(ExpertileError, match="one token or more"):
        measure(layer, tokens=0)


def test_command(monkeypatch, tiny_checkpoint, tmp_path):
    """What is measured is one layer, its image and random tokens; rows come out as a table and as JSON."""
    seen = {}

    def measured(board, config, layer, image, x, part):
        seen.update(board=board.name, config=config, layer=layer, image=image, x=x, part=part)
        yield dict.fromkeys(link_speed.COLUMNS, 2.0) | {"link": "AXI"}

    monkeypatch.setattr(link_speed, "measure", measured)
    options = ("--checkpoint", tiny_checkpoint, "--config", "tiny", "--layer", 1, "--tokens", 3, "--part", 2)
    assert run("links", *options, "--json", tmp_path / "l.json") == 0
    assert seen["image"].id == compiler.compile(seen["layer"], seen["config"]).id
    assert seen["x"].shape == (3, 64) and seen["part"] == 2048
    told = json.loads((tmp_path / "l.json").read_text())
    assert (told["layer"], told["board"]) == (1, seen["board"])
    assert told["links"] == [dict.fromkeys(link_speed.COLUMNS, 2.0) | {"link": "AXI"}]
