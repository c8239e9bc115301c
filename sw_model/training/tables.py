"""The page of what training showed, `docs/training.md`, from the records in `docs/training/`.

    python -m sw_model.training.tables > docs/training.md

All that was measured is read from those files, which `record.py` and `routing.py` wrote; the sentences say
what it showed, and are to be read again when the records change.
"""

import json
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from sw_model.training.density import Density, of_model, of_text
from sw_model.training.sources import DOMAINS

__all__ = ["page"]

_FOLDER = Path(__file__).parents[2] / "docs" / "training"
_EQUAL = ("1000", "2000", "3000", "4000", "5000", "6000")


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]


def _percent(value: float, base: float) -> str:
    return f"{100 * (value / base - 1):+.1f} %"


class _Records:
    def __init__(self, folder: Path) -> None:
        self.run = {p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))}
        self.corpus = self.run.pop("corpus")
        self.routing = self.run.pop("routing")

    def mean(self, name: str, row: str = "model") -> float:
        return self.run[name]["metrics"]["mean"][row]

    def steps(self, name: str) -> str:
        return f"{self.run[name]['training']['steps']:,}"

    def at_step(self, name: str, step: str) -> float:
        return float(next(r["valid"] for r in self.run[name]["log"] if r["step"] == step))


def _quality(r: _Records) -> list[str]:
    names = {
        "model": "float", "int8": "INT8", "int4": "INT4", "gated": "gated, 1.2 experts",
        "gated_int4": "gated, INT4", "first": "the better expert alone",
        "ngram": "order-6 n-gram", "xz": "xz",
    }  # fmt: skip
    out = ["## The shipped models", "", "Held-out bits per byte, all test text.", ""]
    rows = []
    for model in ("base", "tiny", "teacher"):
        bits = r.run[model]["metrics"]["bits_per_byte"]
        for key, title in names.items():
            baseline = key in ("ngram", "xz")
            if key in bits and (not baseline or model == "base"):
                own = f"{bits[key][DOMAINS[0]]:.4f}"
                rest = [f"{bits[key][d]:.4f}" for d in DOMAINS[1:]]
                rows.append(
                    [title if baseline else f"`{model}`, {title}", own, *rest, f"{r.mean(model, key):.4f}"]
                )
    return out + _table(["", *DOMAINS, "mean"], rows)


def _distillation(r: _Records) -> list[str]:
    rows = []
    named = {
        "tiny_scratch": "from scratch", "tiny_logits": "teacher's distribution",
        "tiny_adversary": "and adversary", "teacher": "native, ten times larger (the teacher)",
    }  # fmt: skip
    base = r.run["tiny_scratch"]["metrics"]
    error = base["error_rate"]["model"]["code"]
    for name, title in named.items():
        m = r.run[name]["metrics"]
        own = m["error_rate"]["model"]["code"]
        rows.append(
            [
                title,
                f"{r.run[name]['training']['shape']['parameters']:,}",
                f"{r.mean(name):.4f}",
                _percent(r.mean(name), r.mean("tiny_scratch")),
                f"{m['bits_per_byte']['model']['code']:.4f}",
                f"{100 * own:.2f} %",
                _percent(own, error),
            ]
        )
    large = r.run["teacher"]["metrics"]["error_rate"]["model"]["code"]
    best = r.run["tiny_logits"]["metrics"]["error_rate"]["model"]["code"]
    return [
        "## Distillation",
        "",
        f"`tiny`'s shape, float, no gate, {r.steps('tiny_scratch')} steps of the same batches; the teacher "
        "had "
        f"{r.run['teacher']['training']['steps']:,}. Errors: next bytes of code that are not the likeliest "
        "one.",
        "",
        *_table(["", "parameters", "bits per byte", "", "code", "errors on code", ""], rows),
        "Errors of the distilled student against the native model ten times larger: "
        f"{_percent(best, large)}. The article claims -38 %, which does not hold here. Against the same "
        f"model from scratch: {_percent(best, error)}. The adversary takes back a part of what distillation "
        "gains in bits.",
        "",
    ]


def _stages(r: _Records) -> list[str]:
    rows = []
    for name, title in (("tiny_scratch", "1000 : 300 : 70"), ("tiny_one_stage", "one stage, the mean mix")):
        m = r.run[name]["metrics"]["bits_per_byte"]["model"]
        rows.append([title, *(f"{m[d]:.4f}" for d in DOMAINS), f"{r.mean(name):.4f}"])
    return [
        "## Three stages against one",
        "",
        "Same model, steps and learning rate, from scratch, float.",
        "",
        *_table(["", *DOMAINS, "mean"], rows),
    ]


def _filter(r: _Records) -> list[str]:
    rows = []
    for name, title in (
        ("filter_semantic", "by semantic entropy"),
        ("filter_lot", "by lot"),
        ("tiny_scratch", f"all text, {r.steps('tiny_scratch')} steps"),
    ):
        m, kept = r.run[name]["metrics"]["bits_per_byte"]["model"], r.run[name]["filter"]
        size = sum(d["kept_bytes"] for d in kept["domains"].values()) if kept else r.corpus["train"]
        rows.append([title, f"{size:,}", *(f"{m[d]:.4f}" for d in DOMAINS), f"{r.mean(name):.4f}"])
    loses = r.mean("filter_semantic") > r.mean("filter_lot")
    return [
        "## Filter by semantic entropy",
        "",
        "`semantic_entropy.py` keeps a quarter of every domain's bytes; `tiny`'s shape from scratch on what "
        f"is kept, {r.steps('filter_lot')} steps. The article keeps 1.9 % of 45 TB.",
        "",
        *_table(["text", "bytes kept", *DOMAINS, "mean"], rows),
        (
            "The filter loses to the lot: documents whose continuations are hard to foresee are not like the "
            "held-out text, which is drawn like all text. Only on worked problems it wins. So the shipped "
            "models are trained on everything."
            if loses
            else "The filter beats the lot."
        ),
        "",
    ]


def _precision(r: _Records) -> list[str]:
    rows = []
    for name, title in (
        ("base", "`base`"),
        ("tiny", "`tiny`"),
        ("base_int4_early", "`base`'s shape, an earlier recipe: tolerance 0.25, no rate in the rule"),
    ):
        run = r.run[name]
        entered = {row["next"]: row for row in run["precision"] if row["entered"] == "True"}
        total = run["training"]["steps"]
        at = [
            f"{f} {int(row['step']):,}" + ("" if row["ratio"] else " (latest)") for f, row in entered.items()
        ]
        last = run["log"][-1]
        rows.append(
            [
                title,
                f"{total:,}",
                "; ".join(at),
                f"{float(last['valid']):.4f}",
                f"{float(last['valid_rounded']):.4f}",
                _percent(float(last["valid_rounded"]), float(last["valid"])),
            ]
        )
    last = r.run["tiny_scratch"]["metrics"]["mean"]
    rows.append(
        ["`tiny`'s shape, from scratch, rounded afterwards", r.steps("tiny_scratch"), "never",
         f"{last['model']:.4f} (test)", f"{last['int4']:.4f} (test)", _percent(last["int4"], last["model"])]
    )  # fmt: skip
    last = r.run["tiny_logits"]["metrics"]["mean"]
    rows.append(
        ["the same, distilled", r.steps("tiny_logits"), "never", f"{last['model']:.4f} (test)",
         f"{last['int4']:.4f} (test)", _percent(last["int4"], last["model"])]
    )  # fmt: skip
    return [
        "## Precision that follows the training",
        "",
        "The rule of `precision.py` enters FP8 and then INT4; at the latest the last format comes at a set "
        "share of the run, as it did in `base` and `tiny`. Validation bits per byte of the averaged weights, "
        "in float and rounded.",
        "",
        *_table(["", "steps", "entered at step", "float", "INT4", "INT4 costs"], rows),
    ]


def _dense(r: _Records) -> list[str]:
    rows = [
        [f"{int(step):,}", f"{r.at_step('base', step):.4f}", f"{r.at_step('dense_active', step):.4f}",
         _percent(r.at_step("base", step), r.at_step("dense_active", step))]
        for step in _EQUAL
    ]  # fmt: skip
    shape = r.run["dense_active"]["training"]["shape"]
    return [
        "## Against a dense model of as many active parameters",
        "",
        f"`dense_active`: one expert that always runs, {shape['parameters']:,} parameters; same recipe, "
        "teacher and batches, in the first stage, at the full learning rate. Validation bits per byte after "
        "as many steps; the dense run ended in that stage.",
        "",
        *_table(["steps", "`base`", "`dense_active`", ""], rows),
    ]


def _density(r: _Records) -> list[str]:
    def row(title: str, d: Density) -> list[str]:
        active = "" if d.active is None else f"{d.active:.3f}"
        return [title, f"{d.predicted:.4f}", active, f"{d.stored:.4f}"]

    rows = []
    for name in (
        "base",
        "tiny",
        "tiny_scratch",
        "tiny_logits",
        "tiny_adversary",
        "tiny_one_stage",
        "teacher",
    ):
        shape, mean = r.run[name]["training"]["shape"], r.run[name]["metrics"]["mean"]
        rows.append(row(f"`{name}`", of_model(shape, mean["model"])))
        if "int4" in mean:
            rows.append(row(f"`{name}`, INT4", of_model(shape, mean["int4"], int4=True)))
    for name, title in (("ngram", "order-6 n-gram"), ("xz", "xz")):
        rows.append(row(title, of_text(r.corpus["train"], r.mean("base", name))))
    return [
        "## Parameter Intelligence Density",
        "",
        "With b the mean held-out bits per byte, q = 8 - b is what a model predicts of a byte; per million "
        "active parameters, and per stored megabit (`density.py`). Both fall with size, so they compare like "
        "with like.",
        "",
        *_table(["", "q", "q / M active", "q / Mbit stored"], rows),
    ]


def _energy(r: _Records) -> list[str]:
    rows = []
    for name in ("teacher", "base", "base_int4_early"):
        run = r.run[name]["training"]
        for stage in run["stages"]:
            rows.append(
                [
                    f"`{name}`",
                    stage["name"],
                    f"{stage['steps']:,}",
                    f"{stage['seconds']:.0f}",
                    f"{stage['watt_hours']:.1f}",
                ]
            )
        total = sum(stage["watt_hours"] for stage in run["stages"])
        rows.append([f"`{name}`", "all", f"{run['steps']:,}", run["seconds"], f"{total:.1f}"])
    final = r.at_step("dense_active", _EQUAL[-1])
    earlier = next(row for row in r.run["base"]["log"] if float(row["valid"]) <= final)
    return [
        "## Training energy",
        "",
        f"NVML's counter of the whole board, idle power included; {r.run['base']['training']['device']}. "
        "Only runs that had a board to themselves.",
        "",
        *_table(["run", "stage", "steps", "seconds", "Wh"], rows),
        f"`dense_active` took {int(_EQUAL[-1]):,} steps to {final:.4f} on validation text; `base` was past "
        f"it by step {int(earlier['step']):,}, after {float(earlier['watt_hours']):.1f} Wh. What the dense "
        "run drew cannot be told: it shared its board.",
        "",
    ]


def _routing(r: _Records) -> list[str]:
    routing = r.routing
    layers = sorted({key.split(".")[0] for key in routing["without"]})
    rows = []
    for n in layers:
        own = {k.split(".")[1]: v for k, v in routing["without"].items() if k.split(".")[0] == n}
        for e, by in own.items():
            rows.append([n, e, *(f"{by[d]:+.3f}" for d in DOMAINS)])
    elsewhere = [
        [
            f"`{name}`",
            f"{row['bits_per_byte']:.2f}",
            row["nearest"],
            *(f"{row['divergence'][d]:.2f}" for d in DOMAINS),
        ]
        for name, row in routing["elsewhere"].items()
    ]
    bits = ", ".join(f"{i:.3f}" for i in routing["information"])
    return [
        "## Is the routing real?",
        "",
        f"Mutual information of expert and domain in `base`, layers 0 to {len(layers) - 1}, both choices of "
        f"a token: {bits} bits, of log2 5 = 2.32 that a domain is worth. Bits per byte that taking one "
        f"expert away costs ({routing['bytes']:,} bytes of test text a domain):",
        "",
        *_table(["layer", "expert", *DOMAINS], rows),
        "Text from elsewhere (this project's own pages and code): the domain whose choices of experts it "
        "resembles most, by Kullback-Leibler divergence in bits, added over the layers.",
        "",
        *_table(["text", "bits per byte", "nearest", *DOMAINS], elsewhere),
    ]


def _problems(r: _Records) -> list[str]:
    kinds = sorted(r.run["base"]["metrics"]["exact_match"])
    rows = [
        [f"`{name}`", *(f"{100 * r.run[name]['metrics']['exact_match'][k]:.0f} %" for k in kinds)]
        for name in ("base", "tiny")
    ]
    return [
        "## Worked problems",
        "",
        "Right answers to 300 questions of the test split (`measure --questions 300`).",
        "",
        *_table(["", *kinds], rows),
    ]


def page(folder: Path = _FOLDER) -> str:
    """The whole page."""
    r = _Records(folder)
    parts = [
        "# What training showed",
        "",
        "Written by `python -m sw_model.training.tables` from the records in `docs/training/`; how the runs "
        "are made: [model.md](model.md). One run each, so small differences may be chance.",
        "",
    ]
    sections = (
        _quality, _distillation, _stages, _filter, _precision, _dense, _density, _energy, _routing, _problems,
    )  # fmt: skip
    for section in sections:
        parts += section(r)
    wrapped = (line if line[:1] in ("|", "#") else textwrap.fill(line, 118) for line in parts)
    return "\n".join(wrapped).rstrip() + "\n"


def main() -> None:
    sys.stdout.write(page())


if __name__ == "__main__":
    main()
