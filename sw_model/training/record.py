"""Keep what a run showed: one small JSON file a run, from which `tables.py` makes its page.

    python -m sw_model.training.record build/train/tiny [NAME] [--note TEXT]

writes `docs/training/NAME.json` (NAME: the folder's) with the run's recipe, stages, device, logs and metrics.
"""

import argparse
import csv
import json
from pathlib import Path

__all__ = ["record"]


def record(folder: Path, *, note: str = "") -> dict:
    """All that `train`, `measure`, `pipeline` and, for a filter, `semantic_entropy` wrote but weights."""

    def rows(name: str) -> list[dict]:
        path = folder / name
        return list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []

    def table(name: str) -> dict | None:
        path = folder / name
        return json.loads(path.read_text()) if path.is_file() else None

    return {
        "note": note,
        "training": table("training.json"),
        "log": rows("training_log.csv"),
        "precision": rows("precision_log.csv"),
        "metrics": table("metrics.json"),
        "filter": table("filter.json"),
        "pipeline": table("pipeline.json"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("name", nargs="?", help="of the file; the folder's name")
    parser.add_argument("--note", default="", help="what a reader of its figures should know")
    parser.add_argument("--out", type=Path, default=Path("docs/training"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{args.name or args.folder.name}.json"
    path.write_text(json.dumps(record(args.folder, note=args.note), indent=1) + "\n")


if __name__ == "__main__":
    main()
