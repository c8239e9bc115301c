"""What the energy model says of some work in one technology, with the sweeps around it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sw_model.energy.counts import Counts
from sw_model.energy.model import SYSTEMS, Conditions, energy, reduction, total
from sw_model.energy.table import Technology

__all__ = ["HIT_RATES", "report"]

HIT_RATES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0)


def report(work: Counts, tech: Technology, conditions: Conditions) -> dict[str, Any]:
    """nJ a token by system and part, shares saved against both baselines, sweeps, and the rows used.

    ``work`` holds sums; ``tokens`` of them, all MoE layers together.
    """
    tokens = int(work.tokens)
    chosen = replace(
        conditions,
        macro=conditions.macro or tech.macro_default,
        sram=conditions.sram or tech.sram_default,
    )

    def saved(c: Conditions) -> dict[str, dict[str, float]]:
        return {
            baseline: {
                "memory": reduction(work, tech, baseline, c),
                "all": reduction(work, tech, baseline, c, compute=True),
            }
            for baseline in ("sram", "dram")
        }

    def system(name: str) -> dict[str, Any]:
        parts = {k: v / tokens / 1e3 for k, v in energy(work, tech, name, chosen).items()}
        return {"parts": parts, "memory": total(parts, compute=False), "all": total(parts, compute=True)}

    return {
        "title": tech.title,
        "conditions": {
            "hit_rate": chosen.hit_rate,
            "macro": chosen.macro,
            "sram": chosen.sram,
            "sums": chosen.sums,
            "shared": chosen.shared,
        },
        "systems": {name: system(name) for name in SYSTEMS},
        "saved": saved(chosen),
        "by_hit_rate": {str(h): saved(replace(chosen, hit_rate=h)) for h in HIT_RATES},
        "by_macro": {size: saved(replace(chosen, macro=size)) for size in tech.macro},
        "by_sram": {size: saved(replace(chosen, sram=size)) for size in tech.sram},
        "by_sums": {place: saved(replace(chosen, sums=place)) for place in tech.sums},
        "sources": {row.id: f"{row.technology}: {row.source}" for row in tech.used},
    }
