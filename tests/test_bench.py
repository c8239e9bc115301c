"""The bench's files: joined with FPGA reports, compared with what was recorded; the records themselves."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sim import bench, bench_report
from sw_model.config import load_config, presets
from sw_model.errors import ExpertileError
from sw_model.footprint import misfit

ROW: dict[str, Any] = {
    "preset": "tiny", "format": "int4", "model": "base", "tokens": 64, "macs_per_cycle": 64,
    "cycles_per_token": 1000.0, "cycles_per_token_single": 1500.0, "utilisation_stream": 0.9,
    "utilisation_single": 0.6, "simulated_tokens_per_s": 12.5,
}  # fmt: skip


def test_figures_of_place_and_route_are_joined(tmp_path: Path) -> None:
    report = {"fmax_mhz": 50.0, "lut": 3200, "ff": 10, "bram": 20, "dsp": 30}
    for name, config in (("fpga", "tiny"), ("fpga-other", "base")):
        (tmp_path / name).mkdir()
        text = json.dumps({**report, "config_hash": load_config(config).hash})
        (tmp_path / name / "report.json").write_text(text)
    (tmp_path / "fpga-broken").mkdir()
    (tmp_path / "fpga-broken" / "report.json").write_text("{")
    (row,) = bench_report.join([ROW], tmp_path)
    assert row == ROW | report | {"lut_per_mac": 50.0, "gmac_s": 3.2}
    other = ROW | {"preset": "ulx3s_85f"}
    recorded = [
        report | {"board": board, "config_hash": load_config("ulx3s_85f").hash, "lut": lut}
        for board, lut in (("ulx3s_85f", 6400), ("ecpix5_85f", 1))
    ]
    (tmp_path / "boards.json").write_text(json.dumps(recorded))
    (row,) = bench_report.join([other], tmp_path, tmp_path / "boards.json")
    assert row["lut_per_mac"] == 100.0
    (row,) = bench_report.join([other], tmp_path, tmp_path / "none.json")
    assert row["fmax_mhz"] is row["gmac_s"] is row["lut_per_mac"] is None


@pytest.mark.parametrize("preset", presets())
def test_every_preset_has_something_to_run(preset: str) -> None:
    """The shipped model, or a random layer of as many experts as fit."""
    config = load_config(preset)
    name, work = bench.workload(config, 2, bench.ROOT / "models" / "base")
    for layer, x in work:
        assert misfit(layer, "int4", config) is None and x.shape == (2, layer.hidden)
    if name == "random":
        assert 1 <= work[0][0].rule.top_k <= work[0][0].n_experts <= config.max_experts


def test_memory_without_room_for_an_expert() -> None:
    config = replace(load_config("tiny"), words=8)
    with pytest.raises(ExpertileError, match="'tiny': its memory does not hold one expert"):
        bench.workload(config, 2, bench.ROOT / "models" / "base")


def test_files(tmp_path: Path) -> None:
    rows = bench_report.join([ROW], tmp_path)
    bench_report.write(rows, tmp_path / "out", gate=[{"layer": 0}])
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == rows
    assert json.loads((tmp_path / "out" / "bench-gate.json").read_text()) == [{"layer": 0}]
    assert "| tiny | int4 | 64 | 0.9 | 0.6 | 1000 | 1500 |" in (tmp_path / "out" / "bench.md").read_text()


def test_regressions_are_told(tmp_path: Path) -> None:
    history = tmp_path / "history.json"
    assert bench_report.regressions([ROW], history) == []
    bench_report.record([ROW | {"cycles_per_token": 500.0}], "2026-01-01", history)
    bench_report.record([ROW], "2026-01-02", history)
    assert "simulated_tokens_per_s" not in history.read_text()
    assert bench_report.regressions([ROW], history) == []
    assert bench_report.regressions([ROW | {"cycles_per_token": 1009.0}], history) == []
    (worse,) = bench_report.regressions([ROW | {"cycles_per_token_single": 1600.0}], history)
    assert worse.startswith("tiny, int4: cycles_per_token_single 1600, 1.067 times the 1500")
    for other in ({"preset": "base"}, {"format": "int8"}, {"model": "mine"}, {"tokens": 8}):
        assert bench_report.regressions([ROW | other | {"cycles_per_token": 9999.0}], history) == []


def test_recorded_figures_meet_what_is_promised() -> None:
    """Preset base on the shipped model: the array's utilisation, and INT8 at half the rate of INT4."""
    last = {(r["preset"], r["format"]): r for r in json.loads(bench_report.HISTORY.read_text())}
    int4, int8 = last["base", "int4"], last["base", "int8"]
    assert int4["model"] == int8["model"] == "base" and int4["tokens"] == 64
    assert int4["utilisation_stream"] >= 0.85 and int4["utilisation_single"] >= 0.6
    assert int8["cycles_per_token"] / int4["cycles_per_token"] == pytest.approx(2, rel=0.05)
