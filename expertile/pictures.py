"""Pictures: quality against experts, text coloured by expert, experts by domain. PNG, no window."""

import html
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

__all__ = ["coloured_text", "curve", "heat_map", "page"]

COLUMNS, ROWS = 96, 7
EMPTY = "#ffffff"


def expert_colours(experts: int) -> list[str]:
    """One light colour an expert, told apart as far as their number allows."""
    base = [*colormaps["Set2"].colors, *colormaps["Set3"].colors] if experts <= 20 else None
    if base is None:
        return [to_hex(colormaps["hsv"](e / experts)) for e in range(experts)]
    return [to_hex(base[e]) for e in range(experts)]


def printable(byte: int) -> str:
    """One character for a byte."""
    return chr(byte) if 32 <= byte < 127 else "\N{RETURN SYMBOL}" if byte == 10 else "\N{MIDDLE DOT}"


def curve(report: Mapping[str, Any], file: IO[bytes]) -> None:
    """A gate study: bits per byte against mean experts, and what is lost where hardly anything is."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    whole, close = figure.subplots(1, 2)
    near = [r for r in report["curve"] if r["mean_experts"] > 0.95] or report["curve"]
    for axes, rows, key in ((whole, report["curve"], "bits_per_byte"), (close, near, "over_top_k")):
        mean, value = [r["mean_experts"] for r in rows], [r[key] for r in rows]
        error = [r["error"] for r in rows]
        axes.errorbar(mean, value, yerr=error, marker="o", capsize=3, label="gate, by target")
        first, top = report["first"], report["top_k"]
        axes.errorbar(
            first["mean_experts"], first[key], first["error"], fmt="^", capsize=3, label="first choice alone"
        )
        axes.plot(top["mean_experts"], top[key], "s", label="all candidates")
        axes.set_xlabel("mean routed experts a token")
        axes.grid(alpha=0.3)
    whole.set_ylabel("bits per byte, held out")
    close.set_ylabel("bits per byte over all candidates")
    whole.legend()
    figure.savefig(file, format="png", dpi=110)


def coloured_text(
    text: bytes, kept: Mapping[int, np.ndarray], experts: int, file: IO[bytes], *, most_layers: int = 5
) -> None:
    """The head of a text, once a layer: a character's ground is its first expert, the bar below its second.

    kept [T, k] by layer: experts that stayed, -1 for those that did not.
    """
    colours, layers = expert_colours(experts), sorted(kept)[:most_layers]
    shown = min(len(text), COLUMNS * ROWS)
    rows = -(-shown // COLUMNS)
    figure = Figure(figsize=(14, 0.9 + len(layers) * (0.45 + 0.27 * rows)), layout="constrained")
    panels = figure.subplots(len(layers), 1, squeeze=False)[:, 0]
    for axes, n in zip(panels, layers, strict=True):
        axes.set(xlim=(0, COLUMNS), ylim=(rows, 0), xticks=[], yticks=[])
        axes.set_title(f"layer {n}", loc="left", fontsize=10)
        axes.set_frame_on(False)
        if shown % COLUMNS:  # what lies behind the text's end is not a token without experts
            axes.add_patch(Rectangle((shown % COLUMNS, rows - 1), COLUMNS, 1, color="#eeeeee", lw=0))
        for t in range(shown):
            row, column = divmod(t, COLUMNS)
            stay = [e for e in kept[n][t] if e >= 0]
            ground = colours[stay[0]] if stay else EMPTY
            axes.add_patch(Rectangle((column, row + 0.06), 1, 0.74, color=ground, lw=0))
            if len(stay) > 1:
                axes.add_patch(Rectangle((column, row + 0.84), 1, 0.14, color=colours[stay[1]], lw=0))
            axes.text(
                column + 0.5, row + 0.45, printable(text[t]), ha="center", va="center", fontsize=8.5,
                family="monospace", color="#111111", parse_math=False,
            )  # fmt: skip
    names = [Patch(color=colour, label=f"expert {e}") for e, colour in enumerate(colours)]
    names.append(Patch(facecolor=EMPTY, edgecolor="#999999", label="none"))
    figure.legend(handles=names, loc="outside lower center", ncols=min(len(names), 10), frameon=False)
    figure.savefig(file, format="png", dpi=110)


def heat_map(shares: Mapping[int, np.ndarray], domains: Sequence[str], file: IO[bytes]) -> None:
    """shares [G, E] by layer: how often, of a domain's kept experts, it is this one."""
    layers = sorted(shares)
    columns = min(3, len(layers))
    rows = -(-len(layers) // columns)
    experts = shares[layers[0]].shape[1]
    size = (1.2 + columns * (1.6 + 0.42 * experts), 0.8 + rows * (0.9 + 0.38 * len(domains)))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    most, image = max(float(s.max()) for s in shares.values()), None
    for axes, n in zip(panels, layers, strict=False):
        image = axes.imshow(shares[n], cmap="viridis", vmin=0, vmax=most, aspect="auto")
        axes.set_title(f"layer {n}", fontsize=10)
        axes.set_xticks(range(experts), map(str, range(experts)), fontsize=8)
        axes.set_yticks(range(len(domains)), domains, fontsize=9)
        axes.set_xlabel("expert", fontsize=9)
        if experts <= 16:
            for g, e in np.ndindex(shares[n].shape):
                light = shares[n][g, e] < 0.6 * most
                axes.text(
                    e, g, f"{100 * shares[n][g, e]:.0f}", ha="center", va="center", fontsize=7.5,
                    color="white" if light else "black",
                )  # fmt: skip
    for axes in panels[len(layers) :]:
        axes.set_axis_off()
    if image is not None:
        figure.colorbar(image, ax=panels.tolist(), label="share of a domain's experts (cells: %)", shrink=0.8)
    figure.savefig(file, format="png", dpi=120)


def page(texts: Mapping[str, bytes], layers: Mapping[int, Any], experts: int) -> str:
    """HTML: every text once a layer, coloured; the pointer shows a token's candidates and their fate.

    layers : by number, for every token of all texts end to end, (kept experts, what to show)
    """
    colours = expert_colours(experts)
    head = "".join(f'<span class=k style="background:{c}">expert {e}</span> ' for e, c in enumerate(colours))
    parts = [
        "<!doctype html><meta charset=utf-8><title>Experts by token</title>",
        "<style>body{font:14px sans-serif;margin:2em;max-width:110ch}pre{white-space:pre-wrap;"
        "overflow-wrap:anywhere;line-height:1.5;font-size:13px}.k{padding:2px 6px}</style>",
        f"<p>{head} no colour: no routed expert. The line below a character is its second expert.</p>",
    ]
    for n, tokens in sorted(layers.items()):
        parts.append(f"<h2>layer {n}</h2>")
        at = 0
        for name, text in texts.items():
            parts.append(f"<h3>{html.escape(name)}</h3><pre>")
            for byte in text:
                kept, what = tokens[at]
                at += 1
                style = f"background:{colours[kept[0]]}" if kept else ""
                if len(kept) > 1:
                    style += f";border-bottom:3px solid {colours[kept[1]]}"
                shown = html.escape(printable(byte)) + ("\n" if byte == 10 else "")
                parts.append(f'<span style="{style}" title="{html.escape(what)}">{shown}</span>')
            parts.append("</pre>")
    return "".join(parts) + "\n"
