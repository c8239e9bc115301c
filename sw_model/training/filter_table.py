"""The page's section on the filter by semantic entropy, for `tables.py`."""

from sw_model.training.records import Records, percent, table
from sw_model.training.sources import DOMAINS

__all__ = ["filter_table"]


def filter_table(r: Records) -> list[str]:
    """The section on the filter by semantic entropy."""
    numbers = (1, 2, 3)

    def row(title: str, names: list[str]) -> list[str]:
        by = [r.run[name]["metrics"]["bits_per_byte"]["model"] for name in names]
        kept = [sum(d["kept_bytes"] for d in r.run[n]["filter"]["domains"].values()) for n in names]
        own = [f"{sum(m[d] for m in by) / len(by):.4f}" for d in DOMAINS]
        return [title, f"{sum(kept) / len(kept):,.0f}", *own, f"{sum(map(r.mean, names)) / len(names):.4f}"]

    ours, lots = [f"filter_{n}" for n in numbers], [f"lot_{n}" for n in numbers]
    rows = [row(f"by semantic entropy, seed {n}", [f"filter_{n}"]) for n in numbers]
    rows += [row(f"by lot {n}, seed {n}", [f"lot_{n}"]) for n in numbers]
    rows += [row("by semantic entropy, mean", ours), row("by lot, mean", lots)]
    gain = percent(sum(map(r.mean, ours)), sum(map(r.mean, lots)))
    beaten = max(map(r.mean, ours)) < min(map(r.mean, lots))
    named = {
        "lot.1": "lot", "lot.2": "lot, again", "lot.3": "lot, again", "top": "highest H first",
        "low": "lowest H first", "wlot": "lot, chances as H", "noboil": "lot without the lowest 30 %",
        "nonoise": "lot without the highest 30 %", "band": "lot between 20 % and 80 %",
        "strat": "lot in groups", "strattop": "highest H in groups", "stratlow": "lowest H in groups",
        "stratmid": "median H in groups", "glot50": "one lot, chances as sqrt H",
        "glot50.2": "one lot, chances as sqrt H, again", "glot100": "one lot, chances as H",
        "lot-entropy": "lot, budgets as H", "lot-root": "lot, budgets as sqrt H",
        "lot-root.2": "lot, budgets as sqrt H, again", "strat-root": "lot in groups, budgets as sqrt H",
        "strattop-root": "highest H in groups, budgets as sqrt H",
    }  # fmt: skip
    order = sorted(named, key=lambda name: r.tried[name]["valid"]["valid"])
    tried = [
        [named[n], *(f"{r.tried[n]['valid'][d]:.4f}" for d in DOMAINS), f"{r.tried[n]['valid']['valid']:.4f}"]
        for n in order
    ]
    return [
        "## Filter by semantic entropy",
        "",
        "`semantic_entropy.py` keeps a quarter of the bytes (the article 1.9 % of 45 TB): highest entropy "
        "first in "
        "each group of like documents, domains' budgets in proportion to their bytes times sqrt H. `tiny`'s "
        "shape "
        f"from scratch on what is kept, {r.steps('lot_1')} steps of 64 x 1024 bytes; all test text.",
        "",
        *table(["text", "bytes kept", *DOMAINS, "mean"], rows),
        f"Against the lot: {gain} on the mean. "
        + (
            "The worst of the three runs is better than the best lot."
            if beaten
            else "The runs of both kinds overlap."
        )
        + " Worked problems, of which the filter keeps two fifths of the lot's, are foreseen as well.",
        "",
        "The rule was chosen on validation text, the same shape and steps, seed 1, one run a rule:",
        "",
        *table(["rule", *DOMAINS, "mean"], tried),
        "Most of the gain is the domains' budgets. Without groups and budgets no choice by entropy beats the "
        "best of the lots: held-out text is drawn like all text, and the hardest documents are not like it. "
        "The shipped models are trained on everything.",
        "",
    ]
