"""A simulated board that the command line serves, and text through it."""

import json
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from test_cli import refused, run

from driver.accelerator import Driver
from driver.link import Link
from driver.link_bus import LinkBus
from driver.pipes import PortPipe
from expertile.options import ROOT
from expertile.text import _assign
from sw_model.errors import ExpertileError


@contextmanager
def served(config, *options):
    """What ``expertile serve`` says that hosts open."""
    code = "from expertile.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", "--config", *map(str, (config, *options))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        found = re.fullmatch(r"ulx3s_85f, configuration \w+: (sim://127\.0\.0\.1:\d+|/dev/\S+)\n", line)
        assert found, line
        yield found[1]
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "switched off\n"
    assert process.returncode == 0


@pytest.fixture(params=["terminal", "socket"])
def port(request):
    with served("tiny", *(["--tcp", "0"] if request.param == "socket" else [])) as name:
        yield name


@pytest.mark.sim
def test_text_through_a_board(port, tiny_checkpoint, tmp_path, capsys):
    """One layer on the device, the other on golden: the same text, and the device's cycles."""
    texts = []
    for options in ([], ["--port", f"1={port}"]):
        out = tmp_path / "g.json"
        common = ("--checkpoint", tiny_checkpoint, "--prompt", "On", "--tokens", 3, "--json", out)
        assert run("generate", *common, "--config", "tiny", "--format", "int4", *options) == 0
        texts.append(json.loads(out.read_text()))
        out.unlink()
    golden, device = texts
    assert device["text"] == golden["text"] and golden["cycles"] is None
    assert device["layer_calls"] == golden["layer_calls"] == 6
    assert device["cycles"] > 1000
    assert device["cycles"] == pytest.approx(5 * device["cycles_per_token"])  # bos, prompt, two of three
    options = ("--checkpoint", tiny_checkpoint, "--prompt", "On", "--port", port)
    refused(capsys, tmp_path, run("generate", *options), "use --config tiny")


@pytest.mark.sim
@pytest.mark.slow
def test_text_through_a_board_on_its_own(tiny_checkpoint, tmp_path):
    """All MoE layers are in its block RAM: one port runs them all, and no weights are sent."""
    config = tmp_path / "both.toml"
    config.write_text(
        "tiles = 2\nwords = 4096\nscales = 2048\nmax_hidden = 64\nmax_intermediate = 64\nmax_experts = 8\n"
        "max_top_k = 2\nmax_layers = 2\n"
    )
    text = ("--checkpoint", tiny_checkpoint, "--prompt", "On", "--tokens", 3, "--config", config)
    outs = [tmp_path / "golden.json", tmp_path / "device.json"]
    assert run("generate", *text, "--format", "int4", "--json", outs[0]) == 0
    with served(config, "--standalone", "--checkpoint", tiny_checkpoint, "--tcp", "0") as port:
        assert run("generate", *text, "--format", "int4", "--port", port, "--json", outs[1]) == 0
        bus = LinkBus(Link(PortPipe(port)))
        assert Driver(bus).read("IMAGE") != 0  # what it woke up with is still all that there is
        bus.close()
    golden, device = (json.loads(out.read_text()) for out in outs)
    assert device["text"] == golden["text"] and device["layer_calls"] == 6
    assert device["cycles"] == pytest.approx(2 * 5 * device["cycles_per_token"])


def test_ports_and_layers():
    assert _assign([], [1, 3], 1) == {}
    assert _assign(["/dev/ttyUSB0"], [1, 3], 1) == {1: "/dev/ttyUSB0"}
    assert _assign(["a", "1=b"], [1, 3, 4], 1) == {1: "b", 3: "a"}
    assert _assign(["a", "b"], [1, 3], 1) == {1: "a", 3: "b"}
    for ports in (["2=a"], ["a", "b", "c"], ["1=a", "1=b"], ["x=a"], ["a", "a"], ["1=a", "3=a"]):
        with pytest.raises(ExpertileError, match=r"no MoE layer is left for it.*1, 3: give PORT or LAYER="):
            _assign(ports, [1, 3], 1)


def test_ports_that_hold_several_layers():
    assert _assign(["a"], [1, 3, 4], 8) == {1: "a", 3: "a", 4: "a"}
    assert _assign(["a", "b"], [1, 3, 4], 2) == {1: "a", 3: "a", 4: "b"}
    assert _assign(["a", "3=b"], [1, 3, 4], 2) == {1: "a", 3: "b", 4: "a"}
    assert _assign(["4=a", "1=a"], [1, 3, 4], 2) == {1: "a", 4: "a"}
    for ports in (["a", "b"], ["1=a", "3=a", "4=a", "a"]):
        with pytest.raises(ExpertileError, match=r"a device runs 3 \(max_layers\)"):
            _assign(ports, [1, 3, 4], 3)


def test_refusals(tiny_checkpoint, tmp_path, capsys):
    options = ("--checkpoint", tiny_checkpoint, "--config", "tiny", "--prompt", "a", "--port")
    refused(capsys, tmp_path, run("generate", *options, tmp_path / "tty"), "name a serial port")
    refused(capsys, tmp_path, run("generate", *options, "sim://127.0.0.1:1"), "cannot be opened")
    refused(capsys, tmp_path, run("generate", *options, "x", "--engine", "verilator"), "golden engine")
    refused(capsys, tmp_path, run("serve", "--board", "nope"), "'nope'")
    budget = ("--gate", ROOT / "models" / "tiny" / "gate.json", "--energy-budget", 1)
    options = ("--checkpoint", ROOT / "models" / "tiny", "--prompt", "a", "--port", "x", *budget)
    refused(capsys, tmp_path, run("generate", *options, "--config", "ulx3s_85f_layers"), "has one governor")
