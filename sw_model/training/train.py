"""Train a model by a recipe.

    python -m sw_model.training.train RECIPE [--teacher FOLDER] [--out build/train/RECIPE] [--set FIELD=VALUE]
        [--seconds S] [--stop-after MINUTES] [--resume STATE]

RECIPE is a name of `recipes/` or a TOML file. OUT gets `config.json` and `model.safetensors` (BF16, the best
weights by validation), `gate_rows.safetensors` (the trained rows v of the gate, for `expertile calibrate
--density`), `training_log.csv`, `precision_log.csv`, `training.json` (recipe, stages with time and energy,
device) and, for `--resume`, `state/`.
"""

import argparse
import csv
import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from sw_model.errors import ExpertileError
from sw_model.training.adversary import Adversary
from sw_model.training.data import Text
from sw_model.training.distil import Teacher, losses
from sw_model.training.energy_meter import EnergyMeter
from sw_model.training.gated_model import GatedModel
from sw_model.training.measure import by_domain
from sw_model.training.model import save_checkpoint, shape
from sw_model.training.optim import optimisers
from sw_model.training.precision import Precision, fake_weights, gradient_ratio, rounded
from sw_model.training.recipe import Recipe, change, load_recipe
from sw_model.training.sources import DOMAINS

__all__ = ["Trainer", "run"]


class Trainer:
    """One training run, resumable.

    Attributes: `step` (next step), `best` (validation score of the weights in the out folder), `precision`.
    Validation and the checkpoint use a running average of the weights.
    """

    def __init__(
        self,
        recipe: Recipe,
        corpus: Path,
        out: Path,
        *,
        device: torch.device,
        teacher: Path | None = None,
        seconds: float = math.inf,
    ) -> None:
        taught = recipe.distil > 0 or any(s.adversary for s in recipe.stages)
        if taught and teacher is None:
            raise ExpertileError("this recipe distils: name its teacher's folder with --teacher")
        torch.manual_seed(recipe.seed)
        torch.set_float32_matmul_precision("high")
        self.recipe, self.corpus, self.out, self.device = recipe, corpus, out, device
        self.limit = seconds
        self.text = Text(corpus, device)
        self.model = GatedModel(recipe.model, domains=len(DOMAINS), dropout=recipe.dropout).to(device)
        self.averaged = GatedModel(recipe.model, domains=len(DOMAINS)).to(device)
        self.averaged.load_state_dict(self.model.state_dict())
        cuda = device.type == "cuda"
        self.muon, self.adam = optimisers(self.model, recipe, compiled=cuda)
        self.teacher = Teacher(teacher, device) if taught else None
        self.adversary = None
        if any(s.adversary for s in recipe.stages):
            self.adversary = Adversary(recipe.model.vocabulary).to(device)
        self.precision = Precision(
            recipe.formats, patience=recipe.patience, tolerance=recipe.tolerance, latest=recipe.latest
        )
        self.step, self.best, self.seconds = 0, math.inf, 0.0
        self.conditions: tuple[str, ...] = ()  # under which `best` was measured
        self.log: list[dict] = []
        self.stages = [{"name": s.name, "steps": 0, "seconds": 0.0, "watt_hours": 0.0} for s in recipe.stages]
        self.forward, self.losses, self.fake = self.model.gated, losses, fake_weights
        if cuda:
            self.losses = torch.compile(losses, dynamic=False)
            self.fake = torch.compile(fake_weights, dynamic=False)
            self.forward = torch.compile(self.model.gated, dynamic=False)

    @property
    def progress(self) -> float:
        """Of the run, 0 to 1: by steps, or by time where that is ahead."""
        return max(self.step / self.recipe.steps, self.seconds / self.limit)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def _batch(self, number: int, seed: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens, domains, and which rows are gated, of the batch `number` in the stage that runs."""
        recipe = self.recipe
        stage = recipe.stages[recipe.stage(self.progress)]
        tokens, domain = self.text.batch(
            recipe.batch, recipe.model.context, stage.weights, seed=seed, step=number
        )
        if stage.gate is None:
            return tokens, domain, None
        # Every domain has its share of gated rows, since the two patterns have different periods.
        turn = torch.arange(recipe.batch, device=self.device)
        return tokens, domain, ((turn * 0.618034 + number * 0.381966) % 1 < recipe.gated_rows).float()

    def _loss(self, batch: tuple[Tensor, Tensor, Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
        """The whole loss but for the adversary's, nats a byte, mean experts by layer; keeps logits."""
        tokens, domain, on = batch
        self.model.act8(self._rounding is not None)
        with self._autocast():
            self.logits, balance, used = self.forward(tokens[:, :-1], domain, on)
            self.teaching = None if self.teacher is None else self.teacher(tokens[:, :-1])
            loss, nats = self.losses(self.logits, tokens[:, 1:], self.teaching, self.recipe.distil)
        return loss + self.recipe.balance * balance, nats, used

    def _update(self) -> Tensor:
        """One step; nats a byte, mean experts, and how often the adversary was right (or nan)."""
        recipe, progress = self.recipe, self.progress
        stage = recipe.stages[recipe.stage(progress)]
        self.precision.force(self.step, progress)
        if stage.gate is not None and (self.step % recipe.settle_every == 0 or not self._settled):
            self._settle(self.model, stage.gate)
        batch = self._batch(self.step, recipe.seed)
        torch.manual_seed(recipe.seed * 1_000_003 + self.step)  # dropout, the same after a break
        self._rounding = self.precision.format
        told = torch.full((), math.nan, device=self.device)
        with rounded(self.model, self._rounding, self.fake):
            loss, nats, used = self._loss(batch)
            if stage.adversary and self.adversary is not None and self.teaching is not None:
                tokens, student = batch[0][:, :-1], self.logits.float().softmax(dim=-1)
                with self._autocast():
                    told = self.adversary.learn(tokens, self.teaching, student)
                    loss = loss + stage.adversary * self.adversary.fooled(tokens, student)
            loss.backward()
        factor = recipe.rate(self.step, progress)
        for optimiser in (self.muon, self.adam):
            for group in optimiser.param_groups:
                group["lr"] = group["base"] * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if stage.gate is not None:
            for layer, mean in zip(self.model.layers, used, strict=True):
                layer.moe.pay(mean - stage.gate, recipe.price_rate)
        # A short memory at first: the average must forget the random start.
        weight = 1 - min(recipe.average, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), weight)
        if self.precision.next is not None and (self.step + 1) % recipe.probe_every == 0:
            self._probe()
        return torch.cat([nats.detach()[None], told[None], used.float()])

    _settled = False
    _rounding: str | None = None

    def _settle(self, model: GatedModel, target: float) -> None:
        """B and psi of every block on some training rows; the price is mixed in once it has been paid."""
        recipe = self.recipe
        rows = (recipe.settle_rows, recipe.model.context, [1 / len(DOMAINS)] * len(DOMAINS))
        tokens, domain = self.text.batch(*rows, seed=recipe.seed + 77, step=self.step)
        price = [layer.moe.psi.clone() for layer in model.layers]
        model.settle(tokens[:, :-1], domain, target)
        if model is self.model and self._settled:  # the price knows better than one small batch
            for layer, psi in zip(model.layers, price, strict=True):
                layer.moe.psi.lerp_(psi, 0.5)
        self._settled = self._settled or model is self.model

    def _probe(self) -> None:
        """Measure the rule of `precision.py` on two batches, under the same dropout."""
        then = self.precision.next
        assert then is not None
        devices = [self.device] if self.device.type == "cuda" else []

        def loss(number: int) -> Tensor:
            with torch.random.fork_rng(devices):
                torch.manual_seed(self.step)
                return self._loss(self._batch(2 * self.step + number, self.recipe.seed + 55))[0]

        ratio = gradient_ratio(self.model, loss, self.precision.format, then, self.fake)
        self.precision.decide(self.step, ratio, self.recipe.rate(self.step, self.progress))

    def run(self, *, stop_after: float, console: Console) -> bool:
        """Train until done (True) or for `stop_after` seconds (False)."""
        begin, before = time.monotonic(), self.seconds
        meter = EnergyMeter()
        total, counted, used_wh, marked = 0.0, 0, 0.0, self.seconds
        number = self.recipe.stage(self.progress)

        def charge() -> None:
            """Book time and energy since the last call to the stage that ran."""
            nonlocal used_wh, marked
            self.seconds = before + time.monotonic() - begin
            stage, watt_hours = self.stages[number], meter.watt_hours()
            stage["seconds"] += self.seconds - marked
            stage["watt_hours"] = (
                None if watt_hours is None else (stage["watt_hours"] or 0.0) + watt_hours - used_wh
            )
            used_wh, marked = watt_hours or 0.0, self.seconds

        while self.progress < 1:
            if self.seconds - before > stop_after:
                charge()
                return False
            number = self.recipe.stage(self.progress)
            total, counted = total + self._update(), counted + 1
            self.step += 1
            self.seconds = before + time.monotonic() - begin
            self.stages[number]["steps"] += 1
            ends = self.progress >= 1 or self.recipe.stage(self.progress) != number
            if ends or self.step % self.recipe.validate_every == 0:
                means = (total / counted).tolist()
                charge()
                self._validate(number, means, console)
                charge()
                total, counted = 0.0, 0
        return True

    def _validate(self, number: int, means: list[float], console: Console) -> None:
        """Measure the averaged weights, add a row to the log, keep them if they are the best."""
        stage, form = self.recipe.stages[number], self.precision.format
        row = {
            "step": self.step,
            "bytes": self.step * self.recipe.batch * self.recipe.model.context,
            "seconds": round(self.seconds, 1),
            "watt_hours": round(sum(s["watt_hours"] or 0.0 for s in self.stages), 3),
            "stage": stage.name,
            "format": form or "float32",
            "train": round(means[0] / math.log(2), 4),
            "told": round(means[1], 4),
            "experts": " ".join(f"{m:.3f}" for m in means[2:]),
        }
        limit = self.recipe.validation_bytes
        by = by_domain(self.averaged, self.corpus, "valid", limit=limit)
        scores = {"top": sum(by.values()) / len(by)}
        if stage.gate is not None:
            self._settle(self.averaged, stage.gate)
            gated = by_domain(self.averaged, self.corpus, "valid", limit=limit, mode="gated")
            scores["gated"] = sum(gated.values()) / len(gated)
        if form is not None:
            self.averaged.act8(True)
            with rounded(self.averaged, form, self.fake):
                coarse = by_domain(self.averaged, self.corpus, "valid", limit=limit)
            self.averaged.act8(False)
            scores[form] = sum(coarse.values()) / len(coarse)
        names = {"top": "valid", "gated": "valid_gated"}
        row |= {f"{names.get(k, 'valid_rounded')}": round(v, 4) for k, v in scores.items()}
        row |= {f"valid_{d}": round(v, 4) for d, v in by.items()}
        self.log.append(row)
        console.print(" ".join(f"{k} {v}" for k, v in row.items()), soft_wrap=True)
        if tuple(scores) != self.conditions:  # what a good checkpoint is has changed
            self.conditions, self.best = tuple(scores), math.inf
        score = sum(scores.values()) / len(scores)
        if score < self.best:
            self.best = score
            self.keep()
        _write_csv(self.out / "training_log.csv", self.log)
        _write_csv(self.out / "precision_log.csv", self.precision.log)

    def keep(self) -> None:
        """Write the averaged weights and their rows v."""
        save_checkpoint(self.averaged.checkpoint_state(), self.recipe.model, self.out)
        if any(stage.gate is not None for stage in self.recipe.stages):
            rows = [layer.moe.density.weight.detach().float().cpu()[0] for layer in self.averaged.layers]
            save_file({"density": torch.stack(rows).contiguous()}, self.out / "gate_rows.safetensors")

    def summary(self) -> dict:
        """What the run was, for `training.json`."""
        return {
            "shape": shape(self.recipe.model),
            "steps": self.step,
            "seconds": round(self.seconds),
            "stages": [
                {k: round(v, 3) if isinstance(v, float) else v for k, v in s.items()} for s in self.stages
            ],
            "recipe": asdict(self.recipe),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU",
        }

    _KEPT = ("step", "best", "conditions", "log", "seconds", "stages", "_settled")

    def save(self) -> None:
        """Everything `resume` needs, in files of one copy of the weights each."""
        folder = self.out / "state"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.model.state_dict(), folder / "model.pt")
        torch.save(self.averaged.state_dict(), folder / "average.pt")
        torch.save(self.muon.state_dict(), folder / "muon.pt")
        rest = {name: getattr(self, name) for name in self._KEPT} | {"adam": self.adam.state_dict()}
        rest["precision"] = {name: getattr(self.precision, name) for name in ("at", "allowed", "log")}
        if self.adversary is not None:
            rest["adversary"] = self.adversary.state_dict(), self.adversary.optimiser.state_dict()
        torch.save(rest, folder / "rest.pt")

    def resume(self, folder: Path) -> None:
        """Continue from what `save` wrote under `folder`."""

        def read(name: str) -> dict:
            return torch.load(folder / name, map_location=self.device)

        self.model.load_state_dict(read("model.pt"))
        self.averaged.load_state_dict(read("average.pt"))
        self.muon.load_state_dict(read("muon.pt"))
        rest = read("rest.pt")
        self.adam.load_state_dict(rest["adam"])
        if self.adversary is not None:
            self.adversary.load_state_dict(rest["adversary"][0])
            self.adversary.optimiser.load_state_dict(rest["adversary"][1])
        for name in self._KEPT:
            setattr(self, name, rest[name])
        for name, value in rest["precision"].items():
            setattr(self.precision, name, value)


def _write_csv(path: Path, rows: list[dict]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def run(
    recipe: Recipe,
    corpus: Path,
    out: Path,
    *,
    device: torch.device,
    console: Console,
    teacher: Path | None = None,
    seconds: float = math.inf,
    stop_after: float = math.inf,
    resume: Path | None = None,
) -> bool:
    """Train and leave everything in `out`. False: stopped after `stop_after` seconds, the state saved."""
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(recipe, corpus, out, device=device, teacher=teacher, seconds=seconds)
    console.print(f"{out.name} on {device}: {shape(recipe.model)}", soft_wrap=True)
    if resume:
        trainer.resume(resume)
    done = trainer.run(stop_after=stop_after, console=console)
    (out / "training.json").write_text(json.dumps(trainer.summary(), indent=1) + "\n")
    if not done:
        trainer.save()
        console.print(f"stopped at step {trainer.step}; go on with --resume {out / 'state'}")
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe", help="a name of sw_model/training/recipes, or a TOML file")
    parser.add_argument("--corpus", type=Path, default=Path("build/corpus"))
    parser.add_argument("--teacher", type=Path, help="the checkpoint folder of a teacher")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change the recipe")
    parser.add_argument("--seconds", type=float, default=math.inf, help="end the run after this time")
    parser.add_argument(
        "--stop-after", type=float, default=math.inf, metavar="MINUTES", help="save the state and leave"
    )
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="a state folder of an earlier run")
    args = parser.parse_args()
    device, console = torch.device("cuda" if torch.cuda.is_available() else "cpu"), Console()
    out = args.out or Path("build/train") / Path(args.recipe).stem
    try:
        recipe = load_recipe(args.recipe)
        for text in args.set:
            recipe = change(recipe, text)
        run(
            recipe,
            args.corpus,
            out,
            device=device,
            console=console,
            teacher=args.teacher,
            seconds=args.seconds,
            stop_after=60 * args.stop_after,
            resume=args.resume,
        )
    except ExpertileError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
