"""``expertile inspect`` and the footprint: what they say is what the quantiser and the compiler then do."""

import json

import pytest
from family_checkpoints import tiny

from expertile.cli import main
from sw_model import compiler
from sw_model.checkpoint import Checkpoint
from sw_model.config import load_config, presets
from sw_model.errors import ExpertileError
from sw_model.footprint import footprint, misfit
from sw_model.formats import EXPERT_FORMATS
from sw_model.quantised import ExpertFormats, quantise


@pytest.mark.parametrize("fmt", ["int4", "fp8", "native", "mixed"])
@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3", "gpt_oss"])
def test_footprint_is_what_the_compiler_places(family, fmt, tmp_path):
    config = load_config("base")
    checkpoint = Checkpoint.open(tiny(family, hidden=96, wide=64, quantised=True).write(tmp_path))
    formats = fmt
    if fmt == "mixed":
        formats = [
            ExpertFormats(gate_up=("int8", "mxfp4")[e % 2], down=("int4", "fp8")[e % 2])
            for e in range(len(checkpoint.outline(1).layer.everyone))
        ]
    quantised = quantise(checkpoint.moe_layer(1), formats, config)
    for tiles, columns in ((1, 1), (4, 1), (64, 8), (8, 1)):
        size = footprint(checkpoint.outline(1).layer, formats, tiles, columns)
        assert (size.words, size.scales) == compiler.size(quantised, tiles, columns)
    assert footprint(checkpoint.outline(1).layer, formats).bytes * 8 >= size.words * 128 + size.scales * 20


@pytest.mark.parametrize("hidden", [64, 160, 256])
def test_misfit_is_what_the_compiler_refuses(hidden, tmp_path):
    checkpoint = Checkpoint.open(tiny("olmoe", hidden=hidden, wide=64, num_experts=8).write(tmp_path))
    layer, seen = checkpoint.moe_layer(1), set()
    for name in presets():
        config = load_config(name)
        for fmt in EXPERT_FORMATS:
            why = misfit(checkpoint.outline(1).layer, fmt, config)
            seen.add(why is None)
            if why is None:
                compiler.compile(quantise(layer, fmt, config), config)
            else:
                with pytest.raises(ExpertileError):
                    compiler.compile(quantise(layer, fmt, config), config)
    assert True in seen


def inspect(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *map(str, arguments)])
    return ended.value.code, capsys.readouterr()


def test_json_and_table(tmp_path, capsys):
    folder = tiny("deepseek_v3", quantised=True).write(tmp_path / "model")
    code, shown = inspect(capsys, folder, "--json", tmp_path / "out.json")
    assert code == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert (report["family"], report["layers"], report["moe_layers"]) == ("deepseek_v3", 2, [1])
    assert report["text"] is False and "latent attention" in report["text_refused"]
    [kind] = report["kinds"]
    told = ("layers", "hidden", "experts", "expert_width", "experts_per_token", "groups", "groups_per_token")
    assert [kind[name] for name in told] == [[1], 64, 12, 32, 3, 4, 2]
    assert (kind["stored"], kind["shared_width"], kind["shared_gated"]) == ("fp8", 32, False)
    assert kind["weights"] == 13 * 3 * 32 * 64 + 12 * 64 + 12
    # An expert: 192 rows of 32-element blocks; the router: 12 rows of 2 blocks of four nibbles.
    blocks = 13 * (64 * 2 + 64)
    assert kind["bytes"]["mxfp4"] == (blocks * (128 + 20) + 24 * (512 + 20)) / 8
    assert kind["bytes"]["fp8"] == (blocks * (256 + 20) + 24 * (512 + 20)) / 8
    assert "3, from 2 of 4 groups" in shown.out and "sigmoid" in shown.out
    assert kind["fits"]["tiny"] == [] and "max_experts of 8" in kind["misfits"]["tiny"]


def test_layers_that_are_alike_are_told_of_once(make_checkpoint, capsys, tmp_path):
    code, shown = inspect(capsys, make_checkpoint(num_hidden_layers=4), "--json", tmp_path / "out.json")
    assert code == 0 and "MoE layers 0-3" in shown.out
    report = json.loads((tmp_path / "out.json").read_text())
    assert [kind["layers"] for kind in report["kinds"]] == [[0, 1, 2, 3]]
    assert report["text"] is True


def test_bad_input_is_one_line(tmp_path, capsys):
    folder = tiny("olmoe").write(tmp_path / "model")  # layer 0 is not there
    code, shown = inspect(capsys, folder, "--json", tmp_path / "out.json")
    assert code == 2
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1 and "is missing" in shown.err
    assert not (tmp_path / "out.json").exists()
