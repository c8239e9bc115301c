"""The formulas behind the figures, by hand; and the page that they make."""

import json

import pytest

from expertile.commands import figures
from expertile.options import ROOT
from sw_model.energy.claims import CARBON, DENSITY, PRICE, growth, routed_share, silicon, trillion


def test_growth() -> None:
    assert growth(0, 0.25) == 1
    assert growth(1, 0.25) == 4
    assert growth(0.8, 0.5) == pytest.approx(1 / 0.6)
    for used in (1 / 8, 1 / 16):
        assert growth(routed_share(7.3, used), used) == pytest.approx(7.3)
    assert routed_share(7.3, 1.2 / 8) > 1  # there is none


def test_growth_of_the_shipped_model_is_that_of_its_parameters() -> None:
    share = figures._routed_share()
    card = (ROOT / "models" / "base" / "README.md").read_text()
    assert "3,614,016" in card and "1,955,136 active" in card
    assert growth(share, 2 / 8) == pytest.approx(3_614_016 / 1_955_136, rel=1e-6)


def test_silicon_and_cost() -> None:
    assert silicon(1) == pytest.approx(8000 / DENSITY)
    kwh, dollars, tonnes = trillion(3600)  # 3.6 uJ a token
    assert (kwh, dollars, tonnes) == pytest.approx((1, PRICE, CARBON / 1e6))


def test_figures_page(tmp_path, monkeypatch, capsys) -> None:
    from test_cli import run

    bench = [
        {"preset": "base", "format": "int4", "cycles_per_token": 960.0, "cycles_per_token_single": 1500.0}
    ]
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    options = (
        "-o",
        tmp_path / "figures.md",
        "--bench",
        tmp_path / "bench.json",
        "--max-bytes",
        8,
        "--mhz",
        50,
    )
    assert run("figures", *options) == 0
    page = (tmp_path / "figures.md").read_text()
    for part in ("Memory-access energy", "1.2 experts", "7.3 times", "trillion tokens", "A GPU beside it"):
        assert part in page
    assert page.count("| Verdict | **") == page.count("| Formula |") == page.count("| Conditions |") == 4
    assert "kernels reach 41 % of" in page  # 8 x 3 x 2048 x 1024 x 2 bytes in 73.2 us, of 3.35 TB/s
    assert "960 cycles at 50 MHz, stream | 19.20 |" in page
    written = (ROOT / "docs" / "figures.md").read_text()
    assert [x for x in written.splitlines() if x.startswith("## ")] == [
        x for x in page.splitlines() if x.startswith("## ")
    ]
    assert run("figures", "-o", tmp_path / "none" / "f.md") == 2
    assert "no folder" in capsys.readouterr().err
