"""The page of training's results: written by its command from the records, and the densities in it."""

import pytest

from expertile.options import ROOT
from sw_model.training.density import of_model, of_text
from sw_model.training.tables import page


def test_the_page_is_what_the_command_writes():
    assert (ROOT / "docs" / "training.md").read_text() == page()


def test_density_by_hand():
    shape = {"parameters": 3_000_000, "active": 2_000_000, "layers": 2, "moe_layer": 500_000}
    d = of_model(shape, 1.0)
    assert (d.predicted, d.active) == (7.0, 3.5)
    assert d.stored == pytest.approx(7 / 48)
    # At INT4: 2 M parameters of 16 bits, and 1 M of 4 with 20 for every 32.
    assert of_model(shape, 1.0, int4=True).stored == pytest.approx(7 / (32 + 4.625))
    text = of_text(1_000_000, 2.0)
    assert (text.predicted, text.active, text.stored) == (6.0, None, 0.75)
