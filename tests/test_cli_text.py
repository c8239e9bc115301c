"""generate, eval, bench and demo on a tiny checkpoint, and verilog and fpga at their edges."""

import json

import numpy as np
import pytest
from test_cli import fake, refused, run  # noqa: F401 (fake is a fixture)

from expertile.options import ROOT
from hw.host.register_files import c_header, svd
from hw.ip_xact import component
from sw_model import reference
from sw_model.checkpoint import Checkpoint
from sw_model.compiler import compile
from sw_model.config import load_config
from sw_model.decoder import Decoder, generate
from sw_model.evaluation import evaluate
from sw_model.gate_file import load
from sw_model.joined import join
from sw_model.quantised import quantise


def float_decoder(folder):
    checkpoint = Checkpoint.open(folder)
    layers = {n: checkpoint.moe_layer(n) for n in checkpoint.moe_layers}
    return Decoder(checkpoint, lambda n, x: reference.run(layers[n], x).y.astype(np.float32))


def test_generate(tiny_checkpoint, tmp_path, capsys):
    options = (
        "--checkpoint",
        tiny_checkpoint,
        "--prompt",
        "Once",
        "--tokens",
        12,
        "--json",
        tmp_path / "g.json",
    )
    assert run("generate", *options, "--engine", "reference", "--seed", 4) == 0
    report = json.loads((tmp_path / "g.json").read_text())
    want = bytes(generate(float_decoder(tiny_checkpoint), b"Once", 12, temperature=0.7, seed=4))
    assert report["text"] == want.decode("utf-8", "replace")
    assert (report["engine"], report["format"], report["layer_calls"]) == ("reference", "float64", 24)
    shown = capsys.readouterr().out
    assert shown.startswith("Once")
    assert "\x1b" not in shown and "\0" not in shown  # model output cannot steer the terminal


def test_generate_on_an_engine_that_agrees(tiny_checkpoint, fake, tmp_path):  # noqa: F811
    opened = fake()
    options = ("--checkpoint", tiny_checkpoint, "--config", "tiny", "--prompt", "a", "--tokens", 3)
    assert run("generate", *options, "--engine", "verilator", "--json", tmp_path / "g.json") == 0
    assert len(opened) == 2 and all(e.closed for e in opened)
    report = json.loads((tmp_path / "g.json").read_text())
    assert (report["layer_calls"], report["cycles"]) == (6, 6000)


def test_generate_on_an_engine_that_is_wrong(tiny_checkpoint, fake, capsys):  # noqa: F811
    opened = fake(flip=True)
    options = ("--checkpoint", tiny_checkpoint, "--config", "tiny", "--prompt", "abcdef")
    assert run("generate", *options, "--engine", "icarus") == 1
    assert "layer 0: icarus and golden differ" in capsys.readouterr().err
    assert len(opened) == 2 and all(e.closed for e in opened)


def test_generate_needs_bytes(make_checkpoint, capsys, tmp_path):
    folder = make_checkpoint(vocab_size=300)
    refused(capsys, tmp_path, run("generate", "--checkpoint", folder, "--prompt", "a"), "300")


def test_eval(tiny_checkpoint, tmp_path, capsys):
    text = bytes(np.random.default_rng(1).integers(32, 127, 150).tolist())
    (tmp_path / "code.txt").write_bytes(text)
    (tmp_path / "law.txt").write_bytes(text[:40])
    options = (
        "--checkpoint",
        tiny_checkpoint,
        "--text",
        tmp_path / "code.txt",
        "--text",
        tmp_path / "law.txt",
    )
    options += ("--context", 64, "--stride", 16, "--max-bytes", 100)
    assert run("eval", *options, "--engine", "reference", "--json", tmp_path / "e.json") == 0
    report = json.loads((tmp_path / "e.json").read_text())
    texts = {"code": [text[:100]], "law": [text[:40]]}
    scores = evaluate(float_decoder(tiny_checkpoint), texts, context=64, stride=16)
    want = {name: score.bits_per_byte for name, score in scores.items()}
    assert report["bits_per_byte"] == pytest.approx(want)
    assert report["bytes"] == {"code": 100, "law": 40}
    assert report["mean_bits_per_byte"] == pytest.approx(np.mean(list(want.values())))
    assert "code" in capsys.readouterr().out
    assert run("eval", *options, "--config", "tiny", "--json", tmp_path / "q.json") == 0
    golden = json.loads((tmp_path / "q.json").read_text())
    assert golden["mean_bits_per_byte"] == pytest.approx(report["mean_bits_per_byte"], rel=0.02)


def test_eval_refuses(tiny_checkpoint, tmp_path, capsys):
    options = ("eval", "--checkpoint", tiny_checkpoint, "--text")
    refused(capsys, tmp_path, run(*options, tmp_path / "none.txt"), "none.txt")
    (tmp_path / "x.npy").write_text("a text")
    refused(capsys, tmp_path, run(*options, tmp_path / "x.npy", "--context", 500, "--config", "tiny"), "96")


def test_unknown_board(tmp_path, capsys):
    refused(capsys, tmp_path, run("fpga", "--board", "nope", "-o", tmp_path / "fpga"), "'nope'")


def test_fpga_refuses_before_it_builds(tmp_path, capsys, tiny_checkpoint):
    options = ("fpga", "--board", "ulx3s_85f", "-o", tmp_path / "fpga")
    refused(capsys, tmp_path, run(*options, "--config", "nope"), "'nope'")
    refused(capsys, tmp_path, run(*options, "--checkpoint", tiny_checkpoint, "--layer", 2), "layer 2")
    both = ("--checkpoint", tiny_checkpoint, "--standalone", "--config", "tiny")
    refused(capsys, tmp_path, run(*options, *both), "2 layers are over its max_layers of 1")
    options = ("fpga", "--board", "ulx3s_45f", "--layer", 0, "-o", tmp_path / "fpga")
    refused(capsys, tmp_path, run(*options), "only 3 of the experts of layer 0 fit")
    options = ("fpga", "--board", "ulx3s_85f", "--standalone", "-o", tmp_path / "fpga")
    refused(capsys, tmp_path, run(*options), "the 5 layers need 43800 macro words a tile")


def test_fpga_bakes_the_layers_it_is_given(tmp_path, capsys, tiny_checkpoint, monkeypatch):
    seen = []

    def build(board, config, folder, progress, image):
        progress("placing")
        seen.append((board, config.name, image))
        return {"fmax_mhz": 61.5, "seconds": 3}

    monkeypatch.setattr("hw.boards.flow.build", build)
    options = ("fpga", "--board", "ulx3s_85f", "-o", tmp_path / "fpga", "--config", "tiny")
    assert run(*options) == run(*options, "--checkpoint", tiny_checkpoint, "--layer", 1) == 0
    options = ("fpga", "--board", "ulx3s_85f", "-o", tmp_path / "fpga", "--checkpoint")
    assert (
        run(*options, tiny_checkpoint, "--standalone")
        == run(*options, ROOT / "models" / "tiny", "--layer", 3)
        == 0
    )
    gate = ROOT / "models" / "tiny" / "gate.json"
    assert run(*options, ROOT / "models" / "tiny", "--standalone", "--gate", gate) == 0
    configs = ["tiny", "tiny", "ulx3s_85f_layers", "ulx3s_85f", "ulx3s_85f_layers"]
    assert [s[:2] for s in seen] == [("ulx3s_85f", name) for name in configs]
    model, shipped, gates = (
        Checkpoint.open(tiny_checkpoint),
        Checkpoint.open(ROOT / "models" / "tiny"),
        load(gate),
    )

    def name(checkpoint, config, numbers, gated=False):
        config = load_config(config)
        layers = [(checkpoint.moe_layer(n), gates.gate(n) if gated else None) for n in numbers]
        images = [compile(quantise(layer, "int4", config, gate=g), config) for layer, g in layers]
        return join(images, config).id

    assert seen[0][2] is None
    assert [image.id for _, _, image in seen[1:]] == [
        name(model, "tiny", [1]),
        name(model, "ulx3s_85f_layers", model.moe_layers),
        name(shipped, "ulx3s_85f", [3]),
        name(shipped, "ulx3s_85f_layers", range(4), gated=True),
    ]
    assert "61.5" in capsys.readouterr().out


def test_verilog_refuses(tmp_path, capsys):
    refused(capsys, tmp_path, run("verilog", "--config", "nope", "-o", tmp_path / "a.v"), "'nope'")
    refused(capsys, tmp_path, run("verilog", "-o", tmp_path / "no" / "a.v"), "no folder")
    for taken in ("json", "h", "svd"):
        refused(capsys, tmp_path, run("verilog", "-o", tmp_path / f"a.{taken}"), "another ending")
    refused(
        capsys, tmp_path, run("verilog", "--ip-xact", "-o", tmp_path / "component.xml"), "another, as x.v"
    )


def test_verilog(tmp_path):
    assert run("verilog", "--config", "tiny", "--ip-xact", "-o", tmp_path / "a.v") == 0
    text = (tmp_path / "a.v").read_text()
    assert "module expertile_top(" in text and str(ROOT) not in text
    description = json.loads((tmp_path / "a.json").read_text())
    assert description["config_hash"] == load_config("tiny").hash
    assert {"ports", "registers", "config"} <= description.keys()
    assert all(f" {port['name']};" in text for port in description["ports"])
    assert (tmp_path / "a.h").read_text() == c_header()
    assert (tmp_path / "a.svd").read_text() == svd()
    assert (tmp_path / "component.xml").read_text() == component(load_config("tiny"), "a.v")


def test_energy(tiny_checkpoint, tmp_path, capsys):
    text = bytes(np.random.default_rng(1).integers(32, 127, 40).tolist())
    (tmp_path / "code.txt").write_bytes(text)
    options = ("energy", "--checkpoint", tiny_checkpoint, "--config", "tiny", "--text", tmp_path / "code.txt")
    options += ("--technology", "cacti22", "--technology", "ihp130")
    assert run(*options, "-o", tmp_path / "out", "--json", tmp_path / "e.json") == 0
    assert "weights" in capsys.readouterr().out
    report = json.loads((tmp_path / "e.json").read_text())
    assert set(report["technologies"]) == {"cacti22", "ihp130"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        f"{kind}-{name}.png" for kind in ("energy", "sweep") for name in ("cacti22", "ihp130")
    }
    counts, told = report["counts_per_token"], report["technologies"]["cacti22"]
    assert (counts["tokens"], counts["experts_used"]) == (1, 4)  # two layers, two experts each
    bits = 128 * counts["word_reads"] + 20 * counts["block_sums"]
    assert told["systems"]["dram"]["parts"]["weights"] == pytest.approx(bits * 3.97 / 1000)
    assert told["conditions"]["shared"] == 2
    (tmp_path / "refused").mkdir()
    for bad in (("--technology", "3nm"), ("--macro", "3KB"), ("--format", "auto")):
        code = run(*options, *bad, "--json", tmp_path / "refused" / "e.json")
        refused(capsys, tmp_path / "refused", code, bad[1])
