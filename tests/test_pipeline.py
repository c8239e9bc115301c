"""The whole way to a model, shrunk: teacher, student by three stages, gate, metrics, record."""

import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rich.console import Console  # noqa: E402

from sw_model import gate_file  # noqa: E402
from sw_model.training import pipeline as way  # noqa: E402
from sw_model.training.model import ModelConfig  # noqa: E402
from sw_model.training.recipe import load_recipe  # noqa: E402
from sw_model.training.record import record  # noqa: E402
from sw_model.training.sources import DOMAINS  # noqa: E402


def shrunk(name, **model):
    recipe = load_recipe(name)
    shape = ModelConfig(layers=1, hidden=32, heads=1, shared_intermediate=32, context=64, **model)
    return replace(
        recipe,
        model=shape,
        steps=30,
        batch=5,
        warmup=2,
        probe_every=5,
        settle_rows=5,
        settle_every=5,
        validate_every=15,
        validation_bytes=100,
    )


def test_small_from_text_to_metrics(tmp_path):
    rng = np.random.default_rng(6)
    for split in ("train", "valid", "test"):
        (tmp_path / "corpus" / split).mkdir(parents=True)
        for domain in DOMAINS:
            text = rng.integers(97, 123, 600).astype(np.uint8).tobytes()
            (tmp_path / "corpus" / split / f"{domain}.txt").write_bytes(text)
    (tmp_path / "corpus" / "manifest.json").write_text("{}")
    teacher = shrunk("teacher_small", experts=1, top_k=1, intermediate=32)
    student = shrunk("small", experts=4, top_k=2, intermediate=32)
    folders = tmp_path / "teacher", tmp_path / "small"
    preset = way.Preset(teacher="teacher_small", form="int4", gate_bytes=64, test_bytes=200)
    result = way.pipeline(
        preset,
        (teacher, student),
        folders,
        tmp_path / "corpus",
        device=torch.device("cpu"),
        console=Console(quiet=True),
    )
    assert list(result["mean"]) == ["model", "int8", "int4", "gated", "gated_int4", "first"]
    assert all(2 < mean < 9 for mean in result["mean"].values())
    gate = gate_file.load(folders[1] / "gate.json")
    assert gate.target == 1.2
    assert list(gate.layers) == [0]
    kept = record(folders[1])
    assert {row["stage"] for row in kept["log"]} == {"general", "domain", "reasoning"}
    assert kept["log"][-1]["format"] == "int4"
    assert kept["precision"][-1]["entered"] == "True"
    assert 0 < float(kept["log"][-1]["told"]) < 1
    assert [part["name"] for part in kept["pipeline"]["parts"]] == ["teacher", "model", "gate", "measurement"]
    assert all(0 < part["processor_seconds"] for part in kept["pipeline"]["parts"])
    assert kept["metrics"] == json.loads((folders[1] / "metrics.json").read_text())
    assert "200 bytes a domain" in kept["metrics"]["conditions"]["model"]


def test_every_preset_has_its_recipes():
    for name, preset in way.PRESETS.items():
        student, teacher = load_recipe(name), load_recipe(preset.teacher)
        assert student.distil > 0
        assert teacher.distil == 0
        assert teacher.model.vocabulary == student.model.vocabulary
        assert teacher.model.context >= student.model.context
