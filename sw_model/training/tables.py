"""The page of what training showed, `docs/training.md`, from the records in `docs/training/`.

    python -m sw_model.training.tables > docs/training.md

All that was measured is read from those files, which `record.py` and `routing.py` wrote; the sentences say
what it showed, and are to be read again when the records change.
"""

import sys
import textwrap
from pathlib import Path

from sw_model.training.density import Density, of_model, of_text
from sw_model.training.filter_table import filter_table
from sw_model.training.records import Records, percent, table
from sw_model.training.sources import DOMAINS

__all__ = ["page"]

_FOLDER = Path(__file__).parents[2] / "docs" / "training"
_EQUAL = tuple(str(1000 * n) for n in range(1, 9))


def _quality(r: Records) -> list[str]:
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
    return out + table(["", *DOMAINS, "mean"], rows)


def _distillation(r: Records) -> list[str]:
    def figures(names: list[str]) -> tuple[float, float, float, list[float]]:
        """Means over the runs of bits, bits of code and errors on code; bits of each, in order."""
        metrics = [r.run[name]["metrics"] for name in names]
        bits, count = sorted(map(r.mean, names)), len(names)
        code = sum(m["bits_per_byte"]["model"]["code"] for m in metrics) / count
        return sum(bits) / count, code, sum(m["error_rate"]["model"]["code"] for m in metrics) / count, bits

    named = {
        "from scratch": r.seeds("tiny_scratch"), "teacher's distribution": r.seeds("tiny_logits"),
        "and adversary": r.seeds("tiny_adversary"), "`tiny`: distribution, gate, more steps": ["tiny"],
        "native, ten times larger (the teacher)": ["teacher_third"],
    }  # fmt: skip
    scratch = figures(named["from scratch"])
    rows = []
    for title, names in named.items():
        mean, code, error, bits = figures(names)
        rows.append(
            [
                title,
                f"{r.run[names[0]]['training']['shape']['parameters']:,}",
                " ".join(f"{b:.4f}" for b in bits),
                f"{mean:.4f}",
                percent(mean, scratch[0]),
                f"{code:.4f}",
                f"{100 * error:.2f} %",
                percent(error, scratch[2]),
            ]
        )
    taught, told = figures(named["teacher's distribution"]), figures(named["and adversary"])
    apart = taught[3][-1] < told[3][0] and told[3][-1] < scratch[3][0]
    return [
        "## Distillation",
        "",
        f"`tiny`'s shape, float, no gate, {r.steps('tiny_scratch_1')} steps; a run a seed, the same batches "
        f"for the same seed. `tiny` had {r.steps('tiny')}, the teacher {r.steps('teacher_third')}. Errors: "
        "next bytes of code that are not the likeliest one.",
        "",
        *table(["", "parameters", "bits per byte, runs", "mean", "", "code", "errors on code", ""], rows),
        "Errors of the distilled student against the native model ten times larger: "
        f"{percent(taught[2], figures(['teacher_third'])[2])}. The article claims -38 %, which does not hold "
        f"here. Against the same model from scratch: {percent(taught[2], scratch[2])}. The adversary takes "
        f"back {100 * (told[0] - taught[0]) / (scratch[0] - taught[0]):.0f} % of what distillation gains in "
        f"bits; the runs of the three kinds {'do not' if apart else ''} overlap.".replace("  ", " "),
        "",
    ]


def _stages(r: Records) -> list[str]:
    rows = []
    kinds = {"tiny_scratch": "1000 : 300 : 70", "tiny_one_stage": "one stage, the mean mix"}
    for kind, title in kinds.items():
        bits = [r.run[name]["metrics"]["bits_per_byte"]["model"] for name in r.seeds(kind)]
        by = [sum(b[d] for b in bits) / len(bits) for d in DOMAINS]
        rows.append(
            [title, *(f"{b:.4f}" for b in by), f"{sum(by) / len(by):.4f}",
             " ".join(f"{m:.4f}" for m in r.means(kind))]
        )  # fmt: skip
    three, one = map(r.means, kinds)
    return [
        "## Three stages against one",
        "",
        f"Same model, steps and learning rate, from scratch, float; {len(three)} seeds, their mean and each.",
        "",
        *table(["", *DOMAINS, "mean", "runs"], rows),
        f"Three stages against one: {percent(sum(three), sum(one))}. "
        + ("No run of one stage is as good." if three[-1] < one[0] else "The runs of both kinds overlap."),
        "",
    ]


def _precision(r: Records) -> list[str]:
    rows = []
    for name, title in (
        ("base", "`base`"),
        ("base_rule", "`base_rule`: the recipe `base` with `tiny`'s rule"),
        ("tiny", "`tiny`"),
        ("tiny_rule", "`tiny_rule`: the recipe `tiny` with fewer steps"),
        ("tiny_rule_fp8", "the same, INT4 never entered"),
        ("dense_active", "`dense_active`"),
        ("dense_total", "`dense_total`"),
        ("base_int4_early", "`base`'s shape, an earlier recipe: tolerance 0.25, no rate in the rule"),
        ("tiny_scratch_1", "`tiny`'s shape, from scratch"),
        ("tiny_logits_1", "the same, distilled"),
    ):
        run = r.run[name]
        formats = run["training"]["recipe"]["formats"]
        entered = {
            row["next"]: row
            for row in run["precision"]
            if row["entered"] == "True" and row["next"] in formats
        }
        at = [
            f"{f} {int(row['step']):,}" + ("" if row["ratio"] else " (latest)") for f, row in entered.items()
        ]
        mean, last = run["metrics"]["mean"], run["log"][-1]
        tested = "int4" in mean
        pair = (
            (mean["model"], mean["int4"]) if tested else (float(last["valid"]), float(last["valid_rounded"]))
        )
        by = "" if tested else " (validation)"
        rows.append(
            [title, r.steps(name), "; ".join(at) or "never", f"{pair[0]:.4f}{by}", f"{pair[1]:.4f}{by}",
             percent(pair[1], pair[0])]
        )  # fmt: skip
    trained, after = r.mean("tiny_rule", "int4"), r.mean("tiny_rule_fp8", "int4")
    first, count = r.entered("tiny_rule", "int4"), r.steps_since("tiny_rule", "int4")
    early, late = (r.steps_since(name, "int4") for name in ("base_rule", "base"))
    return [
        "## Precision that follows the training",
        "",
        'The rule of `precision.py` enters FP8 and then INT4; "latest": the rule had not, and INT4 came at '
        "a set share of the run. Test bits per byte, in float and with weights rounded to INT4.",
        "",
        *table(["", "steps", "entered at step", "float", "INT4", "INT4 costs"], rows),
        f"In `tiny_rule` the rule measured {first['ratio']} at {first['rate']} of the rate when INT4 was "
        f"entered, {count} steps before the end. The same run from there on in FP8, rounded to INT4 "
        f"afterwards, gives {after:.4f} where INT4 in training gives {trained:.4f} "
        f"({percent(trained, after)}): it pays for what it costs in float, and little more. In `base_rule` "
        f"INT4 trained for {early:,} steps, in `base` for {late:,}: rounding then costs "
        f"{percent(r.mean('base_rule', 'int4'), r.mean('base_rule'))} and "
        f"{percent(r.mean('base', 'int4'), r.mean('base'))}, and INT4 weights are "
        f"{percent(r.mean('base_rule', 'int4'), r.mean('base', 'int4'))} against `base`'s.",
        "",
    ]


def _dense(r: Records) -> list[str]:
    names = ("base", "dense_active", "dense_total")
    quality = []
    for name in names:
        shape, bits = r.run[name]["training"]["shape"], r.run[name]["metrics"]["bits_per_byte"]["model"]
        own, ours = r.mean(name), r.mean("base")
        quality.append(
            [f"`{name}`", f"{shape['active']:,} of {shape['parameters']:,}", r.steps(name),
             *(f"{bits[d]:.4f}" for d in DOMAINS), f"{own:.4f}", "" if name == "base" else percent(ours, own)]
        )  # fmt: skip
    rows = [
        [f"{int(step):,}", *(f"{r.at_step(name, step):.4f}" for name in names),
         *(percent(r.at_step("base", step), r.at_step(name, step)) for name in names[1:])]
        for step in _EQUAL
    ]  # fmt: skip
    active, total = (r.run["base"]["training"]["shape"][key] for key in ("active", "parameters"))
    return [
        "## Against dense models",
        "",
        "`dense_active` has as many active parameters as `base`, `dense_total` as many in all: one expert "
        "that always runs; same data, seed, rates, formats, and a teacher of the same recipe. Both followed "
        "`base` step by step. All test text:",
        "",
        *table(["", "active parameters", "steps", *DOMAINS, "mean", "`base` against it"], quality),
        "Hardly better than the dense model of as many parameters in all, but with "
        f"{100 * active / total:.0f} % of them at work for a byte: that is what the experts buy here.",
        "",
        "Validation bits per byte after as many steps, at the full rate:",
        "",
        *table(["steps", *(f"`{n}`" for n in names), "`base` against the first", "the second"], rows),
    ]


def _density(r: Records) -> list[str]:
    def row(title: str, d: Density) -> list[str]:
        active = "" if d.active is None else f"{d.active:.3f}"
        return [title, f"{d.predicted:.4f}", active, f"{d.stored:.4f}"]

    rows = []
    for name in (
        "base",
        "tiny",
        "tiny_scratch_1",
        "tiny_logits_1",
        "tiny_adversary_1",
        "tiny_one_stage_1",
        "tiny_rule",
        "tiny_rule_fp8",
        "base_rule",
        "dense_active",
        "dense_total",
        "teacher",
        "teacher_again",
        "teacher_third",
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
        *table(["", "q", "q / M active", "q / Mbit stored"], rows),
    ]


def _energy(r: Records) -> list[str]:
    rows = []
    alone = (
        "teacher", "teacher_again", "teacher_third", "base", "base_rule", "dense_active", "dense_total",
        "base_int4_early", "tiny",
    )  # fmt: skip
    for name in (*alone, "tiny_rule"):
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
    equal = []
    models = ("base", "dense_active", "dense_total", "teacher")
    active = [r.run[name]["training"]["shape"]["active"] for name in ("teacher", "base")]
    larger = active[0] / active[1]
    for name in ("dense_active", "dense_total", "base"):
        bits = float(r.run[name]["log"][-1]["valid"])
        spent = [r.energy_at(model, bits) for model in models]
        equal.append(
            [f"`{name}` at its end, {bits:.4f}", *("never" if wh is None else f"{wh:.1f}" for wh in spent)]
        )
    return [
        "## Training energy",
        "",
        f"NVML's counter of the whole board, idle power included; {r.run['base']['training']['device']}. "
        "All had a board to themselves but `tiny_rule`, which shared it with the filter's runs and its "
        "twin. `tiny`, `base_rule` and `dense_total` found their compiled code in a cache.",
        "",
        *table(["run", "stage", "steps", "seconds", "Wh"], rows),
        "At equal quality: watt-hours after which a run's validation bits per byte were first so few, on "
        "the line between two validations. Those of a distilled run come on top of its teacher's.",
        "",
        *table(["quality", *(f"`{m}`" for m in models)], equal),
        "The dense model of as many active parameters takes several times `base`'s energy to the same "
        "quality; the one of as many in all, about as much: training computes all experts. Neither came "
        f"quite as far as `base`. A dense model that did is the teacher, with {larger:.1f} times the active "
        "parameters and no teacher of its own, on less energy than `base`.",
        "",
    ]


def _routing(r: Records) -> list[str]:
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
        *table(["layer", "expert", *DOMAINS], rows),
        "Text from elsewhere (this project's own pages and code): the domain whose choices of experts it "
        "resembles most, by Kullback-Leibler divergence in bits, added over the layers.",
        "",
        *table(["text", "bits per byte", "nearest", *DOMAINS], elsewhere),
    ]


def _small(r: Records) -> list[str]:
    run = r.run["small"]
    way = run["pipeline"]
    rows = [[p["name"], f"{p['seconds']:.0f}", f"{p['processor_seconds']:.0f}"] for p in way["parts"]]
    total = [sum(p[key] for p in way["parts"]) for key in ("seconds", "processor_seconds")]
    rows.append(["all", *(f"{t:.0f}" for t in total)])
    return [
        "## The whole way on a small machine",
        "",
        f"`make model PRESET=small` on {way['cores']} cores, load average {way['load'][0]} before and "
        f"{way['load'][1]} after; {r.steps('small')} steps of the model. {run['note']}",
        "",
        *table(["part", "seconds", "processor seconds"], rows),
    ]


def _problems(r: Records) -> list[str]:
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
        *table(["", *kinds], rows),
    ]


def page(folder: Path = _FOLDER) -> str:
    """The whole page."""
    r = Records(folder)
    parts = [
        "# What training showed",
        "",
        "Written by `python -m sw_model.training.tables` from the records in `docs/training/`; how the runs "
        "are made: [model.md](model.md). One run each where no seeds are named, so small "
        "differences may be chance.",
        "",
    ]
    sections = (
        _quality, _distillation, _stages, filter_table, _precision, _dense, _density, _energy, _routing,
        _problems, _small,
    )  # fmt: skip
    for section in sections:
        parts += section(r)
    wrapped = (line if line[:1] in ("|", "#") else textwrap.fill(line, 118) for line in parts)
    return "\n".join(wrapped).rstrip() + "\n"


def main() -> None:
    sys.stdout.write(page())


if __name__ == "__main__":
    main()
