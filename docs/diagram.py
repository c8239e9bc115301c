"""Draws docs/diagram.svg: the way of a token through the hardware, each block with the file it lives in.

python docs/diagram.py [FILE.svg|FILE.png]
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "expertile"  # the same bytes on every run
matplotlib.rcParams["font.family"] = "DejaVu Sans"
import matplotlib.pyplot as plt  # noqa: E402 (after the choice of backend)
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch  # noqa: E402

INK, GREY, MODEL, LOGIC, ARRAY, HOST = "#1f2933", "#7b8794", "#e3f0fb", "#eef2f0", "#fdf0d9", "#efeaf7"

# title, path, x, y, width, height, colour
BLOCKS = [
    ("checkpoint", "sw_model/checkpoint.py", 0.2, 8.1, 2.3, 0.9, MODEL),
    ("quantiser", "sw_model/quantised.py", 3.0, 8.1, 2.3, 0.9, MODEL),
    ("compiler", "sw_model/compiler.py", 5.9, 8.1, 2.3, 0.9, MODEL),
    ("golden model", "sw_model/golden.py", 9.2, 8.1, 2.3, 0.9, MODEL),
    ("weights, registers", "hw/host/", 5.9, 6.2, 2.3, 0.9, HOST),
    ("quantise", "hw/numerics/quantiser.py", 0.2, 4.0, 2.3, 0.9, LOGIC),
    ("activation buffer", "hw/pe/activations.py", 3.0, 4.0, 2.3, 0.9, LOGIC),
    ("scheduler, contexts", "hw/pe/scheduler.py", 0.2, 5.2, 2.3, 0.9, LOGIC),
    ("sequencer", "hw/pe/sequencer.py", 3.0, 5.2, 2.3, 0.9, LOGIC),
    ("normalise", "hw/numerics/normalise.py", 6.2, 1.5, 2.3, 0.9, LOGIC),
    ("router, 3-level gate", "hw/router/router.py", 0.2, 1.5, 2.3, 0.9, LOGIC),
    ("clamp, SwiGLU", "hw/pe/activate.py", 3.0, 1.5, 2.3, 0.9, LOGIC),
    ("weighted combine", "hw/pe/combine.py", 9.2, 1.5, 2.3, 0.9, LOGIC),
    ("round once", "hw/numerics/float32.py", 9.2, 0.1, 2.3, 0.9, LOGIC),
]
TILES = (5.9, 3.0, 5.6, 2.6)

# points of the line, label, where the label stands
ARROWS = [
    ([(2.5, 8.55), (3.0, 8.55)], "", None),
    ([(5.3, 8.55), (5.9, 8.55)], "", None),
    ([(7.05, 8.1), (7.05, 7.1)], "weight image", (7.15, 7.55)),
    ([(10.35, 8.1), (10.35, 7.35)], "every bit\nequal", (10.45, 7.75)),
    ([(7.05, 6.2), (7.05, 5.6)], "", None),
    ([(-1.0, 4.45), (0.2, 4.45)], "x", (-0.95, 4.62)),
    ([(2.5, 4.45), (3.0, 4.45)], "", None),
    ([(5.3, 4.45), (5.9, 4.45)], "", None),
    ([(0.2, 1.95), (-0.15, 1.95), (-0.15, 5.65), (0.2, 5.65)], "experts", (-0.05, 2.75)),
    ([(2.5, 5.65), (3.0, 5.65)], "", None),
    ([(5.3, 5.4), (5.9, 5.4)], "", None),
    ([(7.35, 3.0), (7.35, 2.4)], "rows", (7.45, 2.7)),
    ([(6.2, 1.95), (5.3, 1.95)], "gate, up", (5.38, 2.08)),
    ([(10.35, 3.0), (10.35, 2.4)], "rows of down", (10.45, 2.7)),
    ([(10.35, 1.5), (10.35, 1.0)], "", None),
    ([(9.2, 0.55), (-1.0, 0.55)], "y", (-0.95, 0.72)),
    ([(4.15, 2.4), (4.15, 3.2), (1.35, 3.2), (1.35, 4.0)], "h", (4.25, 2.8)),
    ([(7.35, 1.5), (7.35, 1.2), (1.7, 1.2), (1.7, 1.5)], "router's rows", (5.4, 1.33)),
    ([(0.9, 1.5), (0.9, 0.87), (8.85, 0.87), (8.85, 1.95), (9.2, 1.95)], "weights", (5.4, 1.0)),
]


def rounded(axes, x, y, width, height, colour, **style):
    """A rounded box."""
    shape = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, fc=colour, **({"ec": INK} | style)))


def path_text(axes, x, y, text, ha="center"):
    """The name of a file."""
    axes.text(x, y, text, ha=ha, va="center", fontsize=6.6, color=GREY, family="DejaVu Sans Mono")


def block(axes, title, path, x, y, width, height, colour):
    """One block with its file underneath."""
    rounded(axes, x, y, width, height, colour, lw=1)
    axes.text(x + width / 2, y + height * 0.63, title, ha="center", va="center", fontsize=9.5, color=INK)
    path_text(axes, x + width / 2, y + height * 0.26, path)


def arrow(axes, points, label, at):
    """A line through ``points`` with a head at the end."""
    *_, before, end = points
    xs, ys = zip(*points[:-1], strict=True)
    axes.plot(xs, ys, color=INK, lw=1.1)
    head = {"arrowstyle": "-|>", "mutation_scale": 11, "lw": 1.1, "color": INK, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(before, end, **head))
    if label:
        axes.text(*at, label, fontsize=7.6, color=INK, va="center")


def array(axes):
    """The tiles side by side."""
    x, y, width, height = TILES
    rounded(axes, x, y, width, height, ARRAY, lw=1.2)
    axes.text(x + 0.15, y + height - 0.27, "CIM array", fontsize=9.5, color=INK, va="center")
    path_text(axes, x + 1.25, y + height - 0.27, "hw/pe/array.py", ha="left")
    path_text(axes, x + width - 0.12, y + height - 0.27, "hw/pe/tile.py, hw/cim/macro.py", ha="right")
    for i in range(4):
        left = x + 0.15 + i * 1.34
        rounded(axes, left, y + 0.15, 1.24, 1.9, "white", lw=0.9)
        rows = ((1.82, "tile"), (1.3, "macro: SRAM,\n32 products"), (0.8, "× block scale"), (0.4, "Σ exact"))
        for up, text in rows:
            axes.text(left + 0.62, y + up, text, fontsize=7.2, ha="center", va="center", color=INK)


def draw(path: Path) -> None:
    """Write the picture; the ending of ``path`` chooses SVG or PNG."""
    figure, axes = plt.subplots(figsize=(11, 8.4))
    axes.set_xlim(-1.1, 11.9)
    axes.set_ylim(-0.4, 9.5)
    axes.set_axis_off()
    rounded(axes, -0.4, -0.2, 12.2, 7.55, "#fbfbfb", lw=0.8, ec=GREY, ls="--")
    style = {"fontsize": 9, "color": GREY, "style": "italic", "va": "center"}
    axes.text(0.2, 9.3, "once a checkpoint: Python", **style)
    axes.text(0.2, 7.05, "for each token: hardware", **style)
    path_text(axes, 0.2, 6.75, "hw/layer.py", ha="left")
    path_text(axes, 10.25, 7.75, "sim/engines.py", ha="right")
    for row in BLOCKS:
        block(axes, *row)
    array(axes)
    for row in ARROWS:
        arrow(axes, *row)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, bbox_inches="tight", dpi=150, metadata=metadata)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg"))
