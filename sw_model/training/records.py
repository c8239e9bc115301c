"""The records of runs in `docs/training/`, and tables in Markdown, for `tables.py`."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["Records", "percent", "table"]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]


def percent(value: float, base: float) -> str:
    return f"{100 * (value / base - 1):+.1f} %"


class Records:
    """The records of a folder: `run` by name, and what else is in it."""

    def __init__(self, folder: Path) -> None:
        self.run = {p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))}
        self.corpus = self.run.pop("corpus")
        self.routing = self.run.pop("routing")
        self.tried = self.run.pop("filter_tried")

    def mean(self, name: str, row: str = "model") -> float:
        return self.run[name]["metrics"]["mean"][row]

    def seeds(self, name: str) -> list[str]:
        """The runs that differ in their seed alone: `name_1` and so on."""
        return sorted(run for run in self.run if run.removeprefix(f"{name}_").isdigit())

    def means(self, name: str) -> list[float]:
        """Of every seed, by bits."""
        return sorted(map(self.mean, self.seeds(name)))

    def steps(self, name: str) -> str:
        return f"{self.run[name]['training']['steps']:,}"

    def entered(self, name: str, form: str) -> dict[str, str]:
        """The measurement at which the run entered a format."""
        rows = self.run[name]["precision"]
        return next(row for row in rows if row["next"] == form and row["entered"] == "True")

    def steps_since(self, name: str, form: str) -> int:
        """Steps that the run trained in a format."""
        return self.run[name]["training"]["steps"] - int(self.entered(name, form)["step"])

    def energy_at(self, name: str, bits: float) -> float | None:
        """Watt-hours when the validated weights were first that good, on the line between two validations."""
        before: tuple[float, float] | None = None
        for row in self.run[name]["log"]:
            valid, spent = float(row["valid"]), float(row["watt_hours"])
            if valid <= bits:
                if before is None or before[0] == valid:
                    return spent
                return before[1] + (spent - before[1]) * (before[0] - bits) / (before[0] - valid)
            before = valid, spent
        return None

    def at_step(self, name: str, step: str) -> float:
        return float(next(r["valid"] for r in self.run[name]["log"] if r["step"] == step))
