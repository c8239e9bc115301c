"""Train a checkpoint further with the gate on.

    python -m sw_model.training.gate_tune models/base --out build/train/gated [--seconds 100 | --steps 3000]

Most rows of a batch are gated towards `target` experts in every layer, the others keep all candidates, so
that the model stays good without the gate. OUT gets `config.json` and `model.safetensors` (the weights that
were best on validation text, gated and not, by the mean of both), `gate_rows.safetensors` (the trained rows
v, float32 [layers, H], for `expertile calibrate --density`), `gate_tuning.csv` and `gate_tuning.json`.
"""

import argparse
import csv
import json
import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from sw_model.training.corpus import load
from sw_model.training.gated_model import GatedModel
from sw_model.training.measure import bits_per_byte
from sw_model.training.model import load_checkpoint, save_checkpoint
from sw_model.training.optim import Muon
from sw_model.training.sources import DOMAINS
from sw_model.training.train import Corpus

__all__ = ["Recipe", "Tuner"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the model is tuned. Rates fall as a cosine over the steps or the seconds, whichever end first."""

    target: float = 1.2
    steps: int = 1_000_000
    seconds: float = math.inf
    batch: int = 96
    gated_rows: float = 0.75  # share of a batch's rows
    matrix_rate: float = 0.003
    other_rate: float = 0.0005
    density_rate: float = 0.002
    weight_decay: float = 0.1
    momentum: float = 0.95
    price_rate: float = 0.3  # octaves an expert over budget, a step
    warmup: int = 50
    dropout: float = 0.1
    balance: float = 0.01
    average: float = 0.998
    validate_every: int = 500
    validation_bytes: int = 60_000
    settle_rows: int = 40
    settle_every: int = 100
    seed: int = 2


class Tuner:
    """One run. `best` is the least mean of gated and top-k validation bits per byte so far."""

    def __init__(
        self, folder: Path, recipe: Recipe, corpus: Path, out: Path, *, device: torch.device, console: Console
    ) -> None:
        torch.manual_seed(recipe.seed)
        torch.set_float32_matmul_precision("high")
        self.recipe, self.out, self.console, self.device = recipe, out, console, device
        self.data = Corpus(corpus, device)
        self.texts = {split: {d: load(corpus, split, d) for d in DOMAINS} for split in ("valid", "test")}
        source = load_checkpoint(folder)
        count = len(DOMAINS)
        self.model = GatedModel.of(source, domains=count, dropout=recipe.dropout).to(device)
        self.averaged = GatedModel.of(source, domains=count).to(device)
        self.context = self.model.config.context
        matrices, others, rows = [], [], []
        for name, parameter in self.model.named_parameters():
            inner = parameter.dim() > 1 and name.startswith("layers.") and "router" not in name
            if "density" in name:
                rows.append(parameter)
            else:
                (matrices if inner and min(parameter.shape[-2:]) > 1 else others).append(parameter)
        cuda = device.type == "cuda"
        self.muon = Muon(
            matrices,
            lr=recipe.matrix_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            compiled=cuda,
        )
        groups = [
            {"params": others, "base": recipe.other_rate},
            {"params": rows, "base": recipe.density_rate},
        ]
        self.adam = torch.optim.AdamW(groups, lr=recipe.other_rate, betas=(0.9, 0.98), weight_decay=0.0)
        for group in self.muon.param_groups:
            group["base"] = recipe.matrix_rate
        self.precision = nullcontext
        if cuda:
            self.model.step = torch.compile(self.model.step)
            self.precision = lambda: torch.autocast("cuda", torch.bfloat16)
        self.best, self.log = math.inf, []
        self.settle(self.model, 0)
        self.settle(self.averaged, 0)

    def settle(self, model: GatedModel, step: int) -> None:
        """B and psi of every block on some training rows."""
        rows = self.recipe.settle_rows
        tokens = self.data.batch(rows, self.context, seed=self.recipe.seed + 77, step=step)[:, :-1]
        model.settle(tokens, self.domains(rows, step), self.recipe.target)

    def domains(self, rows: int, step: int) -> Tensor:
        """The domains of a batch's rows, as `Corpus.batch` draws them."""
        return (torch.arange(rows, device=self.device) + step) % len(DOMAINS)

    def update(self, step: int, factor: float) -> tuple[Tensor, Tensor]:
        """One step; nats a byte and mean experts by layer."""
        recipe = self.recipe
        tokens = self.data.batch(recipe.batch, self.context, seed=recipe.seed, step=step)
        # Every domain has its share of gated rows, since the two patterns have different periods.
        turn = torch.arange(recipe.batch, device=self.device) // len(DOMAINS)
        on = ((turn * 0.618034 + step * 0.381966) % 1 < recipe.gated_rows).float()
        with self.precision():
            logits, balance, used = self.model.gated(tokens[:, :-1], self.domains(recipe.batch, step), on)
            nats = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        (nats + recipe.balance * balance).backward()
        for optimiser in (self.muon, self.adam):
            for group in optimiser.param_groups:
                group["lr"] = group["base"] * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        for layer, mean in zip(self.model.layers, used, strict=True):
            layer.moe.pay(mean - recipe.target, recipe.price_rate)
        weight = 1 - min(recipe.average, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), weight)
        return nats.detach(), used

    def run(self) -> None:
        """Tune until the steps or the seconds are used up; the best weights are on disk at any time."""
        recipe, begin = self.recipe, time.monotonic()
        step, nats, used, counted = 0, 0.0, 0.0, 0
        self.validate(0, 0.0, math.nan, [])
        while True:
            seconds = time.monotonic() - begin
            progress = max(step / recipe.steps, seconds / recipe.seconds)
            last = progress >= 1
            if step and (step % recipe.validate_every == 0 or last):
                experts = [round(float(u) / counted, 3) for u in used]
                self.validate(step, seconds, float(nats) / counted / math.log(2), experts)
                nats, used, counted = 0.0, 0.0, 0
            if last:
                return
            factor = min(1.0, (step + 1) / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * progress))
            if step % recipe.settle_every == 0 and step:
                psi = [layer.moe.psi.clone() for layer in self.model.layers]
                self.settle(self.model, step)
                if step > 5 * recipe.settle_every:  # the price knows better than one small batch
                    for layer, price in zip(self.model.layers, psi, strict=True):
                        layer.moe.psi.lerp_(price, 0.5)
            new_nats, new_used = self.update(step, factor)
            nats, used, counted = nats + new_nats, used + new_used, counted + 1
            step += 1

    def measure(self, model: GatedModel, mode: str, split: str, limit: int | None) -> dict[str, float]:
        """Bits per byte by domain in one mode."""
        result, model.mode = {}, mode
        for model.domain, domain in enumerate(DOMAINS):
            documents, taken = [], 0
            for document in self.texts[split][domain]:
                if limit is not None and taken >= limit:
                    break
                documents.append(document)
                taken += len(document)
            result[domain] = bits_per_byte(model, documents)
        model.mode = "top"
        return result

    def validate(self, step: int, seconds: float, train: float, experts: list[float]) -> None:
        """Measure the averaged weights, keep them if they are the best, and add a row to the log."""
        self.settle(self.averaged, step)
        limit = self.recipe.validation_bytes
        row = {"step": step, "seconds": round(seconds, 1), "train": round(train, 4)}
        for mode in ("top", "gated"):
            by = self.measure(self.averaged, mode, "valid", limit)
            row[f"valid_{mode}"] = round(sum(by.values()) / len(by), 4)
        row["experts"] = " ".join(map(str, experts))
        self.log.append(row)
        self.console.print(" ".join(f"{k} {v}" for k, v in row.items()), soft_wrap=True)
        score = (row["valid_top"] + row["valid_gated"]) / 2
        if score < self.best:
            self.best = score
            self.save()
        with (self.out / "gate_tuning.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerows(self.log)

    def save(self) -> None:
        """The averaged weights and their rows v."""
        save_checkpoint(self.averaged.checkpoint_state(), self.averaged.config, self.out)
        rows = [layer.moe.density.weight.detach().float().cpu()[0] for layer in self.averaged.layers]
        save_file({"density": torch.stack(rows).contiguous()}, self.out / "gate_rows.safetensors")
        self.kept = {name: value.clone() for name, value in self.averaged.state_dict().items()}

    def test(self, limit: int | None) -> dict[str, dict[str, float]]:
        """Test bits per byte of the averaged weights by mode and domain, float32."""
        return {m: self.measure(self.averaged, m, "test", limit) for m in ("top", "gated", "first")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--corpus", type=Path, default=Path("build/corpus"))
    parser.add_argument("--out", type=Path, default=Path("build/train/gated"))
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop training after this time")
    parser.add_argument("--test-bytes", type=int, help="test text a domain, at most")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=NUMBER")
    args = parser.parse_args()
    recipe = Recipe(seconds=args.seconds)
    for change in args.set:
        field, _, value = change.partition("=")
        if not hasattr(recipe, field):
            parser.error(f"--set {change}: the recipe has no number called {field!r}")
        recipe = replace(recipe, **{field: type(getattr(recipe, field))(value)})
    if math.isinf(recipe.seconds) and recipe.steps == Recipe.steps:
        parser.error("give --seconds or --set steps=N")
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    console, begin = Console(), time.monotonic()
    tuner = Tuner(args.checkpoint, recipe, args.corpus, args.out, device=device, console=console)
    result = {"before": tuner.test(args.test_bytes)}
    console.print(f"ready after {time.monotonic() - begin:.1f} s on {device}", _means(result["before"]))
    tuner.run()
    tuner.averaged.load_state_dict(tuner.kept)
    tuner.settle(tuner.averaged, 0)
    result["after"] = tuner.test(args.test_bytes)
    console.print(f"done after {time.monotonic() - begin:.1f} s", _means(result["after"]))
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    summary = {
        "test_bits_per_byte": result,
        "means": {when: _means(by) for when, by in result.items()},
        "recipe": {k: v for k, v in asdict(recipe).items() if not (isinstance(v, float) and math.isinf(v))},
        "seconds": round(time.monotonic() - begin),
        "device": name,
    }
    (args.out / "gate_tuning.json").write_text(json.dumps(summary, indent=1) + "\n")


def _means(by_mode: dict[str, dict[str, float]]) -> dict[str, float]:
    return {mode: round(sum(by.values()) / len(by), 4) for mode, by in by_mode.items()}


if __name__ == "__main__":
    main()
