"""A simulated board that the command line serves, and text through it."""

import json
import re
import signal
import subprocess
import sys

import pytest
from test_cli import refused, run

from expertile.options import ROOT
from expertile.text import _assign
from sw_model.errors import ExpertileError


@pytest.fixture(params=["terminal", "socket"])
def port(request):
    """What ``expertile serve`` says that hosts open."""
    code = "from expertile.cli import main; main()"
    way = ["--tcp", "0"] if request.param == "socket" else []
    command = [sys.executable, "-c", code, "serve", "--config", "tiny", *way]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        found = re.fullmatch(r"ulx3s_85f, configuration tiny: (sim://127\.0\.0\.1:\d+|/dev/\S+)\n", line)
        assert found, line
        yield found[1]
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "switched off\n"
    assert process.returncode == 0


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


def test_ports_and_layers():
    assert _assign([], [1, 3]) == {}
    assert _assign(["/dev/ttyUSB0"], [1, 3]) == {1: "/dev/ttyUSB0"}
    assert _assign(["a", "1=b"], [1, 3, 4]) == {1: "b", 3: "a"}
    assert _assign(["a", "b"], [1, 3]) == {1: "a", 3: "b"}
    for ports in (["2=a"], ["a", "b", "c"], ["1=a", "1=b"], ["x=a"]):
        with pytest.raises(ExpertileError, match=r"no MoE layer is left for it.*1, 3: give PORT or LAYER="):
            _assign(ports, [1, 3])


def test_refusals(tiny_checkpoint, tmp_path, capsys):
    options = ("--checkpoint", tiny_checkpoint, "--config", "tiny", "--prompt", "a", "--port")
    refused(capsys, tmp_path, run("generate", *options, tmp_path / "tty"), "name a serial port")
    refused(capsys, tmp_path, run("generate", *options, "sim://127.0.0.1:1"), "cannot be opened")
    refused(capsys, tmp_path, run("generate", *options, "x", "--engine", "verilator"), "golden engine")
    refused(capsys, tmp_path, run("serve", "--board", "nope"), "'nope'")
