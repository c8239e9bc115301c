"""Measuring checkpoints: the file's gate in torch against the float64 reference, and the table it makes."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sw_model import gate_file, reference_gate  # noqa: E402
from sw_model.checkpoint import Checkpoint  # noqa: E402
from sw_model.config import load_config  # noqa: E402
from sw_model.formats import BLOCK, SCALE_BITS  # noqa: E402
from sw_model.gate import SideBand  # noqa: E402
from sw_model.quantised import quantise  # noqa: E402
from sw_model.training.gated_checkpoint import GateFileModel  # noqa: E402
from sw_model.training.measure import bits_per_byte, report  # noqa: E402
from sw_model.training.model import load_checkpoint  # noqa: E402
from sw_model.training.sources import DOMAINS  # noqa: E402

BASE = Path(__file__).parent.parent / "models" / "base"
SPLIT_BYTES = 150


def test_the_files_gate_is_the_references():
    gate, checkpoint = gate_file.load(BASE / "gate.json"), Checkpoint.open(BASE)
    model = GateFileModel(BASE)
    text = (BASE / "heldout" / "code.txt").read_bytes()[:500]
    side = gate.side_band(text)
    generator = torch.Generator().manual_seed(1)
    for n in (0, 3):
        moe = model.layers[n].moe
        x = torch.randn(len(text), model.config.hidden, generator=generator)
        moe.information = torch.from_numpy(side.info / 8).float()
        probability, _, weight = moe.route(x)
        got = moe.admit(x, probability, weight).detach().numpy() > 0
        experts, _, decisions = reference_gate.decide(
            checkpoint.moe_layer(n), gate.gate(n), x.double().numpy(), SideBand(info=side.info, tag=side.tag)
        )
        want = np.zeros_like(got)
        np.put_along_axis(want, experts, decisions.kept, axis=1)
        assert (got == want).all(axis=1).mean() > 0.995  # but for what lies at a threshold
        assert 0.05 < want.mean() < 0.24  # it does drop something


def test_the_gated_shipped_model_keeps_its_quality_and_its_budget():
    document = (BASE / "heldout" / "general.txt").read_bytes()[:3000]
    both = bits_per_byte(load_checkpoint(BASE), [document])
    model = GateFileModel(BASE)
    gated = bits_per_byte(model, [document])
    assert gated < 1.02 * both
    assert 1.0 < np.mean(model.mean_experts) < 1.4


@pytest.fixture
def corpus(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / "corpus" / split).mkdir(parents=True)
        for domain in DOMAINS:
            text = (BASE / "heldout" / f"{domain}.txt").read_bytes()
            (tmp_path / "corpus" / split / f"{domain}.txt").write_bytes(text[:SPLIT_BYTES])
    return tmp_path / "corpus"


def test_report(corpus, tmp_path):
    for name in ("config.json", "model.safetensors", "gate.json"):
        (tmp_path / name).write_bytes((BASE / name).read_bytes())
    result = report(tmp_path, corpus, baselines={"xz": dict.fromkeys(DOMAINS, 2.0)})
    assert list(result["mean"]) == ["model", "int8", "int4", "gated", "gated_int4", "first", "xz"]
    mean = result["mean"]
    assert mean["xz"] == 2.0
    assert abs(mean["int8"] - mean["model"]) < abs(mean["int4"] - mean["model"]) + 0.01
    assert mean["model"] != mean["int4"] != mean["gated_int4"]
    assert mean["gated_int4"] < 1.1 * mean["model"]
    assert json.loads((tmp_path / "metrics.json").read_text())["shape"]["experts"] == 8


@pytest.mark.parametrize("name", ["base", "tiny"])
def test_metrics_of_the_shipped_models_meet_their_bars(name):
    mean = json.loads((BASE.parent / name / "metrics.json").read_text())
    rows, bits = mean["bits_per_byte"], mean["mean"]
    assert bits["gated"] <= 1.02 * bits["model"]
    assert bits["gated"] < bits["first"]
    assert bits["int4"] <= 1.02 * bits["model"]
    assert all(1.15 <= m <= 1.25 for m in mean["mean_experts"]["gated"])
    for domain in DOMAINS:
        assert rows["model"][domain] < rows["ngram"][domain]
    assert sum(rows["model"][d] < rows["xz"][d] for d in DOMAINS) >= 4


def test_tiny_fits_the_block_ram_of_its_board():
    checkpoint, config = Checkpoint.open(BASE.parent / "tiny"), load_config("ulx3s_85f")
    layers = [quantise(checkpoint.moe_layer(n), "int4", config) for n in checkpoint.moe_layers]
    matrices = [m for layer in layers for e in layer.everyone for m in (e.gate_up, e.down)]
    weights = sum(m.rows * m.columns for m in matrices)
    assert weights == 614_400
    bits = sum(m.rows * m.blocks * (BLOCK * m.fmt.bits + SCALE_BITS) for m in matrices)
    assert bits < 208 * 18 * 1024  # ECP5-85F: 208 block RAMs of 18 Kbit
