"""The command line: what it writes, and that bad input is one line, exit code 2 and no file."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from expertile.cli import main
from expertile.output import write_file
from sw_model import golden, reference
from sw_model.checkpoint import Checkpoint
from sw_model.config import load_config
from sw_model.energy.counters import of_array, of_work
from sw_model.errors import ExpertileError
from sw_model.quantised import quantise


def run(*arguments):
    """Exit code of one command."""
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return caught.value.code


@pytest.fixture
def x(tmp_path):
    value = np.random.default_rng(3).standard_normal((5, 64)).astype(np.float32)
    np.save(tmp_path / "x.npy", value)
    return value


@pytest.fixture
def layer(tiny_checkpoint, tmp_path, x):
    """Run ``expertile layer`` on the tiny checkpoint; options may be overridden."""

    def call(**overrides):
        options = {
            "checkpoint": tiny_checkpoint,
            "layer": 1,
            "input": tmp_path / "x.npy",
            "output": tmp_path / "y.npy",
            "config": "tiny",
            "json": tmp_path / "out.json",
        } | overrides
        return run("layer", *(part for k, v in options.items() for part in (f"--{k}", v)))

    return call


KEYS = {
    "tokens", "experts_per_token", "cycles", "cycles_per_token", "macs", "mac_utilisation", "sqnr_db",
    "routing_agreement", "engine", "format", "config",
}  # fmt: skip


def test_layer_reference(layer, tmp_path, x, tiny_checkpoint):
    assert layer(engine="reference") == 0
    y = np.load(tmp_path / "y.npy")
    assert y.dtype == np.float32
    want = reference.run(Checkpoint.open(tiny_checkpoint).moe_layer(1), x).y
    np.testing.assert_array_equal(y, want.astype(np.float32))
    report = json.loads((tmp_path / "out.json").read_text())
    assert report.keys() >= KEYS
    assert (report["tokens"], report["experts_per_token"], report["routing_agreement"]) == (5, 2, 1)
    assert report["sqnr_db"] > 140


@pytest.mark.parametrize("fmt", ["int8", "int4"])
def test_layer_golden(layer, tmp_path, x, tiny_checkpoint, fmt):
    assert layer(engine="golden", format=fmt) == 0
    config, moe = load_config("tiny"), Checkpoint.open(tiny_checkpoint).moe_layer(1)
    want = golden.run(quantise(moe, fmt, config), x, config)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), want.y)
    report = json.loads((tmp_path / "out.json").read_text())
    exact = reference.run(moe, x)
    error = np.sum((exact.y - want.y) ** 2)
    assert report["sqnr_db"] == pytest.approx(10 * np.log10(np.sum(exact.y**2) / error))
    agree = [set(a) == set(b) for a, b in zip(want.experts.tolist(), exact.experts.tolist(), strict=True)]
    assert report["routing_agreement"] == np.mean(agree)
    assert report["macs"] == want.stats.macs
    assert report["cycles"] is None
    assert (report["engine"], report["format"], report["config"]) == ("golden", fmt, "tiny")


@pytest.mark.parametrize("budget", [{"bits": 6}, {"sqnr": 24}])
def test_layer_auto(layer, tmp_path, budget):
    """Formats of every expert, within the budget; with no budget, two, or one elsewhere: one line."""
    assert layer(format="auto", **budget) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert len(report["formats"]) == 9
    assert {f for e in report["formats"] for f in e.values()} <= {"int4", "mxfp4", "int8", "fp8"}
    if "bits" in budget:
        assert 4.625 <= report["bits_per_weight"] <= 6
    else:
        assert report["sqnr_db"] >= 24
    assert layer(format="auto") == 2
    assert layer(format="auto", bits=6, sqnr=20) == 2
    assert layer(format="int8", **budget) == 2


def test_layer_fits_itself(layer, tmp_path):
    """Without a configuration: the preset, as the layer is small."""
    assert layer(config="auto", calibration=tmp_path / "x.npy", format="int4") == 0
    assert json.loads((tmp_path / "out.json").read_text())["config"] == "base"


def slotted(tmp_path, slots):
    """A configuration with room for fewer experts than the checkpoint has."""
    path = tmp_path / "slotted.toml"
    sizes = {"tiles": 2, "words": 1100, "scales": 800, "max_hidden": 64, "max_intermediate": 64}
    sizes |= {"max_experts": 8, "max_top_k": 2, "page_slots": slots}
    path.write_text("".join(f"{k} = {v}\n" for k, v in sizes.items()))
    return path


def test_layer_with_experts_on_demand(layer, tmp_path, capsys):
    """The same output as with all experts on chip, and how often one was there."""
    assert layer(engine="golden") == 0
    assert "page_hit_rate" not in json.loads((tmp_path / "out.json").read_text())
    whole = (tmp_path / "y.npy").read_bytes()
    assert layer(engine="golden", config=slotted(tmp_path, 3)) == 0
    assert (tmp_path / "y.npy").read_bytes() == whole
    report = json.loads((tmp_path / "out.json").read_text())
    assert 3 <= report["pages_loaded"] < 10
    assert report["page_hit_rate"] == pytest.approx(1 - report["pages_loaded"] / 10)
    assert report["page_stall_cycles"] is None
    capsys.readouterr()
    assert layer(engine="verilator", config=slotted(tmp_path, 1)) == 2
    error = capsys.readouterr().err
    assert "takes 2 experts at once, but there is room for 1" in error and error.count("\n") == 1


class FakeEngine:
    """Stands where the simulated Verilog stands; ``flip`` turns one bit of its output."""

    def __init__(self, name, qlayer, config, *, stalls, seed, flip=False):
        self.options = (name, stalls, seed)
        self.qlayer, self.config, self.flip = qlayer, config, flip
        self.closed = False

    def run(self, x):
        result = golden.run(self.qlayer, x, self.config)
        y = result.y.copy()
        if self.flip:
            y.view(np.uint32)[2, 7] ^= 1
        counters = of_work(result) | of_array(self.qlayer, self.config, result) | {"BUSY_CYCLES": 1000}
        return SimpleNamespace(y=y, experts=None, counters=counters)

    def close(self):
        self.closed = True


@pytest.fixture
def fake(monkeypatch):
    """Put FakeEngine in the simulator's place: ``fake(flip=True) -> list of engines opened``."""

    def install(**options):
        opened = []

        def open_engine(*a, **k):
            opened.append(FakeEngine(*a, **k, **options))
            return opened[-1]

        monkeypatch.setattr("sim.engines.open_engine", open_engine)
        return opened

    return install


def test_layer_on_an_engine_that_agrees(layer, fake, tmp_path):
    opened = fake()
    assert layer(engine="verilator", stalls=0.25, seed=9) == 0
    assert [(e.options, e.closed) for e in opened] == [(("verilator", 0.25, 9), True)]
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["cycles_per_token"] == 200
    assert report["experts_per_token"] == 2
    passes = report["macs"] // 32 * 2  # two nibbles of INT8
    assert passes < report["mac_utilisation"] * 1000 * load_config("tiny").tiles < 1.2 * passes


def test_layer_on_an_engine_that_is_wrong(layer, fake, tmp_path, capsys):
    opened = fake(flip=True)
    assert layer(engine="icarus") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "layer 1: icarus and golden differ in 1 of 320 numbers, first at token 2, element 7" in error
    assert opened[0].closed
    assert not (tmp_path / "y.npy").exists() and not (tmp_path / "out.json").exists()


def refused(capsys, tmp_path, code, match):
    """Exit code 2, one line that holds ``match``, no output and nothing half-written."""
    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    assert match in error
    assert not {p.name for p in tmp_path.iterdir()} - {"x.npy", "checkpoint"}


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (np.zeros((5, 63), np.float32), "[5, 63]"),
        (np.zeros((64,), np.float32), "[64]"),
        (np.zeros((2, 5, 64), np.float32), "[2, 5, 64]"),
        (np.zeros((0, 64), np.float32), "no tokens"),
        (np.zeros((5, 64)), "float64"),
        (np.zeros((5, 64), np.int8), "int8"),
        (np.zeros((5, 64), ">f4"), ">f4"),
        (np.full((5, 64), np.nan, np.float32), "NaN"),
        (np.full((5, 64), -np.inf, np.float32), "infinity"),
        (np.array([["a", None]], dtype=object), ".npy"),
    ],
    ids=str,
)
@pytest.mark.parametrize("engine", ["reference", "golden"])
def test_bad_input(layer, tmp_path, capsys, value, match, engine):
    np.save(tmp_path / "x.npy", value, allow_pickle=True)
    refused(capsys, tmp_path, layer(engine=engine), match)


def test_files_that_are_no_npy(layer, tmp_path, capsys):
    whole = (tmp_path / "x.npy").read_bytes()
    huge = whole.replace(b"(5, 64), }" + b" " * 8, b"(50000000000, 64), }"[:18].ljust(18))
    for data in (b"", b"hello", whole[:-1], whole[:20], huge):
        (tmp_path / "x.npy").write_bytes(data)
        refused(capsys, tmp_path, layer(), "x.npy")
    (tmp_path / "x.npy").unlink()
    refused(capsys, tmp_path, layer(), "no such file")


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"layer": 7}, "layer 7 is not a MoE layer"),
        ({"layer": -1}, "layer -1 is not a MoE layer"),
        ({"layer": "two"}, "'--layer'"),
        ({"config": "nope"}, "'nope'"),
        ({"config": "nope.toml"}, "nope.toml"),
        ({"engine": "gpu"}, "'gpu'"),
        ({"format": "fp3"}, "'fp3'"),
        ({"stalls": 2}, "stalls"),
        ({"checkpoint": "nowhere"}, "nowhere: no such folder"),
        ({"output": "nowhere/y.npy"}, "nowhere"),
        ({"json": "nowhere/y.json"}, "nowhere"),
        ({"output": "/"}, "is a folder"),
    ],
    ids=str,
)
def test_bad_options(layer, tmp_path, capsys, overrides, match):
    refused(capsys, tmp_path, layer(**overrides), match)


@pytest.mark.parametrize(
    "options", [{"moe_intermediate_size": 96}, {"num_experts": 9}, {"num_experts_per_tok": 3}]
)
def test_a_layer_over_the_maxima(layer, make_checkpoint, tmp_path, capsys, options):
    folder = make_checkpoint(**options)
    refused(capsys, tmp_path, layer(checkpoint=folder), "config 'tiny'")
    assert layer(checkpoint=folder, engine="reference") == 0


def test_bad_checkpoints(layer, make_checkpoint, tmp_path, capsys):
    folder = make_checkpoint()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    refused(capsys, tmp_path, layer(checkpoint=folder), "model.safetensors")
    weights.unlink()
    refused(capsys, tmp_path, layer(checkpoint=folder), "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "dense"}')
    refused(capsys, tmp_path, layer(checkpoint=folder), "'dense'")


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "y.npy"
    path.write_text("old")

    def full(file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(ExpertileError, match=r"y\.npy: cannot be written \(No space left on device\)"):
        write_file(path, full)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_options_are_one_line(capsys):
    assert run("layer") == 2
    assert capsys.readouterr().err == "error: Missing option '--input'.\n"


@pytest.mark.parametrize("arguments", [["--help"], ["layer", "--help"], ["demo", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys; from expertile.cli import main\n"
        f"try: main({arguments!r})\n"
        "finally: assert not {'numpy', 'amaranth', 'cocotb', 'sim', 'hw'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Usage: " in done.stdout, done.stderr


@pytest.mark.parametrize("arguments", ["['--help']", "['inspect', sys.argv[1]]"])
def test_a_reader_that_leaves_is_no_error(arguments, tiny_checkpoint):
    """As under ``| head``: exit code 0 and nothing on standard error."""
    code = f"import sys; from expertile.cli import main; sys.stdin.read(); main({arguments})"
    command = [sys.executable, "-c", code, str(tiny_checkpoint)]
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    with subprocess.Popen(command, text=True, **pipes) as process:
        process.stdout.close()  # before anything is printed: it waits for its input
        _, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
