"""One layer of a checkpoint costs that layer's bytes: huge sparse files, missing shards, bytes counted."""

import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from family_checkpoints import tiny

from sw_model.checkpoint import Checkpoint
from sw_model.errors import ExpertileError
from sw_model.storage import Store
from sw_model.weights import Weights

SIZES = {"F32": 4, "BF16": 2, "U8": 1}
GIB = 1 << 30


pytestmark = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="bytes are counted by Linux")


def write_sparse(path, tensors, real):
    """A safetensors file whose tensors (name -> (dtype, shape)) are holes, but for those in ``real``."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        for name, value in real.items():
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            file.write(value.tobytes())


def read_by(call):
    """Result, and the bytes this process was given by read calls meanwhile."""

    def count():
        fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(fields["rchar"])

    before, result = count(), call()
    return result, count() - before


@pytest.fixture
def huge(tmp_path):
    """120 GB in three shards of which one is there: layer 1 of deepseek_v3 between two tensors of 20 GB."""
    written = tiny("deepseek_v3")
    folder = written.write(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    dtypes = {"float32": "F32", "bfloat16": "BF16"}
    layer = {name: (dtypes[str(v.dtype)], list(v.shape)) for name, v in written.stored.items()}
    vast = ("BF16", [10 * GIB])
    shard = {"model.embed_tokens.weight": vast, **layer, "lm_head.weight": vast}
    write_sparse(folder / "model-00002-of-00003.safetensors", shard, written.stored)
    files = dict.fromkeys(shard, "model-00002-of-00003.safetensors")
    files["model.layers.0.mlp.up_proj.weight"] = "model-00001-of-00003.safetensors"
    files["model.layers.2.mlp.gate.weight"] = "model-00003-of-00003.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder, written


def test_one_layer_reads_its_own_bytes_alone(huge):
    folder, written = huge
    size = sum(v.nbytes for v in written.stored.values())
    files = (folder / "model-00002-of-00003.safetensors", folder / "model.safetensors.index.json")
    assert files[0].stat().st_size > 40 * GIB
    (checkpoint, layer), count = read_by(lambda: ((c := Checkpoint.open(folder)), c.moe_layer(1)))
    np.testing.assert_array_equal(
        layer.experts[7].down, written.exact["model.layers.1.mlp.experts.7.down_proj.weight"]
    )
    assert size <= count < size + 200_000  # headers, and the index
    _, count = read_by(lambda: checkpoint.outline(1))
    assert count < 1000
    with pytest.raises(ExpertileError, match=r"model-00001-of-00003.safetensors: no such file"):
        checkpoint.tensor("model.layers.0.mlp.up_proj.weight")


def test_experts_in_one_tensor_are_read_one_at_a_time(tmp_path):
    """A stack of 60 GB is described at once, and an expert of it costs its own 50 kB."""
    hidden, wide, count = 64, 128, 1 << 20
    written = tiny("gpt_oss", num_local_experts=8)
    (tmp_path / "config.json").write_text(json.dumps(written.config))
    p = "model.layers.1.mlp.experts."
    shape = [count, hidden, 2 * wide]
    write_sparse(tmp_path / "model.safetensors", {f"{p}gate_up_proj": ("BF16", shape)}, {})
    weights = Weights(Store(tmp_path))
    _, read = read_by(lambda: weights.floats(f"{p}gate_up_proj", tuple(shape), count - 1))
    assert hidden * 2 * wide * 2 <= read < hidden * 2 * wide * 2 + 5000


def test_memory_stays_small(huge):
    """The whole import in a process that may not grow by 1 GiB."""
    folder, _ = huge
    code = f"from sw_model.checkpoint import Checkpoint; Checkpoint.open({str(folder)!r}).moe_layer(1)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=os.environ)
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert after < max(before, 1 << 20)  # kB


def test_a_tensor_too_large_for_memory_is_one_line(tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise MemoryError

    checkpoint = Checkpoint.open(tiny("mixtral").write(tmp_path))
    monkeypatch.setattr(np, "fromfile", full)
    with pytest.raises(
        ExpertileError, match=r"experts.0.w1.weight of shape \[32, 64\] does not fit into memory"
    ):
        checkpoint.tensor("model.layers.1.block_sparse_moe.experts.0.w1.weight")
