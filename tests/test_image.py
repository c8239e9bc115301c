"""Weight images on disk: what was saved comes back, and anything else is refused in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from random_layers import random_layer
from safetensors.numpy import save_file
from test_compiler import ARRAYS, CASES, make

from sw_model.compiler import compile
from sw_model.config import HardwareConfig
from sw_model.errors import ExpertileError
from sw_model.image import Image
from sw_model.joined import join
from sw_model.quantised import quantise


@pytest.fixture
def image() -> Image:
    return make("gated")


@pytest.mark.parametrize("case", CASES)
def test_save_and_load(case: str, tmp_path: Path) -> None:
    path, image = tmp_path / "image.safetensors", make(case)
    image.save(path)
    again = Image.load(path)
    for name in ARRAYS:
        a, b = getattr(again, name), getattr(image, name)
        assert np.array_equal(a, b) and a.dtype == np.uint32, name
    assert again.registers == image.registers and again.config == image.config
    first = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == first


def parts(image: Image) -> dict[str, np.ndarray]:
    return {name: getattr(image, name) for name in ARRAYS}


def meta(config: object, registers: object) -> dict[str, str]:
    return {"image": json.dumps({"config": config, "registers": registers})}


def refused(path: Path) -> None:
    with pytest.raises(ExpertileError, match=r"bad\.safetensors") as error:
        Image.load(path)
    assert "\n" not in str(error.value)


def test_load_refuses(image: Image, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    image.save(path)
    whole = path.read_bytes()
    for cut in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        refused(path)
    path.write_bytes(b"\xff" * 100)
    refused(path)
    good = meta("image", image.registers)
    save_file(parts(image), path, metadata=good)
    Image.load(path)
    for name in ARRAYS:
        save_file({n: a for n, a in parts(image).items() if n != name}, path, metadata=good)
        refused(path)
    save_file(parts(image), path)
    refused(path)
    for bad in ({"image": "{"}, {"image": "[]"}, {"other": "{}"}, {"image": "3"}):
        save_file(parts(image), path, metadata=bad)
        refused(path)
    path.unlink()
    refused(path)


@pytest.mark.parametrize("name", ARRAYS)
def test_load_refuses_arrays_that_save_never_writes(name: str, image: Image, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    array = getattr(image, name)
    for bad in (array.astype(np.float32), array.astype(np.uint64)):
        save_file({**parts(image), name: bad}, path, metadata=meta("image", image.registers))
        refused(path)


@pytest.mark.parametrize("name", ARRAYS)
def test_load_refuses_shapes_that_save_never_writes(name: str, image: Image, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    array = getattr(image, name)
    for bad in (array[..., None].copy(), np.zeros(array.size + 1, np.uint32)):
        save_file({**parts(image), name: bad}, path, metadata=meta("image", image.registers))
        refused(path)


def test_several_layers(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    config = HardwareConfig(
        name="several", tiles=2, words=8192, scales=4096, max_hidden=64, max_intermediate=64, max_experts=8,
        max_top_k=2, max_layers=2,
    )  # fmt: skip
    layers = [random_layer(np.random.default_rng(seed)) for seed in (1, 2)]
    image = join([compile(quantise(layer, "int4", config), config) for layer in layers], config)
    image.save(path)
    again = Image.load(path)
    assert again.layers == image.layers and len(again.layers) == 2 and again.id == image.id
    for more in ([image.registers], [image.more[0] | {"MORE": 1}], [{}], [[1]], 3):
        facts = {"config": "several", "registers": image.registers, "more": more}
        save_file(parts(image), path, metadata={"image": json.dumps(facts)})
        refused(path)


@pytest.mark.parametrize("registers", [[1, 2], {}, {"HIDDEN": 64}, None, "text"])
def test_load_refuses_other_registers(registers: object, image: Image, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    save_file(parts(image), path, metadata=meta("image", registers))
    refused(path)
    save_file(parts(image), path, metadata=meta("image", {**image.registers, "MORE": 1}))
    refused(path)
    save_file(parts(image), path, metadata=meta("image", {**image.registers, "HIDDEN": "many"}))
    refused(path)
