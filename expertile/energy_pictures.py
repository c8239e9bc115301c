"""Pictures of the energy report: stacked bars, and what is saved when a condition changes. PNG, one
technology each."""

from collections.abc import Mapping
from typing import IO, Any

from matplotlib import colormaps
from matplotlib.figure import Figure

__all__ = ["bars", "sweeps"]

_SYSTEMS = {"cim": "in the macros", "sram": "on-chip SRAM", "dram": "DRAM"}
_BASELINES = {"sram": "against on-chip SRAM", "dram": "against DRAM"}
_SWEEPS = {
    "by_hit_rate": "hit rate of routed experts",
    "by_macro": "memory that a context is read from",
    "by_sums": "place of a row's running sum",
    "by_sram": "size of the on-chip SRAM compared with",
}


def bars(told: Mapping[str, Any], file: IO[bytes]) -> None:
    """Energy a token by component: all three systems, and the macros alone at their own scale."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=(3, 2, 1))
    colours = colormaps["tab10"].colors
    for axes, names in zip(panels, (("cim", "sram", "dram"), ("cim", "sram"), ("cim",)), strict=True):
        bottom = [0.0] * len(names)
        for colour, part in zip(colours, told["systems"]["cim"]["parts"], strict=False):
            heights = [told["systems"][s]["parts"][part] for s in names]
            axes.bar([_SYSTEMS[s] for s in names], heights, bottom=bottom, label=part, color=colour)
            bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
        axes.tick_params(axis="x", labelsize=8)
    panels[0].set_ylabel("nJ a token, all MoE layers")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    figure.suptitle(told["title"], fontsize=10)
    figure.savefig(file, format="png", dpi=110)


def sweeps(told: Mapping[str, Any], file: IO[bytes]) -> None:
    """Share of memory-access energy saved, against both baselines, as one condition changes."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(2, 2).ravel(), _SWEEPS.items(), strict=True):
        points = list(told[key])
        for baseline, name in _BASELINES.items():
            saved = [100 * told[key][p][baseline]["memory"] for p in points]
            axes.plot(points, saved, marker="o", label=name)
        axes.axhline(94, color="black", lw=0.8, ls=":", label="94 %")
        axes.set(xlabel=label, ylabel="saved, %", ylim=(min(0, *axes.get_ylim()), 102))
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.suptitle(f"memory accesses saved; {told['title']}", fontsize=10)
    figure.savefig(file, format="png", dpi=110)
