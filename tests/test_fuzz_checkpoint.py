"""Hostile folders: whatever stands in headers and configs, the answer is a layer or one ExpertileError."""

import json
import struct

import pytest
from family_checkpoints import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sw_model.checkpoint import Checkpoint
from sw_model.errors import ExpertileError
from sw_model.families import FAMILIES

FUZZ = settings(
    max_examples=150,
    derandomize=True,
    database=None,
    deadline=5000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, -1, 2**31, 2**63, 2**64, 1e308, 10**400])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def survives(folder):
    """Use everything that the commands use; only ExpertileError may come out, each of one short line."""
    try:
        checkpoint = Checkpoint.open(folder)
    except ExpertileError as error:
        assert_short(error)
        return
    for use in (
        lambda: checkpoint.shape,
        lambda: checkpoint.outline(1),
        lambda: checkpoint.moe_layer(1),
        lambda: [checkpoint.tensor(name) for name in ("a", "model.layers.1.mlp.gate.weight")],
    ):
        try:
            use()
        except ExpertileError as error:
            assert_short(error)


def assert_short(error):
    assert "\n" not in str(error) and len(str(error)) < 900


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    """Family, folder and config of a good checkpoint."""
    folder = tmp_path_factory.mktemp("fuzz")
    quantised = request.param in ("gpt_oss", "deepseek_v3")
    written = tiny(request.param, hidden=32, wide=32, quantised=quantised)
    written.write(folder)
    return folder, written.config, (folder / "model.safetensors").read_bytes()


@settings(FUZZ, max_examples=60)
@given(data=st.data())
def test_configs(checkpoint, data):
    folder, config, _ = checkpoint
    keys = st.sampled_from([*config, "rope_parameters", "rope_scaling", "quantization_config", "head_dim"])
    changes = data.draw(st.dictionaries(keys, JSON, min_size=1, max_size=3))
    (folder / "config.json").write_text(json.dumps(config | changes))
    survives(folder)
    (folder / "config.json").write_text(json.dumps(config))


@settings(FUZZ, max_examples=60)
@given(data=st.data())
def test_bytes_of_a_good_file(checkpoint, data):
    """Some bytes of the file changed, most of them in the header."""
    folder, _, good = checkpoint
    bad = bytearray(good)
    header = struct.unpack("<Q", good[:8])[0]
    place = st.integers(0, 7) | st.integers(8, 8 + header - 1) | st.integers(0, len(good) - 1)
    for at, value in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), min_size=1, max_size=4)):
        bad[at] = value
    cut = data.draw(st.just(len(bad)) | st.integers(0, len(bad)))
    (folder / "model.safetensors").write_bytes(bad[:cut])
    survives(folder)
    (folder / "model.safetensors").write_bytes(good)


TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "U8", "F64", "F4", "Q", ""]) | JSON,
        "shape": st.lists(st.sampled_from([0, 1, 2, 6, 32, 2**32, 2**63]) | NUMBERS, max_size=4) | JSON,
        "data_offsets": st.lists(st.sampled_from([0, 4, 8, 2**40]) | NUMBERS, min_size=2, max_size=2) | JSON,
        "x": JSON,
    },
)
NAMES = st.sampled_from(["a", "model.layers.1.mlp.gate.weight", "__metadata__", "\ud800", ""]) | st.text(
    max_size=4
)


@FUZZ
@given(
    header=st.dictionaries(NAMES, TENSOR | JSON, max_size=3) | JSON,
    data=st.binary(max_size=24),
    twice=st.booleans(),
)
def test_headers(tmp_path, header, data, twice):
    text = json.dumps(header)
    if twice and text.startswith('{"'):
        text = f"{text[:-1]}, {text[1:]}"
    write_file(tmp_path, text.encode(errors="surrogatepass"), data)
    survives(tmp_path)


@FUZZ
@given(head=st.binary(max_size=64), size=NUMBERS.filter(lambda n: isinstance(n, int) and 0 <= n < 2**64))
def test_header_lengths(tmp_path, head, size):
    write_file(tmp_path, head, b"", size)
    survives(tmp_path)


@FUZZ
@given(
    index=st.fixed_dictionaries({}, optional={"weight_map": st.dictionaries(NAMES, JSON, max_size=3) | JSON})
    | JSON
)
def test_indexes(tmp_path, index):
    (tmp_path / "config.json").write_text(json.dumps(tiny("qwen2_moe", hidden=4, wide=1).config))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    survives(tmp_path)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("depth", [200, 900, 990, 100_000])
def test_deep_nesting(tmp_path, opening, depth):
    closing = "]" if opening == "[" else "}"
    deep = opening * depth + "1" + closing * depth
    write_file(tmp_path, deep.encode(), b"")
    survives(tmp_path)
    for key in ("hidden_size", "model_type", "quantization_config", "mlp_only_layers"):
        config = {k: v for k, v in tiny("qwen2_moe", hidden=4, wide=1).config.items() if k != key}
        (tmp_path / "config.json").write_text(f'{{"{key}": {deep}, {json.dumps(config)[1:]}')
        survives(tmp_path)


def write_file(folder, header, data, size=None):
    """A qwen2_moe folder whose file has ``header``."""
    config = tiny("qwen2_moe", hidden=4, wide=1).config
    (folder / "config.json").write_text(json.dumps(config))
    length = struct.pack("<Q", len(header) if size is None else size)
    (folder / "model.safetensors").write_bytes(length + header + data)
