"""Recipes: how a model is trained, as TOML files in `recipes/`.

A run has stages, each with a share of the steps, a mix of domains, and what is on in it. The learning rate
warms up, stays, and in the last `cooldown` of the run falls linearly to zero (WSD).
"""

import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from sw_model.errors import ExpertileError
from sw_model.formats import WEIGHT_FORMATS
from sw_model.training.model import ModelConfig
from sw_model.training.sources import DOMAINS

__all__ = ["Recipe", "Stage", "change", "load_recipe", "names"]

_FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a run.

    share : its steps, in proportion to the other stages'
    mix : how often each domain is drawn, in proportion; a domain that is not named weighs 1
    gate : mean experts that the gated rows may use; None: no gate
    adversary : weight of the adversary's loss; needs a teacher
    """

    name: str
    share: float
    mix: dict[str, float]
    gate: float | None = None
    adversary: float = 0.0

    def __post_init__(self) -> None:
        strange = set(self.mix) - set(DOMAINS)
        if strange:
            raise ValueError(f"stage {self.name!r}: mix names {sorted(strange)}; domains are {DOMAINS}")
        if self.share <= 0 or any(weight < 0 for weight in self.mix.values()):
            raise ValueError(f"stage {self.name!r}: share must be over 0, weights of the mix not under 0")

    @property
    def weights(self) -> list[float]:
        """The mix by domain, adding up to 1."""
        raw = [float(self.mix.get(domain, 1.0)) for domain in DOMAINS]
        return [weight / sum(raw) for weight in raw]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained. `batch` counts sequences of the model's context.

    distil : weight of the teacher's distribution in the loss, 0 to 1; over 0 needs a teacher
    formats : weight formats after float32, each entered when the rule of `precision.py` allows it
    patience, tolerance : how often in a row the rule must allow it, and how large its left side may be
    latest : share of the run at which the last format is entered whatever the rule says; 1: never
    gated_rows : share of a batch that is gated in a stage with a gate
    settle_rows, settle_every : rows on which, and steps after which B and psi of the gate are set anew
    """

    model: ModelConfig
    stages: tuple[Stage, ...]
    steps: int
    batch: int
    matrix_rate: float = 0.02
    other_rate: float = 0.003
    density_rate: float = 0.002
    weight_decay: float = 0.1
    momentum: float = 0.95
    warmup: int = 200
    cooldown: float = 0.27
    dropout: float = 0.1
    balance: float = 0.01
    average: float = 0.999
    distil: float = 0.0
    formats: tuple[str, ...] = ()
    patience: int = 3
    tolerance: float = 0.05
    probe_every: int = 100
    latest: float = 0.95
    gated_rows: float = 0.75
    price_rate: float = 0.3
    settle_rows: int = 40
    settle_every: int = 100
    validate_every: int = 500
    validation_bytes: int = 60_000
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "warmup", "patience", "probe_every", "settle_every", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("distil", "gated_rows", "latest", "cooldown"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {getattr(self, name)}")
        if self.cooldown == 0:
            raise ValueError("cooldown must be over 0: the rate falls to zero in it")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be from 0 to under 1, not {self.dropout}")
        strange = set(self.formats) - set(WEIGHT_FORMATS)
        if strange:
            raise ValueError(f"formats names {sorted(strange)}; there are {sorted(WEIGHT_FORMATS)}")
        if not self.stages:
            raise ValueError("a recipe has at least one stage")

    def rate(self, step: int, progress: float) -> float:
        """Factor on the learning rates at a step, `progress` (0 to 1) of the way through the run."""
        return min(1.0, (step + 1) / self.warmup) * min(1.0, max(0.0, 1 - progress) / self.cooldown)

    def stage(self, progress: float) -> int:
        """Number of the stage that runs at this progress."""
        total, end = sum(stage.share for stage in self.stages), 0.0
        for number, stage in enumerate(self.stages):
            end += stage.share / total
            if progress < end:
                return number
        return len(self.stages) - 1


def names() -> list[str]:
    """The recipes that are here."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """The recipe of that name, or in that file.

    Raises ExpertileError for an unknown name, a key that no recipe has, or a value out of range.
    """
    path = Path(name) if name.endswith(".toml") else _FOLDER / f"{name}.toml"
    if not path.is_file():
        raise ExpertileError(
            f"recipe {name!r}: there is none; choose {', '.join(names())} or give a .toml file"
        )
    try:
        table = tomllib.loads(path.read_text())
        return _recipe(table)
    except (tomllib.TOMLDecodeError, ValueError, TypeError) as error:
        raise ExpertileError(f"{path}: {error}") from None


def _recipe(table: dict[str, Any]) -> Recipe:
    model = ModelConfig(**table.pop("model"))
    stages = tuple(Stage(**{"mix": {}, **stage}) for stage in table.pop("stage"))
    if "formats" in table:
        table["formats"] = tuple(table["formats"])
    return Recipe(model=model, stages=stages, **table)


def change(recipe: Recipe, text: str) -> Recipe:
    """The recipe with one change, `FIELD=VALUE`; a tuple's values are separated by commas.

    Fields of the stages are changed as `gate=none` or `adversary=0.1` (in every stage but the first), and
    `stages=one` melts them into one stage with the mean mix.
    """
    key, _, value = text.partition("=")
    if key == "stages" and value == "one":
        return replace(recipe, stages=(_melted(recipe),))
    if key == "gate" and value == "none":
        return replace(recipe, stages=tuple(replace(s, gate=None) for s in recipe.stages))
    if key == "adversary":
        on = tuple(replace(s, adversary=float(value)) for s in recipe.stages[1:])
        return replace(recipe, stages=recipe.stages[:1] + on)
    old = getattr(recipe, key, None) if key in {f.name for f in fields(Recipe)} else None
    if isinstance(old, tuple) and key == "formats":
        return replace(recipe, formats=tuple(filter(None, value.split(","))))
    if not isinstance(old, int | float):
        raise ExpertileError(f"--set {text}: the recipe has no number called {key!r}")
    try:
        number = type(old)(value)
    except ValueError:
        raise ExpertileError(f"--set {text}: {value!r} is not of the kind of {old!r}") from None
    try:
        return replace(recipe, **{key: number})
    except ValueError as error:
        raise ExpertileError(f"--set {text}: {error}") from None


def _melted(recipe: Recipe) -> Stage:
    """All stages as one, with what is on in the last and the mean of the mixes by steps."""
    total = sum(stage.share for stage in recipe.stages)
    mix = {
        domain: sum(stage.share * stage.weights[n] for stage in recipe.stages) / total
        for n, domain in enumerate(DOMAINS)
    }
    return replace(recipe.stages[-1], name="one", share=total, mix=mix)
