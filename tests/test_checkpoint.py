"""The checkpoint reader: what it reads is what was written, and every bad folder is one clear line."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from conftest import write_tiny
from safetensors.numpy import load_file, save_file

from sw_model.checkpoint import Checkpoint
from sw_model.errors import ExpertileError
from sw_model.moe import RouterRule


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def edit_tensors(folder, **changes):
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors")


def refused(match, folder, layer=0):
    with pytest.raises(ExpertileError, match=match) as caught:
        Checkpoint.open(folder).moe_layer(layer)
    assert "\n" not in str(caught.value)


def test_layer_is_what_was_written(tiny_checkpoint):
    written = load_file(tiny_checkpoint / "model.safetensors")
    checkpoint = Checkpoint.open(tiny_checkpoint)
    assert (checkpoint.family, checkpoint.n_layers, checkpoint.moe_layers) == ("qwen2_moe", 2, [0, 1])
    layer = checkpoint.moe_layer(1)
    assert (layer.hidden, layer.intermediate, layer.shared_intermediate, layer.n_experts) == (64, 32, 64, 8)
    assert layer.rule == RouterRule(top_k=2, renormalise=True)
    p = "model.layers.1.mlp."
    np.testing.assert_array_equal(layer.router, written[p + "gate.weight"])
    np.testing.assert_array_equal(layer.shared_gate, written[p + "shared_expert_gate.weight"][0])
    np.testing.assert_array_equal(layer.experts[5].down, written[p + "experts.5.down_proj.weight"])
    np.testing.assert_array_equal(layer.shared.up, written[p + "shared_expert.up_proj.weight"])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened_exactly(make_checkpoint, dtype):
    folder = make_checkpoint(dtype=dtype)
    value = Checkpoint.open(folder).tensor("model.embed_tokens.weight")
    assert value.dtype == np.float32
    np.testing.assert_array_equal(value, load_file(folder / "model.safetensors")["model.embed_tokens.weight"])


def test_bfloat16_needs_no_other_import(make_checkpoint):
    folder = make_checkpoint(dtype=ml_dtypes.bfloat16)
    code = f"from sw_model.checkpoint import Checkpoint; Checkpoint.open({str(folder)!r}).moe_layer(0)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_shards(make_checkpoint, tiny_checkpoint):
    folder = make_checkpoint()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: tensors[n] for n in names if files[n] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    sharded, whole = Checkpoint.open(folder).moe_layer(0), Checkpoint.open(tiny_checkpoint).moe_layer(0)
    np.testing.assert_array_equal(sharded.experts[3].gate, whole.experts[3].gate)

    (folder / files[names[0]]).unlink()
    with pytest.raises(ExpertileError, match="no such file"):
        Checkpoint.open(folder).tensor(names[0])


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x.safetensors", "x.bin", ""]
)
def test_shard_names_stay_in_the_folder(make_checkpoint, file):
    folder = make_checkpoint()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": file}}))
    refused("does not name a safetensors file", folder)


def test_which_layers_are_moe(make_checkpoint):
    folder = make_checkpoint(num_hidden_layers=3, mlp_only_layers=[1])
    assert Checkpoint.open(folder).moe_layers == [0, 2]
    refused("layer 1 is not a MoE layer: its MoE layers are 0, 2", folder, 1)
    refused("layer 3 is not a MoE layer", folder, 3)
    refused("layer -1 is not a MoE layer", folder, -1)
    edit_config(folder, decoder_sparse_step=3)
    assert Checkpoint.open(folder).moe_layers == [2]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "bert"}, "model_type is 'bert'.*qwen2_moe"),
        ({"model_type": ["x"]}, "model_type"),
        ({"model_type": ...}, "model_type is None"),
        ({"hidden_size": ...}, "hidden_size is None.*integer"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 96}, r"shape \[8, 64\].*\[8, 96\]"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
        ({"num_experts": 9}, r"\[8, 64\].*\[9, 64\]"),
        ({"num_experts": 0}, "num_experts"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"norm_topk_prob": 1}, "norm_topk_prob"),
        ({"mlp_only_layers": 3}, "mlp_only_layers"),
    ],
)
def test_bad_config(make_checkpoint, changes, match):
    folder = make_checkpoint()
    edit_config(folder, **changes)
    refused(match, folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "gelu"},
        {"use_sliding_window": True},
        {"rope_scaling": {"type": "yarn"}},
        {"rms_norm_eps": 0},
    ],
)
def test_decoders_that_compute_otherwise_are_refused(make_checkpoint, changes):
    checkpoint = Checkpoint.open(make_checkpoint(**changes))
    with pytest.raises(ExpertileError, match=next(iter(changes))):
        _ = checkpoint.shape


def test_bad_files(make_checkpoint, tmp_path):
    refused("no such folder", tmp_path / "nowhere")
    folder = make_checkpoint()
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for size in (0, 7, 200, len(whole) - 1):
        weights.write_bytes(whole[:size])
        refused("no whole safetensors file", folder)
    weights.unlink()
    refused("neither model.safetensors nor", folder)
    for text in ("{", "[]", "\udcff"):
        (folder / "config.json").write_text(text, errors="surrogateescape")
        refused("not.*JSON", folder)
    (folder / "config.json").unlink()
    refused("config.json: no such file", folder)


def test_bad_tensors(make_checkpoint):
    name = "model.layers.0.mlp.experts.3.up_proj.weight"
    folder = make_checkpoint()
    for value, match in [
        (None, f"tensor {name} is missing"),
        (np.zeros((32, 63), np.float32), r"shape \[32, 63\]"),
        (np.zeros((32, 64), np.float64), "is F64"),
        (np.full((32, 64), np.nan, np.float32), "NaN or infinity"),
    ]:
        edit_tensors(folder, **{name: value})
        refused(match, folder)


def test_only_what_is_asked_for_is_read(tmp_path):
    folder = write_tiny(tmp_path)
    edit_tensors(folder, **{"model.layers.1.mlp.gate.weight": np.full((8, 64), np.inf, np.float32)})
    Checkpoint.open(folder).moe_layer(0)
    refused("NaN or infinity", folder, 1)
