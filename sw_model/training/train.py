"""Train the reference model.

    python -m sw_model.training.train --preset base|small [--out build/train/PRESET] [--set steps=N]
        [--stop-after MINUTES] [--resume STATE]

writes `config.json` and `model.safetensors` (BF16, the best weights so far by validation),
`training_log.csv`, `training.json` (recipe, time, device), `metrics.json` (held-out bits per byte by domain)
and, for `--resume`, `state/`.
`base` wants one large GPU for about a quarter of an hour; `small` trains on two CPU cores in less.
"""

import argparse
import csv
import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from sw_model.training.corpus import load
from sw_model.training.measure import by_domain, report
from sw_model.training.model import BOS, Model, ModelConfig, save_checkpoint, shape
from sw_model.training.optim import Muon
from sw_model.training.sources import DOMAINS

__all__ = ["PRESETS", "Corpus", "Recipe", "Trainer", "loss_of"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained. `batch` counts sequences of the model's context; rates fall as a cosine."""

    model: ModelConfig
    steps: int
    batch: int
    matrix_rate: float = 0.02
    other_rate: float = 0.003
    weight_decay: float = 0.1
    momentum: float = 0.95
    warmup: int = 200
    dropout: float = 0.1
    balance: float = 0.01
    average: float = 0.999
    validate_every: int = 500
    validation_bytes: int = 60_000
    seed: int = 1

    def rate(self, step: int) -> float:
        """Factor on both learning rates at a step."""
        warm = min(1.0, (step + 1) / self.warmup)
        return warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


PRESETS = {
    "base": Recipe(
        model=ModelConfig(
            layers=5,
            hidden=192,
            heads=6,
            experts=8,
            top_k=2,
            intermediate=96,
            shared_intermediate=192,
            context=1024,
        ),
        steps=17_000,
        batch=96,
        validate_every=1000,
    ),
    "small": Recipe(
        model=ModelConfig(
            layers=3,
            hidden=128,
            heads=4,
            experts=8,
            top_k=2,
            intermediate=32,
            shared_intermediate=64,
            context=256,
        ),
        steps=2_500,
        batch=16,
        dropout=0.0,
        warmup=50,
        average=0.99,
        validate_every=250,
        validation_bytes=10_000,
    ),
}


class Corpus:
    """The training text on the device; batches draw from all domains alike.

    A batch depends on the seed and the step alone, so a resumed run sees what an unbroken one would.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        texts = [bytes([BOS]) + bytes([BOS]).join(load(folder, "train", domain)) for domain in DOMAINS]
        self.data = torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8).to(device)
        self.lengths = torch.tensor([len(text) for text in texts], device=device)
        self.starts = self.lengths.cumsum(0) - self.lengths

    def batch(self, rows: int, context: int, *, seed: int, step: int) -> Tensor:
        """Tokens int64 [rows, context + 1]; row r comes from domain r modulo their number."""
        generator = torch.Generator(self.data.device).manual_seed(seed * 1_000_003 + step)
        domain = (torch.arange(rows, device=self.data.device) + step) % len(DOMAINS)
        draw = torch.rand(rows, generator=generator, device=self.data.device, dtype=torch.float64)
        at = self.starts[domain] + (draw * (self.lengths[domain] - context)).long()
        return self.data[at[:, None] + torch.arange(context + 1, device=self.data.device)].long()


def loss_of(model: Callable, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean nats a byte and load-balancing loss. A later stage (distillation, say) replaces this function."""
    logits, balance = model(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()), balance


class Trainer:
    """One training run, resumable.

    Attributes: `step` (next step), `best` (mean validation bits per byte of the weights in the out folder).
    Validation and the checkpoint use a running average of the weights.
    """

    def __init__(self, recipe: Recipe, corpus: Path, out: Path, *, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        torch.set_float32_matmul_precision("high")
        self.recipe, self.corpus, self.out, self.device = recipe, corpus, out, device
        self.data = Corpus(corpus, device)
        self.model = Model(recipe.model, dropout=recipe.dropout).to(device)
        self.averaged = Model(recipe.model).to(device)
        self.averaged.load_state_dict(self.model.state_dict())
        # Muon for the matrices between layers; embedding, head, router and vectors are not of that kind.
        matrices, others = [], []
        for name, parameter in self.model.named_parameters():
            inner = parameter.dim() > 1 and name.startswith("layers.") and "router" not in name
            (matrices if inner and min(parameter.shape[-2:]) > 1 else others).append(parameter)
        self.muon = Muon(
            matrices,
            lr=recipe.matrix_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            compiled=device.type == "cuda",
        )
        self.adam = torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.98), weight_decay=0.0)
        self.step, self.best, self.log = 0, math.inf, []
        self.seconds = 0.0
        self.loss = loss_of
        self.precision = nullcontext
        if device.type == "cuda":
            self.loss = torch.compile(loss_of)
            self.precision = lambda: torch.autocast("cuda", torch.bfloat16)

    def _update(self) -> tuple[Tensor, Tensor]:
        recipe = self.recipe
        tokens = self.data.batch(recipe.batch, recipe.model.context, seed=recipe.seed, step=self.step)
        with self.precision():
            nats, balance = self.loss(self.model, tokens)
        (nats + recipe.balance * balance).backward()
        factor = recipe.rate(self.step)
        for optimiser, rate in ((self.muon, recipe.matrix_rate), (self.adam, recipe.other_rate)):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        # A short memory at first: the average must forget the random start.
        weight = 1 - min(recipe.average, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), weight)
        return nats.detach(), balance.detach()

    def run(self, *, stop_after: float, console: Console) -> bool:
        """Train until done (True) or for `stop_after` seconds (False)."""
        begin, before = time.monotonic(), self.seconds
        nats, balance, counted = 0.0, 0.0, 0
        while self.step < self.recipe.steps:
            self.seconds = before + time.monotonic() - begin
            if self.seconds - before > stop_after:
                return False
            new_nats, new_balance = self._update()
            nats, balance, counted = nats + new_nats, balance + new_balance, counted + 1
            self.step += 1
            if self.step % self.recipe.validate_every == 0 or self.step == self.recipe.steps:
                valid = by_domain(self.averaged, self.corpus, "valid", limit=self.recipe.validation_bytes)
                self._record(float(nats) / counted / math.log(2), float(balance) / counted, valid, console)
                nats, balance, counted = 0.0, 0.0, 0
        self.seconds = before + time.monotonic() - begin
        return True

    def _record(self, train: float, balance: float, valid: dict[str, float], console: Console) -> None:
        mean = sum(valid.values()) / len(valid)
        row = {
            "step": self.step,
            "bytes": self.step * self.recipe.batch * self.recipe.model.context,
            "seconds": round(self.seconds, 1),
            "train": round(train, 4),
            "balance": round(balance, 4),
            "valid": round(mean, 4),
            **{f"valid_{d}": round(v, 4) for d, v in valid.items()},
        }
        self.log.append(row)
        console.print(" ".join(f"{k} {v}" for k, v in row.items()), soft_wrap=True)
        if mean < self.best:
            self.best = mean
            save_checkpoint(self.averaged.state_dict(), self.recipe.model, self.out)
        with (self.out / "training_log.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerows(self.log)

    def save(self) -> None:
        """Everything `resume` needs, in files of one copy of the weights each."""
        folder = self.out / "state"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.model.state_dict(), folder / "model.pt")
        torch.save(self.averaged.state_dict(), folder / "average.pt")
        torch.save(self.muon.state_dict(), folder / "muon.pt")
        torch.save(
            {
                "adam": self.adam.state_dict(),
                "step": self.step,
                "best": self.best,
                "log": self.log,
                "seconds": self.seconds,
            },
            folder / "rest.pt",
        )

    def resume(self, folder: Path) -> None:
        """Continue from what `save` wrote under `folder`."""

        def read(name: str) -> dict:
            return torch.load(folder / name, map_location=self.device)

        self.model.load_state_dict(read("model.pt"))
        self.averaged.load_state_dict(read("average.pt"))
        self.muon.load_state_dict(read("muon.pt"))
        rest = read("rest.pt")
        self.adam.load_state_dict(rest["adam"])
        self.step, self.best, self.log = rest["step"], rest["best"], rest["log"]
        self.seconds = rest["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="small")
    parser.add_argument("--corpus", type=Path, default=Path("build/corpus"))
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=NUMBER",
        help="change a number of the preset's recipe, for example steps=3000",
    )
    parser.add_argument(
        "--stop-after",
        type=float,
        default=math.inf,
        metavar="MINUTES",
        help="save the state and leave after this time",
    )
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="a state folder of an earlier run")
    args = parser.parse_args()
    recipe = PRESETS[args.preset]
    for change in args.set:
        field, _, value = change.partition("=")
        if not isinstance(getattr(recipe, field, None), int | float):
            parser.error(f"--set {change}: the recipe has no number called {field!r}")
        recipe = replace(recipe, **{field: type(getattr(recipe, field))(value)})
    out = args.out or Path("build/train") / args.preset
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    console = Console()
    console.print(f"{args.preset} on {device}: {shape(recipe.model)}")
    trainer = Trainer(recipe, args.corpus, out, device=device)
    if args.resume:
        trainer.resume(args.resume)
    done = trainer.run(stop_after=60 * args.stop_after, console=console)
    trainer.save()
    if not done:
        console.print(
            f"stopped at step {trainer.step} of {recipe.steps}; go on with --resume {out / 'state'}"
        )
    summary = {
        "parameters": shape(recipe.model)["parameters"],
        "steps": trainer.step,
        "seconds": round(trainer.seconds),
        "recipe": asdict(recipe),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
    }
    (out / "training.json").write_text(json.dumps(summary, indent=1) + "\n")
    if trainer.log:  # the first validation has written a checkpoint
        result = report(out, args.corpus)
        console.print(
            {k: round(v, 3) for k, v in result["bits_per_byte"]["model"].items()},
            f"mean {result['mean']['model']:.3f}",
        )


if __name__ == "__main__":
    main()
