"""The whole way to a model: corpus, teacher, student, gate, measurement.

    python -m sw_model.training.pipeline small|tiny|base [--out build/train] [--set FIELD=VALUE]
        [--teacher-set FIELD=VALUE] [--test-bytes N]

`make model PRESET=small` runs it. Under OUT there is a folder for the teacher and one for the model, with
`config.json`, `model.safetensors`, `gate.json`, `metrics.json`, `pipeline.json` (what each part took) and
logs. What `models/` ships has baselines and worked problems in its `metrics.json` too (`measure --baselines
FILE --questions 300`). A corpus or a teacher that is there already is kept. The filter by semantic entropy is
a command of its own and not a part of this: what it keeps trains better than a lot of as many bytes, but
worse than all text (`docs/training.md`).
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from sw_model import gate_file
from sw_model.calibration import Settings
from sw_model.checkpoint import Checkpoint
from sw_model.config import load_config
from sw_model.errors import ExpertileError
from sw_model.model_gate import calibrate_text
from sw_model.model_gate import measure as measure_gate
from sw_model.training.corpus import download, load
from sw_model.training.measure import report
from sw_model.training.recipe import Recipe, change, load_recipe
from sw_model.training.sources import DOMAINS
from sw_model.training.stopwatch import Stopwatch
from sw_model.training.train import run

__all__ = ["PRESETS", "Preset", "calibrate", "pipeline"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Of the whole way.

    teacher : its recipe
    form : of the experts when the gate is calibrated
    gate_bytes, test_bytes : of a domain's text, to calibrate on and to measure on (None: all)
    """

    teacher: str
    form: str
    gate_bytes: int
    test_bytes: int | None = None


PRESETS = {
    "base": Preset(teacher="teacher", form="int8", gate_bytes=6144),
    "tiny": Preset(teacher="teacher", form="int4", gate_bytes=6144),
    "small": Preset(teacher="teacher_small", form="int4", gate_bytes=1024, test_bytes=50_000),
}


def calibrate(folder: Path, corpus: Path, *, target: float, form: str, total: int, console: Console) -> None:
    """Write `folder/gate.json` as `expertile calibrate` does: from validation text, measured on test text."""
    checkpoint, config = Checkpoint.open(folder), load_config("base")
    seen, held_out = ({d: load(corpus, split, d) for d in DOMAINS} for split in ("valid", "test"))
    with console.status("calibrating the gate"):
        gate, layers = calibrate_text(checkpoint, seen, Settings(target=target), config, form, total=total)
        figures = measure_gate(checkpoint, gate, layers, held_out, config, total=total // 2)
    achieved = figures.as_dict() | {"format": form, "config": config.name}
    (folder / "gate.json").write_text(gate_file.dump(replace(gate, achieved=achieved)))
    console.print(f"gate: {achieved['mean_experts']:.3f} experts", achieved["bits_per_byte"]["mean"])


def pipeline(
    preset: Preset,
    recipes: tuple[Recipe, Recipe],
    folders: tuple[Path, Path],
    corpus: Path,
    *,
    device: torch.device,
    console: Console,
) -> dict:
    """Corpus and teacher (unless they are there), student, gate, measurement; returns the metrics."""
    teacher, student = folders
    watch = Stopwatch()
    if not (corpus / "manifest.json").is_file():
        with watch.part("corpus"):
            download(corpus)
    if not (teacher / "model.safetensors").is_file():
        with watch.part("teacher"):
            run(recipes[0], corpus, teacher, device=device, console=console)
    with watch.part("model"):
        run(recipes[1], corpus, student, device=device, console=console, teacher=teacher)
    target = next((s.gate for s in recipes[1].stages if s.gate is not None), None)
    if target is not None:
        form, total = preset.form, preset.gate_bytes
        with watch.part("gate"):
            calibrate(student, corpus, target=target, form=form, total=total, console=console)
    with watch.part("measurement"), console.status("measuring"):
        metrics = report(student, corpus, limit=preset.test_bytes)
    watch.write(student / "pipeline.json")
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("preset", choices=sorted(PRESETS))
    parser.add_argument("--corpus", type=Path, default=Path("build/corpus"))
    parser.add_argument("--out", type=Path, default=Path("build/train"))
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="of the model's recipe"
    )
    parser.add_argument(
        "--teacher-set", action="append", default=[], metavar="FIELD=VALUE", help="of its teacher's"
    )
    parser.add_argument("--test-bytes", type=int, help="test text a domain")
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    if args.test_bytes:
        preset = replace(preset, test_bytes=args.test_bytes)
    try:
        teacher, student = load_recipe(preset.teacher), load_recipe(args.preset)
        for text in args.teacher_set:
            teacher = change(teacher, text)
        for text in args.set:
            student = change(student, text)
        result = pipeline(
            preset,
            (teacher, student),
            (args.out / preset.teacher, args.out / args.preset),
            args.corpus,
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            console=Console(),
        )
    except ExpertileError as error:
        parser.error(str(error))
    Console().print({name: round(mean, 4) for name, mean in result["mean"].items()})


if __name__ == "__main__":
    main()
