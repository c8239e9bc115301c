"""Configurations: presets, TOML files, what is refused and how, and the widths that follow."""

import re
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from sw_model.config import HardwareConfig, load_config, presets
from sw_model.errors import ExpertileError
from sw_model.formats import FP8, INT8, INT16, MXFP4

GOOD = {
    "tiles": 2, "words": 64, "scales": 32, "max_hidden": 64, "max_intermediate": 32, "max_experts": 4,
    "max_top_k": 2,
}  # fmt: skip


def write(folder: Path, text: str | None = None, **changes: object) -> str:
    path = folder / "mine.toml"
    keys = {k: v for k, v in {**GOOD, **changes}.items() if v is not None}
    path.write_text("\n".join(f"{k} = {v}" for k, v in keys.items()) if text is None else text)
    return str(path)


def test_presets() -> None:
    assert {"tiny", "base", "ulx3s_85f", "ecp5_85f_lut", "asic", "large", "icebreaker"} <= set(presets())
    for name in presets():
        config = load_config(name)
        assert config.name == name
    assert len({load_config(n).hash for n in presets()}) == len(presets())
    assert len({replace(load_config(n), name="same") for n in presets()}) == len(presets())  # no design twice


def test_file(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, weight_spread=6))
    assert config == HardwareConfig(name="mine", **GOOD, weight_spread=6)
    assert load_config(write(tmp_path, name='"other"')).name == "other"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 3}, "unknown key 'colour'.*known keys.*max_hidden"),
        ({"words": None}, "missing key 'words'"),
        ({"words": '"many"'}, "words must be an integer from 1 to \\d+, not"),
        ({"words": 2.5}, "words must be an integer from 1 to \\d+, not"),
        ({"words": "true"}, "words must be an integer from 1 to \\d+, not"),
        ({"words": 0}, "words must be an integer from 1 to \\d+, not"),
        ({"words": -4}, "words must be an integer from 1 to \\d+, not"),
        ({"words": "[1, 2]"}, "words must be an integer from 1 to \\d+, not"),
        ({"max_layers": 257}, "max_layers must be an integer from 1 to 256, not 257"),
        ({"gate": "1"}, "gate must be true or false, not 1"),
        ({"gate": "false"}, "governor must be false without a gate"),
        ({"tiles": 3}, "tiles must be a power of two, not 3"),
        ({"body": '"analog"'}, "body must be one of dsp, lut, asic, micro, not 'analog'"),
        ({"body": 1}, "body must be one of dsp, lut, asic, micro, not 1"),
        ({"array_clock": 2}, 'array_clock must be 1 with body "dsp", not 2'),
        ({"array_clock": 9, "body": '"lut"'}, "array_clock must be an integer from 1 to 8, not 9"),
        ({"columns": 4, "body": '"lut"'}, 'columns must be 1 or 2 with body "lut", not 4'),
        ({"drain": 2, "tiles": 3, "body": '"lut"'}, r"multiple of columns x drain \(2\), not 3"),
        ({"columns": 3, "tiles": 4}, "columns must be a power of two that divides the 4 tiles, not 3"),
        ({"columns": 4}, "columns must be a power of two that divides the 2 tiles, not 4"),
        ({"drain": 3, "tiles": 4}, "drain must be 1, 2, 4 or 8, and at most the 4 tiles, not 3"),
        ({"drain": 4}, "drain must be 1, 2, 4 or 8, and at most the 2 tiles, not 4"),
        ({"max_hidden": 40}, "max_hidden must be a multiple of 32, not 40"),
        ({"max_intermediate": 1}, "max_intermediate must be a multiple of 32, not 1"),
        ({"scales": 30}, "scales must be a multiple of 4, not 30"),
        ({"max_top_k": 5}, "max_top_k must not exceed max_experts"),
        ({"max_top_k": 9, "max_experts": 16}, "max_top_k must be an integer from 1 to 8, not 9"),
        ({"words": 1}, "words must be at least 2"),
        ({"words": (1 << 24) + 1}, "words must be an integer from 1 to 16777216"),
        ({"max_hidden": 1 << 16}, "max_hidden must be an integer from 1 to 65504"),
        ({"max_intermediate": 1 << 15}, "max_intermediate must be an integer from 1 to 32736"),
        ({"max_domains": 129}, "max_domains must be an integer from 1 to 128"),
        ({"max_groups": 0}, "max_groups must be an integer from 1 to 128"),
        ({"name": '""'}, "name must be a text"),
        ({"name": "3"}, "name must be a text"),
        ({"weight_spread": 32}, "weight_spread must be below 32"),
        ({"fp8_spread": 32}, "fp8_spread must be below 32"),
        ({"fp8_spread": 20}, "accumulators exceed"),
        ({"down_spread": 0}, "down_spread must be an integer from 1"),
        ({"router_spread": 20}, "accumulators exceed"),
        ({"activation_spread": 30, "weight_spread": 30}, "accumulators exceed"),
        ({"down_spread": 31}, "accumulators exceed"),
        ({"act_bits": 2}, 'act_bits must be 8 with body "dsp", not 2'),
        ({"tiles": 3, "body": '"asic"'}, "tiles must be a power of two, not 3"),
        ({"body": '"asic"', "act_bits": 3}, "act_bits must be 1, 2, 4 or 8, not 3"),
        ({"body": '"asic"', "act_bits": 16}, "act_bits must be an integer from 1 to 8, not 16"),
    ],
)
def test_refused(changes: dict, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(ExpertileError, match=message) as error:
        load_config(path)
    assert path in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["tiles = = 3", "tiles = 2\ntiles = 2", "[tiles", "\x00"])
def test_not_toml(text: str, tmp_path: Path) -> None:
    with pytest.raises(ExpertileError, match="not valid TOML"):
        load_config(write(tmp_path, text))


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00tiles")
    with pytest.raises(ExpertileError, match="not valid TOML"):
        load_config(str(path))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ExpertileError, match=re.escape(str(tmp_path / "none.toml"))):
        load_config(str(tmp_path / "none.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ExpertileError, match="cannot be read"):
        load_config(str(tmp_path / "folder.toml"))
    with pytest.raises(ExpertileError, match=r"no such preset; choose one of.*tiny"):
        load_config("tinny")


def test_keyword_only_and_frozen() -> None:
    config = HardwareConfig(name="a", **GOOD)
    with pytest.raises(AttributeError):
        config.tiles = 4  # type: ignore[misc]
    with pytest.raises(TypeError):
        HardwareConfig("a", *GOOD.values())  # type: ignore[misc]


def test_hash() -> None:
    """Stable from machine to machine, and different for every field."""
    config = HardwareConfig(name="a", **GOOD)
    assert config.hash == "b59a18b012bf"
    changed = {
        "name": "b", "tiles": 4, "words": 65, "scales": 36, "max_hidden": 96, "max_intermediate": 64,
        "max_experts": 5, "max_top_k": 3, "max_groups": 4, "max_domains": 4, "max_layers": 2, "page_slots": 2,
        "weight_spread": 7, "fp8_spread": 3, "activation_spread": 9, "router_spread": 3, "down_spread": 11,
        "columns": 2, "drain": 2, "body": "lut", "array_clock": 2, "act_bits": 4,
        "gate": False, "governor": False, "clamp": False,
    }  # fmt: skip
    needs = {"array_clock": {"body": "lut"}, "act_bits": {"body": "asic"}, "gate": {"governor": False}}
    assert set(changed) == {f.name for f in fields(HardwareConfig)}
    hashes = {replace(config, **{k: v}, **needs.get(k, {})).hash for k, v in changed.items()}
    assert len(hashes) == len(changed) and config.hash not in hashes
    assert HardwareConfig(**asdict(config)).hash == config.hash


def test_pace() -> None:
    config = HardwareConfig(name="a", **GOOD)
    assert (config.step_cycles, config.macs_per_cycle) == (1, 64)
    for bits, cycles in ((1, 8), (2, 4), (4, 2), (8, 1)):
        serial = replace(config, body="asic", act_bits=bits)
        assert (serial.step_cycles, serial.macs_per_cycle) == (cycles, 64 // cycles)


def test_widths_by_hand() -> None:
    config = HardwareConfig(name="a", **GOOD)
    assert (config.max_blocks, config.max_slots) == (2, 3)
    int8 = 64 * 255 * 127 * 127 << 18
    fp8 = 64 * 255 * (448 << 9) * 127 << 14
    router = 64 * 255 * 32767 * 16384 << 8
    assert fp8 > router > int8
    assert config.acc_bound == config.down_bound == fp8
    assert config.shift_max == 21  # of high nibbles, in eighths
    assert replace(config, weight_spread=1, activation_spread=2).shift_max == 16  # the router's high bytes
    assert (config.spread(INT8), config.spread(MXFP4), config.spread(FP8), config.spread(INT16)) == (
        8,
        8,
        4,
        4,
    )
    wide = replace(config, router_spread=6)
    assert (wide.acc_bound, wide.down_bound) == (router << 4, fp8)
    flat = replace(config, fp8_spread=1, weight_spread=14, router_spread=1)
    assert flat.acc_bound == int8 << 6 > fp8 >> 3
    for c in (config, wide, flat):
        assert c.acc_bits == c.acc_bound.bit_length() + 1
        # Row sum x weight below 128, aligned, over all slots.
        assert c.combine_bits == ((c.down_bound * ((1 << 23) - 1) << 12) * 3).bit_length() + 1
