"""One MoE layer of the shipped model on every engine, fed with what it really sees.

    .venv/bin/python examples/one_layer_every_engine.py [--layer 2] [--tokens 16] [--text TEXT]

Runs the float model over a text, saves the hidden states that enter the layer as x.npy, then calls the
command line once an engine. The last line must say that golden, verilator and icarus gave the same bytes.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from sw_model.checkpoint import Checkpoint
from sw_model.decoder import layer_inputs

ROOT = Path(__file__).resolve().parent.parent
TEXT = "The Congress shall have power to lay and collect taxes, duties, imposts and excises. " * 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--text", default=TEXT)
    parser.add_argument("--format", default="int8")
    options = parser.parse_args()

    folder = ROOT / "build" / "example"
    folder.mkdir(parents=True, exist_ok=True)
    model = Checkpoint.open(ROOT / "models" / "base")
    x = layer_inputs(model, [options.text.encode()])[options.layer][: options.tokens]
    np.save(folder / "x.npy", x)
    print(f"{folder / 'x.npy'}: {x.shape[0]} tokens of {x.shape[1]} numbers", flush=True)

    for engine in ("reference", "golden", "verilator", "icarus"):
        command = [Path(sys.executable).with_name("expertile"), "layer", "--checkpoint", model.folder]
        command += ["--layer", options.layer, "--format", options.format, "--engine", engine]
        command += ["--input", folder / "x.npy", "--output", folder / f"{engine}.npy"]
        subprocess.run(list(map(str, command)), check=True)
    outputs = {(folder / f"{engine}.npy").read_bytes() for engine in ("golden", "verilator", "icarus")}
    print("golden, verilator and icarus:", "the same bytes" if len(outputs) == 1 else "DIFFERENT")


if __name__ == "__main__":
    main()
