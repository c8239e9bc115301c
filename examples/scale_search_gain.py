"""What searching block scales gains over fitting each block's largest weight: the table in docs/numerics.md.

    python examples/scale_search_gain.py [--tokens N]

For every MoE layer of the shipped model and every format: SQNR in dB of the layer's output against float64,
on held-out tokens, with scales that fit the largest weight, searched ones, and ones searched on other tokens.
"""

import argparse
from unittest import mock

import numpy as np

from sim.bench import heldout_inputs
from sim.tools import ROOT
from sw_model import golden, quantised, reference
from sw_model.auto_format import importance_of
from sw_model.checkpoint import Checkpoint
from sw_model.config import load_config
from sw_model.formats import EXPERT_FORMATS


def sqnr(exact: np.ndarray, y: np.ndarray) -> float:
    """10 log10 of signal over error."""
    return 10 * float(np.log10((exact**2).sum() / ((exact - y) ** 2).sum()))


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=512, help="half calibrate, half are measured")
    tokens = parser.parse_args().tokens
    config, model = load_config("base"), Checkpoint.open(ROOT / "models" / "base")
    print("| layer | format | largest weight fits | searched | searched on calibration tokens |")
    print("|---|---|---|---|---|")
    for n, x in heldout_inputs(model, tokens).items():
        layer, seen, held = model.moe_layer(n), x[::2], x[1::2]
        exact = reference.run(layer, held).y
        matters = importance_of(layer, seen)
        for fmt in (*EXPERT_FORMATS, quantised.HIGH_NIBBLE):
            with mock.patch.object(quantised, "search_scales", return_value=None):
                plain = quantised.quantise(layer, fmt, config)
            searched = quantised.quantise(layer, fmt, config)
            calibrated = quantised.quantise(layer, fmt, config, matters)
            cells = (
                f"{sqnr(exact, golden.run(q, held, config).y):.1f}" for q in (plain, searched, calibrated)
            )
            print(f"| {n} | {fmt} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
