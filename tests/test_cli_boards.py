"""The list of boards: what fits where, and the record of builds."""

import json

import pytest
from test_cli import refused, run

from expertile import board_list
from expertile.board_list import RECORDS
from expertile.options import ROOT
from hw.boards.catalogue import BOARDS
from sw_model.checkpoint import Checkpoint
from sw_model.config import load_config

REPORT = {
    "fmax_mhz": 50.1, "clock_mhz": 37.5, "core_fmax_mhz": 50.1, "core_clock_mhz": 37.5, "timing_met": True,
    "lut": 100, "ff": 90, "bram": 80, "dsp": 70,
    "utilisation_percent": {"lut": 10.0, "ff": 9.0, "bram": 8.0, "dsp": 7.0},
    "seconds": 5, "critical_paths": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def layers():
    models = {name: Checkpoint.open(ROOT / "models" / name) for name in ("base", "tiny")}
    return {name: model.moe_layer(model.moe_layers[0]) for name, model in models.items()}


def report(board, config, hash=None):
    return REPORT | {"board": board, "config": config, "config_hash": hash or load_config(config).hash}


def test_what_fits(layers, tmp_path):
    rows = {row["board"]: row for row in board_list.rows(layers, "int4", tmp_path / "none.json")}
    assert list(rows) == list(BOARDS)
    big, small = rows["orangecrab_85f"], rows["ulx3s_45f"]
    assert big["fits"] == {"base": "whole", "tiny": "whole"}
    assert small["fits"] == {"base": "paged, 3/8", "tiny": "whole"}
    assert (big["macs_per_cycle"], big["weights_kib"]) == (64, 2 * 10240 * 16 // 1024)
    assert big["fmax_mhz"] is big["lut_percent"] is None
    # At FP8 even the pages are too large for one, and the other cannot page.
    wide = {row["board"]: row for row in board_list.rows(layers, "fp8", tmp_path / "none.json")}
    assert wide["orangecrab_85f"]["fits"]["base"] == wide["ulx3s_45f"]["fits"]["base"] == "no"


def test_records(layers, tmp_path):
    path = tmp_path / "boards.json"
    for made in (
        report("ulx3s_85f", "ulx3s_85f"),
        report("ulx3s_85f", "ulx3s_85f") | {"fmax_mhz": 61.5},  # takes the place of the first
        report("ulx3s_85f", "tiny"),
        report("ulx3s_45f", "ecp5_45f", hash="of what it was once"),
        report("ulx3s_45f", "a file of the user's", hash="0"),
        report("ulx3s_45f", "tiny", hash="of what it was once"),
    ):
        board_list.record(made, path)
    assert len(json.loads(path.read_text())) == 5
    rows = {(row["board"], row["preset"]): row for row in board_list.rows(layers, "int4", path)}
    assert rows["ulx3s_85f", "ulx3s_85f"]["fmax_mhz"] == 61.5
    assert rows["ulx3s_85f", "tiny"]["lut_percent"] == 10.0
    assert rows["ulx3s_85f", "tiny"]["fits"]["base"] == "no"
    assert rows["ulx3s_45f", "ecp5_45f"]["fmax_mhz"] is None
    assert len(rows) == len(BOARDS) + 1


def test_the_document_is_made_by_the_command(tmp_path, capsys):
    out = tmp_path / "boards.md"
    assert run("boards", "--markdown", out, "--json", tmp_path / "boards.json") == 0
    assert out.read_text() == (ROOT / "docs" / "boards.md").read_text()
    rows = json.loads((tmp_path / "boards.json").read_text())["boards"]
    assert {row["board"] for row in rows} == set(BOARDS)
    built = {(r["board"], r["config"]): r for r in json.loads(RECORDS.read_text())}
    for row in rows:
        if row["fmax_mhz"] is not None:
            assert row["fmax_mhz"] == built[row["board"], row["preset"]]["fmax_mhz"]
            assert row["timing_met"] and row["fmax_mhz"] >= row["clock_mhz"]
    assert "ulx3s_45f" in capsys.readouterr().out


def test_refusals(tmp_path, capsys):
    refused(capsys, tmp_path, run("boards", "--json", tmp_path / "none" / "x.json"), "no folder")
    refused(capsys, tmp_path, run("boards", "--checkpoint", tmp_path / "none"), "none")
