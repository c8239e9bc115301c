"""calibrate, trace and gate-study on a tiny checkpoint, and --gate on the other commands."""

import csv
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from test_cli import refused, run

from expertile.options import ROOT
from sw_model import golden
from sw_model.checkpoint import Checkpoint
from sw_model.config import load_config
from sw_model.energy.counters import of_array, of_work
from sw_model.gate import SideBand
from sw_model.gate_file import load
from sw_model.quantised import quantise


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("texts"), np.random.default_rng(6)
    for name, first in (("low", 40), ("high", 90)):
        (folder / f"{name}.txt").write_bytes(rng.integers(first, first + 30, 600).astype(np.uint8).tobytes())
    return [folder / "low.txt", folder / "high.txt"]


@pytest.fixture(scope="module")
def common(tiny_checkpoint):
    return "--checkpoint", tiny_checkpoint, "--config", "tiny"


@pytest.fixture(scope="module")
def gate(common, texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("gate") / "gate.json"
    options = ("--text", texts[0], "--text", texts[1], "--max-bytes", 300, "-o", path)
    assert run("calibrate", *common, *options) == 0
    return path


def test_calibrate_text(gate, tiny_checkpoint):
    got = load(gate)
    assert (got.domains, got.target, sorted(got.layers)) == (("low", "high"), 1.2, [0, 1])
    assert got.achieved["mean_experts"] == pytest.approx(1.2, abs=0.3)
    assert set(got.achieved["layers"]["0"]) == {"mean_experts", "p_empty", "removed_by_level", "sqnr_db"}
    assert got.achieved["bits_per_byte"]["mean"]["gated"] > 0
    config = load_config("tiny")
    quantise(Checkpoint.open(tiny_checkpoint).moe_layer(1), "int8", config, gate=got.gate(1))


def test_calibrate_prints(common, texts, tmp_path, capsys):
    options = ("--text", texts[0], "--max-bytes", 120, "--target-experts", 0.8, "-o", tmp_path / "g.json")
    assert run("calibrate", *common, *options) == 0
    shown = capsys.readouterr().out
    assert "mean experts" in shown and "P(empty)" in shown and "bits per byte" in shown
    assert load(tmp_path / "g.json").layers[0].domain_rows is None  # one text: one domain


def test_calibrate_activations(common, tmp_path):
    x = np.random.default_rng(3).standard_normal((400, 64)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    options = ("--activations", tmp_path / "x.npy", "--layer", 1, "-o", tmp_path / "g.json")
    assert run("calibrate", *common, *options) == 0
    got = load(tmp_path / "g.json")
    assert list(got.layers) == [1] and got.information is None
    assert got.achieved["mean_experts"] == pytest.approx(1.2, abs=0.15)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--target-experts", 3), "top_k of 2"),
        (("--activations", "none.npy"), "no such file"),
        (("--layer", 0), "--activations"),
        (("--text", "none.txt"), "cannot be read"),
        (("--density", "none.safetensors"), "cannot be read"),
        (("--format", "auto"), "name it"),
    ],
)
def test_calibrate_refuses(common, texts, tmp_path, capsys, options, match):
    text = () if "--activations" in options or "--text" in options else ("--text", texts[0])
    code = run("calibrate", *common, *text, "--max-bytes", 64, *options, "-o", tmp_path / "g.json")
    refused(capsys, tmp_path, code, match)


@pytest.mark.parametrize("engine", ["reference", "golden"])
def test_layer_with_a_gate(common, gate, tiny_checkpoint, tmp_path, engine):
    x = np.random.default_rng(3).standard_normal((60, 64)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    files = ("--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy", "--json", tmp_path / "o.json")
    assert run("layer", *common, "--layer", 0, *files, "--gate", gate, "--engine", engine) == 0
    report = json.loads((tmp_path / "o.json").read_text())
    config, moe = load_config("tiny"), Checkpoint.open(tiny_checkpoint).moe_layer(0)
    want = golden.run(quantise(moe, "int8", config, gate=load(gate).gate(0)), x, config, SideBand.empty(60))
    kept = want.decisions.kept
    near = {"abs": 0} if engine == "golden" else {"abs": 0.05}  # float and integers tip at thresholds
    assert report["mean_experts"] == pytest.approx(kept.sum() / 60, **near)
    assert report["p_empty"] == pytest.approx((~kept.any(axis=1)).mean(), **near)
    assert list(report["removed_by_level"]) == ["density", "domain", "cost", "cap"]
    if engine == "golden":
        assert sum(report["removed_by_level"].values()) == 120 - kept.sum()
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), want.y)


def test_generate_and_eval_with_a_gate(common, gate, texts, tmp_path):
    options = ("--prompt", "Once", "--tokens", 4, "--gate", gate, "--json", tmp_path / "g.json")
    assert run("generate", *common, *options) == 0
    report = json.loads((tmp_path / "g.json").read_text())
    assert 0 < report["mean_experts"] < 2 and sum(report["removed_by_level"].values()) > 0
    options = ("--text", texts[0], "--max-bytes", 60, "--gate", gate, "--json", tmp_path / "e.json")
    assert run("eval", *common, *options) == 0
    report = json.loads((tmp_path / "e.json").read_text())
    assert 0 < report["mean_experts"] < 2 and report["p_empty"] < 1
    assert run("eval", *common, *options[:4], "--json", tmp_path / "e.json") == 0
    report = json.loads((tmp_path / "e.json").read_text())
    assert (report["mean_experts"], report["p_empty"], report["removed_by_level"]) == (2, None, None)


@pytest.mark.parametrize("wrong", ["", "REMOVED_COST", "EMPTY_TOKENS", "ACT_READS"])
def test_hardware_counters_must_agree(common, gate, tmp_path, capsys, monkeypatch, wrong):
    def open_engine(name, layer, config, **_):
        def run_gated(x, side):
            want = golden.run(layer, x, config, side)
            counters = of_work(want) | of_array(layer, config, want) | {"BUSY_CYCLES": 10}
            counters |= {wrong: -1} if wrong else {}
            return SimpleNamespace(y=want.y, experts=None, counters=counters)

        return SimpleNamespace(run=run_gated, close=lambda: None)

    monkeypatch.setattr("sim.engines.open_engine", open_engine)
    options = ("--prompt", "Once", "--tokens", 2, "--gate", gate, "--engine", "verilator")
    assert run("generate", *common, *options) == (1 if wrong else 0)
    assert (f"differ in counter {wrong}: -1, not" in capsys.readouterr().err) == bool(wrong)


def test_a_gate_of_another_model(gate, tmp_path, capsys, make_checkpoint):
    folder = make_checkpoint(num_experts=4)
    options = ("--config", "tiny", "--gate", gate, "--prompt", "ab", "--tokens", 1)
    refused(
        capsys, tmp_path, run("generate", "--checkpoint", folder, *options), "gate: domain_bias has shape"
    )


def test_trace(common, gate, texts, tmp_path):
    options = ("--gate", gate, "--text", texts[0], "--text", texts[1], "--max-bytes", 40, "-o", tmp_path)
    assert run("trace", *common, *options) == 0
    with (tmp_path / "trace.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 41  # layers, texts, bytes and the beginning
    assert {row["text"] for row in rows} == {"low", "high"} == {row["domain"] for row in rows}
    assert {row["removed_2"] for row in rows} >= {"", "cost"}
    assert float(rows[5]["weight_1"]) + float(rows[5]["weight_2"]) == pytest.approx(1, abs=1e-4)
    for name in ("experts.png", "text-low.png", "text-high.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "trace.html").read_text()
    assert page.count("<h2>layer") == 2 and "removed by cost" in page


def test_trace_of_a_prompt(common, gate, tmp_path, capsys):
    assert run("trace", *common, "--gate", gate, "--prompt", 'a <b>, "c"', "-o", tmp_path / "out") == 0
    with (tmp_path / "out" / "trace.csv").open(newline="") as file:
        assert "".join(row["character"] for row in csv.DictReader(file))[1:11] == 'a <b>, "c"'
    assert "&lt;" in (tmp_path / "out" / "trace.html").read_text()
    capsys.readouterr()
    code = run("trace", *common, "--gate", gate, "--prompt", "a", "-o", tmp_path / "none")
    assert code == 2 and "two bytes" in capsys.readouterr().err


def test_gate_study(common, texts, tmp_path):
    options = ("--text", texts[0], "--text", texts[1], "--max-bytes", 90, "-o", tmp_path)
    assert run("gate-study", *common, *options) == 0
    report = json.loads((tmp_path / "gate-study.json").read_text())
    assert report["top_k"]["mean_experts"] == 2 and report["first"]["mean_experts"] == 1
    means = [row["mean_experts"] for row in report["curve"]]
    assert means == sorted(means) and len(means) == 7
    assert report["ablation"]["level 3 off"]["mean_experts"] > 1.8
    assert (tmp_path / "gate-study.png").read_bytes().startswith(b"\x89PNG")


def test_trace_under_a_budget(common, gate, texts, tmp_path):
    options = ("--gate", gate, "--text", texts[0], "--max-bytes", 60, "-o", tmp_path)
    budget, runs = 1000.0, []
    for _ in range(2):
        assert run("trace", *common, *options, "--energy-budget", budget) == 0
        with (tmp_path / "trace.csv").open(newline="") as file:
            runs.append(list(csv.DictReader(file)))
        budget = 0.7 * sum(float(r["nj"]) for r in runs[0]) / 61
    free, held = runs
    assert {(r["lambda"], r["cap"], r["sparse_attention"]) for r in free} == {("0.0000", "255", "0")}
    assert sum(float(r["nj"]) for r in held) / 61 == pytest.approx(budget, rel=0.06)
    assert len(held) == len(free) == 2 * 61
    for name, most in (("sparse_attention", 3), ("high_nibble", 1)):
        assert max(int(r[name]) for r in held) == most
    assert min(int(r["cap"]) for r in held) < 2 and min(float(r["credit_nj"]) for r in held) < 0


def test_generate_under_a_budget(common, gate, tmp_path, capsys):
    options = ("--prompt", "a bc", "--tokens", 80, "--gate", gate, "--json", tmp_path / "g.json")
    assert run("generate", *common, *options, "--energy-budget", 100) == 0
    free = json.loads((tmp_path / "g.json").read_text())["governor"]
    assert len(free["trace"]) == 79 and free["budget_from"] == 40  # the first token comes out of the prompt
    assert not free["attention"] and free["trace"][30]["cap"] == []  # not governed yet
    assert all((row["lambda"], row["cap"]) == ([0, 0], [255, 255]) for row in free["trace"][40:])
    row, budget = free["trace"][60], 0.8 * free["nj_after"]
    (everything,) = free["modes"]  # the governor is there and has nothing to do: the free model's own bits
    assert (everything["mode"], everything["tokens"]) == ("all", 79)
    assert 0 <= everything["more_bits"] < 1e-3 < everything["bits_per_byte"]
    assert everything["nj"] == pytest.approx(np.mean([r["nj"] for r in free["trace"]]))

    assert run("generate", *common, *options, "--energy-budget", budget, "--budget-from", 20) == 0
    report = json.loads((tmp_path / "g.json").read_text())
    assert report["technology"] == "cacti22"
    held = report["governor"]
    for a, b in zip(held["trace"][:20], free["trace"][:20], strict=True):  # up to rounding of the weights
        assert (a["nj"], a["experts"]) == (pytest.approx(b["nj"], rel=0.02), b["experts"])
    assert held["nj_after"] == pytest.approx(budget, rel=0.05)
    assert held["kept"] and free["kept"]
    assert held["experts_after"] < free["experts_after"] and held["attention"]
    assert max(max(r["attention"], default=0) for r in held["trace"]) == 3 and row["attention"] == [0, 0]
    out = capsys.readouterr().out
    assert "nj_after" in out and "fewer experts" in out
    first, *saving = held["modes"]
    assert first["mode"] == "all" and first["more_bits"] < 1e-3
    assert first["tokens"] + sum(mode["tokens"] for mode in saving) == 79
    assert saving[-1]["mode"] == "fewer experts" and saving[-1]["nj"] < first["nj"]
    assert all(mode["bits_per_byte"] > mode["more_bits"] > first["more_bits"] for mode in saving)


def test_a_budget_needs_a_gate_and_an_engine_that_has_it(common, gate, tmp_path, tmp_path_factory, capsys):
    options = ("generate", *common, "--prompt", "a", "--energy-budget", 5)
    refused(capsys, tmp_path, run(*options), "--gate")
    refused(capsys, tmp_path, run(*options, "--gate", gate, "--engine", "reference"), "golden")
    refused(capsys, tmp_path, run(*options, "--gate", gate, "--technology", "3nm"), "'3nm'")
    refused(capsys, tmp_path, run(*options, "--gate", gate, "--engine", "icarus"), "use verilator")
    refused(capsys, tmp_path, run(*options, "--gate", gate, "--budget-from", 200), "give less")
    refused(capsys, tmp_path, run(*options[:-1], "inf", "--gate", gate), "a positive number")
    text = (ROOT / "sw_model" / "presets" / "tiny.toml").read_text()
    without = tmp_path_factory.mktemp("config") / "none.toml"
    without.write_text(text + "governor = false\n")
    code = run(*options, "--gate", gate, "--config", without)
    refused(capsys, tmp_path, code, "governor = true")


def test_a_budget_that_no_token_can_do_with(common, gate, tmp_path, capsys):
    """Refused before the first byte, with what is missing; what it asks for is then enough."""
    options = ("generate", *common, "--prompt", "a", "--tokens", 70, "--gate", gate, "--format", "int8")

    def budget(nj):
        return run(*options, "--energy-budget", nj, "--json", tmp_path / "g.json")

    code = budget(1)
    said = capsys.readouterr()
    assert (code, said.out) == (2, "") and "layer 0 may take 0.5 nJ" in said.err
    least = float(re.search(r"at least ([0-9.]+) times", said.err)[1])
    refused(capsys, tmp_path, budget(0.99 * least), "with no routed expert")
    assert budget(least) == 0  # but for attention, which takes something too
    report = json.loads((tmp_path / "g.json").read_text())["governor"]
    assert not report["kept"] and report["nj_after"] > report["budget_nj"] == pytest.approx(least)
