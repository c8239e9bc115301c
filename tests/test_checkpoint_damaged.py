"""Damaged checkpoints of every kind: one line that names the file and the tensor, and exit code 2."""

import json

import ml_dtypes
import numpy as np
import pytest
from family_checkpoints import tiny

from expertile.cli import main
from sw_model.checkpoint import Checkpoint
from sw_model.errors import ExpertileError

V3 = "model.layers.1.mlp.experts.3.up_proj.weight"
OSS = "model.layers.1.mlp.experts.down_proj"
E4M3 = ml_dtypes.float8_e4m3fn


def refused(folder, match):
    with pytest.raises(ExpertileError, match=match) as caught:
        Checkpoint.open(folder).moe_layer(1)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def changed(array, at, value):
    array = array.copy()
    array[at] = value
    return array


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        (V3, lambda a: None, rf"tensor {V3} is missing"),
        (V3, lambda a: a.astype(np.float64), "is F64: F32, F16, BF16, F8_E4M3 can be read here"),
        (V3, lambda a: a.view(np.uint8), "is U8"),
        (V3, lambda a: a.astype(ml_dtypes.float8_e5m2), "is F8_E5M2"),
        (V3, lambda a: a[:-1], r"shape \[31, 64\]: config.json makes it \[32, 64\]"),
        (V3, lambda a: changed(a.view(np.uint8), (2, 5), 0x7F).view(E4M3), "holds NaN"),
        (V3, lambda a: changed(a.view(np.uint8), (2, 5), 0xFF).view(E4M3), "holds NaN"),
        (f"{V3}_scale_inv", lambda a: None, f"tensor {V3}_scale_inv is missing"),
        (f"{V3}_scale_inv", lambda a: a * 0, "holds a scale that is not positive"),
        (f"{V3}_scale_inv", lambda a: -a, "holds a scale that is not positive"),
        (f"{V3}_scale_inv", lambda a: a * np.float32(np.nan), "holds NaN or infinity"),
        (f"{V3}_scale_inv", lambda a: a * np.float32(np.inf), "holds NaN or infinity"),
        (f"{V3}_scale_inv", lambda a: np.full_like(a, 1e38), "holds weights beyond float32"),
        (f"{V3}_scale_inv", lambda a: np.repeat(a, 2, axis=0), r"shape \[2, 1\]"),
        (f"{V3}_scale_inv", lambda a: a.astype(np.int32), "is I32: F32, F16, BF16"),
        ("model.layers.1.mlp.gate.e_score_correction_bias", lambda a: None, "bias is missing"),
        ("model.layers.1.mlp.gate.weight", lambda a: changed(a, (0, 0), np.inf), "holds NaN or infinity"),
    ],
)
def test_fp8(tmp_path, name, change, match):
    written = tiny("deepseek_v3", quantised=True)
    value = change(written.stored.pop(name))
    if value is not None:
        written.stored[name] = value
    refused(written.write(tmp_path), match)


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        (f"{OSS}_blocks", lambda a: None, f"tensor {OSS} is missing"),
        (f"{OSS}_blocks", lambda a: a.view(np.int8), "is I8: U8 can be read here"),
        (f"{OSS}_blocks", lambda a: a[..., :8], r"shape \[6, 64, 1, 8\].*\[6, 64, 1, 16\]"),
        (f"{OSS}_scales", lambda a: None, f"tensor {OSS}_scales is missing"),
        (f"{OSS}_scales", lambda a: changed(a, (5, 63, 0), 255), "holds a scale that is NaN"),
        (f"{OSS}_scales", lambda a: np.full_like(a, 254), "holds weights beyond float32"),
        (f"{OSS}_scales", lambda a: a[:5], r"shape \[5, 64, 1\]"),
        (f"{OSS}_bias", lambda a: a[:, :63], r"shape \[6, 63\]"),
        (f"{OSS}_bias", lambda a: changed(a, (5, 3), np.nan), "holds NaN or infinity"),
        ("model.layers.1.mlp.router.bias", lambda a: None, "router.bias is missing"),
    ],
)
def test_mxfp4(tmp_path, name, change, match):
    written = tiny("gpt_oss", quantised=True)
    value = change(written.stored.pop(name))
    if value is not None:
        written.stored[name] = value
    refused(written.write(tmp_path), match)


def test_mxfp4_in_broken_blocks(tmp_path):
    written = tiny("gpt_oss", quantised=True)
    refused(written.write(tmp_path, hidden_size=48), r"\[6, 64\].*\[6, 48\]")
    written.stored["model.layers.1.mlp.router.weight"] = np.zeros((6, 48), np.float32)
    refused(written.write(tmp_path, hidden_size=48), "MXFP4 needs columns in blocks of 32, not 48")


A = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


def entry(**changes):
    return json.dumps(A | changes)


@pytest.mark.parametrize(
    ("header", "length", "match"),
    [
        (f'{{"a": {entry()}, "a": {entry()}}}', None, "key 'a' is given twice"),
        (f'{{"a": {entry()[:-1]}, "shape": [2, 2]}}}}', None, "duplicate field `shape`"),
        (f'{{"a": {entry()}, "b": {entry(data_offsets=[5, 9])}}}', None, "invalid offset for tensor `b`"),
        (f'{{"a": {entry()}, "b": {entry(data_offsets=[2, 6])}}}', None, "invalid offset for tensor `b`"),
        (f'{{"a": {entry(shape=[5])}}}', None, "invalid shape"),
        (f'{{"a": {entry(shape=[-4])}}}', None, "invalid value"),
        (f'{{"a": {entry(shape=[1 << 62, 1 << 62])}}}', None, "overflow"),
        (f'{{"a": {entry(dtype="Q8")}}}', None, "unknown variant `Q8`"),
        (f'{{"a": {entry(data_offsets=[0, 40], shape=[40])}}}', None, "not fully covered"),
        (f'{{"a": {entry()}}}', 1 << 40, "header too large"),
        (f'{{"a": {entry()}}}', 60_000, "[Ii]nvalid header length|no whole safetensors"),
    ],
)
def test_headers(tmp_path, header, length, match, capsys):
    folder = tiny("mixtral").write(tmp_path / "model")
    size = len(header) if length is None else length
    (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + header.encode() + bytes(4))
    with pytest.raises(ExpertileError, match=match) as caught:
        Checkpoint.open(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    np.save(tmp_path / "x.npy", np.zeros((1, 64), np.float32))
    with pytest.raises(SystemExit) as ended:
        files = f"--checkpoint {folder} --input {tmp_path}/x.npy --output {tmp_path}/y.npy"
        main(["layer", "--layer", "1", *files.split()])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_keys_given_twice_in_the_other_files(tmp_path):
    written = tiny("mixtral")
    folder = written.write(tmp_path)
    config = json.dumps(written.config)
    (folder / "config.json").write_text(f'{config[:-1]}, "hidden_size": 32}}')
    with pytest.raises(ExpertileError, match=r"config\.json: key 'hidden_size' is given twice"):
        Checkpoint.open(folder)
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "a.safetensors", "x": "b"}}')
    with pytest.raises(ExpertileError, match="key 'x' is given twice"):
        Checkpoint.open(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "a.safetensors"}}')
    with pytest.raises(
        ExpertileError, match=r"a.safetensors: tensor x is missing: .*index.json places it here"
    ):
        Checkpoint.open(folder).tensor("x")
