"""``docs/figures.md``: the claims that projects like this make, each with what we compute for it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sw_model.energy.claims import (
    CARBON,
    DENSITY,
    HBM,
    MODELS,
    PRICE,
    RETICLE,
    growth,
    routed_share,
    silicon,
    trillion,
)
from sw_model.energy.counts import of_shape
from sw_model.energy.model import Conditions, energy, total
from sw_model.energy.table import technologies
from sw_model.formats import EXPERT_FORMATS

__all__ = ["page"]

OLMOE = {"hidden": 2048, "width": 1024, "experts": 64, "used": 8}  # a layer of it, of 16
OLMOE_LAYERS = 16
SHIPPED = {"hidden": 192, "width": 96, "experts": 8, "used": 2, "shared": 192}
SYSTEMS = {"cim": "macros", "sram": "on-chip SRAM", "dram": "DRAM"}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(r)} |" for r in (head, ["---"] * len(head), *rows)] + [""]


def _claim(title: str, claim: str, ours: str, formula: str, conditions: str, verdict: str) -> list[str]:
    rows = (("Claim", claim), ("Ours", ours), ("Formula", formula), ("Conditions", conditions))
    return [f"## {title}", "", *_table(("", ""), [*rows, ("Verdict", f"**{verdict}**")])]


def _percent(x: float) -> str:
    return f"{100 * x:.1f} %"


def memory(told: Mapping[str, Any]) -> list[str]:
    """-94 % of memory-access energy: ``told`` is the report of every technology."""
    best = told["cacti22"]
    at, hits = best["conditions"], best["by_hit_rate"]
    lines = _claim(
        "Memory-access energy",
        "94 % less memory-access energy",
        f"{_percent(best['saved']['sram']['memory'])} less than with {at['sram']} of on-chip SRAM, "
        f"{_percent(best['saved']['dram']['memory'])} less than from DRAM (22 nm)",
        "1 - E(macros) / E(baseline), E over weights and scales, activations, sums, registers, misses",
        f"`cacti22`; all experts resident; contexts in memories of {at['macro']}; sums in the tile; "
        f"{at['shared']} tiles share an activation read; INT4; shipped model on held-out text",
        "Holds only if all of that does; against DRAM it holds in every technology",
    )
    lines += _table(
        ("technology", "against SRAM", "against DRAM", "with compute, SRAM", "with compute, DRAM"),
        (
            (
                f"`{name}`: {t['title']}",
                *(_percent(t["saved"][b][k]) for k in ("memory", "all") for b in BASES),
            )
            for name, t in told.items()
        ),
    )
    lines += _table(
        ("`cacti22`, hit rate", *hits),
        ((f"against {SYSTEMS[b]}", *(_percent(v[b]["memory"]) for v in hits.values())) for b in BASES),
    )
    for key, what in (("by_macro", "contexts read from"), ("by_sums", "sums in")):
        sweep = best[key]
        lines += _table(
            (f"`cacti22`, {what}", *sweep),
            ((f"against {SYSTEMS[b]}", *(_percent(v[b]["memory"]) for v in sweep.values())) for b in BASES),
        )
    return [*lines, "[Energy](energy.md) has the model, its sources and what is not in it.", ""]


BASES = ("sram", "dram")


def experts(top: Mapping[str, float], gated: Mapping[str, float]) -> list[str]:
    """1.2 experts: ``experts``, ``bits`` and ``nj`` of a token with all candidates and with the gate."""
    ratio = gated["nj"] / top["nj"]
    return _claim(
        "1.2 experts a token",
        "1.2 routed experts a token instead of 2, without loss",
        f"{gated['experts']:.3f} experts; {gated['bits']:.4f} bits a byte where both experts give "
        f"{top['bits']:.4f}; {ratio:.2f} of the energy of the MoE layers (`cacti22`, compute included)",
        "mean over tokens and layers of the experts that stay; sum of -log2 p over bytes",
        "`models/base/gate.json`, shipped model, INT4, the held-out text of this run",
        "Holds for this model, which has a base expert and whose second expert says little",
    ) + [
        "Published results without loss at 1.2 to 1.4 are of k = 2 models with a trained gate; elsewhere 1.2 "
        "is a trade of quality. [The gate](gate.md) has the whole curve.",
        "",
    ]


def larger(routed: float) -> list[str]:
    """7.3 times larger at equal products; ``routed``: share of the shipped model's parameters in experts."""
    lines = _claim(
        "7.3 times larger at equal products",
        "a model 7.3 times larger at the same multiply-accumulates a token",
        f"{growth(routed, 2 / 8):.2f} for the shipped model with 2 of 8 experts, "
        f"{growth(routed, 1.2 / 8):.2f} with 1.2; 7.3 with one expert of 8 needs f = "
        f"{routed_share(7.3, 1 / 8):.3f}",
        "R = 1 / ((1 - f) + f k / N), f the share of parameters in routed experts",
        f"shipped model: f = {routed:.3f}, N = 8",
        "Holds only if k / N is small: no f reaches 7.3 with 1.2 of 8 experts "
        f"(at most {growth(1, 1.2 / 8):.2f}) or 2 of 8 (at most {growth(1, 2 / 8):.2f})",
    )
    lines += _table(
        ("model", "parameters", "active", "experts", "R"),
        (
            (
                m.name,
                f"{m.total:g} G",
                f"{m.active:g} G",
                f"{m.top_k} of {m.experts}",
                f"{m.total / m.active:.1f}",
            )
            for m in MODELS
        ),
    )
    area = silicon(80)
    return [
        *lines,
        "R counts products, not memory. It is no claim of capacity: a larger model must also be kept "
        f"somewhere. The densest published digital macro that we found holds {DENSITY} Mbit in a mm² (5 nm); "
        f"the 80 GB of one GPU's HBM would be {area:,.0f} mm² of it, {area / RETICLE:.0f} chips of the "
        "largest size that can be exposed. A model in macros is a small model, or many chips.",
        "",
    ]


def cost(gpu: Mapping[str, Any] | None) -> list[str]:
    """Energy, cost and carbon of 10**12 tokens through all MoE layers of an OLMoE-like model."""
    work = of_shape(fmt=EXPERT_FORMATS["int4"], **OLMOE)
    rows = []
    for name in ("cacti22", "7nm", "ihp130"):
        for system, where in SYSTEMS.items():
            parts = energy(work, technologies()[name], system, Conditions(sram=_largest(name)))
            nj = OLMOE_LAYERS * total(parts, compute=True) / 1e3
            rows.append((f"modelled, `{name}`, weights in {where}", nj))
    measured = _fastest(gpu, "olmoe")
    for (_, batch), row in measured.items():
        rows.append((f"measured, {gpu['device']}, batch {batch}", OLMOE_LAYERS * row["uj_per_token"] * 1e3))
    best = next(nj for name, nj in rows if "cacti22" in name and "macros" in name)
    kwh, dollars, tonnes = trillion(best)
    lines = _claim(
        "A trillion tokens",
        "energy, cost and carbon of 10¹² tokens",
        f"{kwh:.1f} kWh, {dollars:.2f} $ of electricity, {1000 * tonnes:.1f} kg of CO₂ (modelled, `cacti22`)",
        "E a token x 10¹² / 3.6 MJ; times price; times carbon intensity",
        "MoE layers of an OLMoE-like model alone (16 layers, hidden 2048, 8 of 64 experts of 1024), INT4, "
        f"all resident; {PRICE} $ and {CARBON:g} g a kWh; no cooling, host, idle or leakage",
        "Computed, not measured; a chip that holds these weights does not exist "
        f"({silicon(OLMOE_LAYERS * _gigabytes()):,.0f} mm² of 5 nm macros)",
    )
    lines += _table(
        ("system", "µJ a token", "kWh", "$ of electricity", "t of CO₂"),
        (
            (name, f"{nj / 1e3:,.1f}", *(f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in trillion(nj)))
            for name, nj in rows
        ),
    )
    return [
        *lines,
        "On-chip SRAM is the largest that each set has (64 MB, 1 MB, 16 KB), all far too small for these "
        "weights; a memory that could hold them would cost more. The GPU's rows hold its whole board, idle "
        "power too; the modelled ones hold switching in the layers and nothing else.",
        "",
    ]


def _largest(name: str) -> str:
    return list(technologies()[name].sram)[-1]


def _gigabytes() -> float:
    """Of a layer's experts at INT4 with their scales."""
    weights = 3 * OLMOE["hidden"] * OLMOE["width"] * OLMOE["experts"]
    return weights * (4 + 20 / 32) / 8e9


def _fastest(gpu: Mapping[str, Any] | None, shape: str) -> dict[tuple[str, int], Mapping[str, Any]]:
    """The row of the fastest routine by shape and batch."""
    best: dict[tuple[str, int], Mapping[str, Any]] = {}
    for row in gpu["rows"] if gpu else ():
        key = (row["shape"], row["batch"])
        if row["shape"] == shape and (key not in best or row["us_per_token"] < best[key]["us_per_token"]):
            best[key] = row
    return best


def beside(gpu: Mapping[str, Any] | None, cycles: Mapping[str, float], mhz: float) -> list[str]:
    """The same layer on a GPU. ``cycles`` : a token's, by how tokens come; ``mhz`` : of the board."""
    if gpu is None:
        return []
    rows = []
    for shape, name in ((SHIPPED, "shipped"), (OLMOE, "olmoe")):
        for (_, batch), row in _fastest(gpu, name).items():
            rows.append(
                (
                    f"{name}, batch {batch}",
                    f"measured, {row['routine']}",
                    f"{row['us_per_token']:.2f}",
                    f"{row['uj_per_token']:,.0f}",
                )
            )
        for tech in ("cacti22", "7nm"):
            parts = energy(
                of_shape(fmt=EXPERT_FORMATS["int4"], **shape), technologies()[tech], "cim", Conditions()
            )
            rows.append(
                (f"{name}, ours", f"modelled, `{tech}`", "", f"{total(parts, compute=True) / 1e6:,.3f}")
            )
        if name == "shipped":
            for pattern, n in cycles.items():
                rows.append(
                    (f"{name}, ours", f"{n:,.0f} cycles at {mhz:g} MHz, {pattern}", f"{n / mhz:.2f}", "")
                )
    return [
        "## A GPU beside it",
        "",
        f"One layer on one {gpu['device']} (`python -m sw_model.training.gpu_layer`, bfloat16, torch "
        f"{gpu['torch']}; the fastest of four routines): time and NVML energy of the whole board are "
        f"measured, {gpu['idle_w']:.0f} W of it idle. Our energy is modelled (INT4, compute included); our "
        "time, where there is one, is simulated cycles at the clock of an FPGA board.",
        "",
        *_table(("layer", "how", "µs a token", "µJ a token"), rows),
        "At a batch of one the GPU waits: for its own launches on the small layer, for memory on the large "
        f"one{_reached(gpu)}. Different number formats, a whole board "
        "measured against a model of one chip's switching: read orders of magnitude here, not ratios.",
        "",
    ]


def _reached(gpu: Mapping[str, Any]) -> str:
    """Share of the memory's bandwidth at which a token's experts of the large layer are read (bfloat16)."""
    row = _fastest(gpu, "olmoe").get(("olmoe", 1))
    if row is None or gpu["device"] not in HBM:
        return ""
    read = 2 * 3 * OLMOE["used"] * OLMOE["hidden"] * OLMOE["width"]
    share = read / (row["us_per_token"] * 1e-6) / HBM[gpu["device"]]
    return f" (where our kernels reach {100 * share:.0f} % of its bandwidth)"


def page(
    told: Mapping[str, Any],
    top: Mapping[str, float],
    gated: Mapping[str, float],
    routed: float,
    gpu: Mapping[str, Any] | None,
    cycles: Mapping[str, float],
    mhz: float,
) -> str:
    """The whole page, from what was measured."""
    return "\n".join(
        [
            "# Figures",
            "",
            "Written by `expertile figures`. Claims made for accelerators of this kind, and what we get.",
            "",
            *memory(told),
            *experts(top, gated),
            *larger(routed),
            *cost(gpu),
            *beside(gpu, cycles, mhz),
        ]
    )
