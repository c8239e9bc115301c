"""Held-out bits per byte of torch models, by domain.

    python -m sw_model.training.measure models/base ... [--corpus build/corpus] [--baselines FILE]
        [--questions N] [--bytes N]

writes `metrics.json` into every checkpoint folder. Every document starts with the beginning-of-text token;
windows of the model's context slide by half of it, so that every byte but those of a document's first half
window sees at least half a context.
"""

import argparse
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from sw_model.training.corpus import load
from sw_model.training.exact_match import accuracy
from sw_model.training.gated_checkpoint import GateFileModel, moes
from sw_model.training.gated_model import GatedModel
from sw_model.training.model import BOS, Model, load_checkpoint, shape
from sw_model.training.precision import rounded
from sw_model.training.sources import DOMAINS

__all__ = ["Score", "bits_per_byte", "by_domain", "first_bytes", "report", "score", "scores"]


class Score(NamedTuple):
    """Of some text: bits per byte, and the share of bytes that are not the likeliest ones."""

    bits: float
    error: float


@torch.no_grad()
def score(model: Model, documents: list[bytes], *, batch: int = 64) -> Score:
    """Over all bytes of the documents (the beginning-of-text token itself is not counted)."""
    context = model.config.context
    device = next(model.parameters()).device
    windows, first_counted = [], []
    for document in documents:
        tokens = torch.tensor([BOS, *document])
        start, counted = 0, 0
        while counted < len(document):
            windows.append(tokens[start : start + context + 1])
            first_counted.append(counted - start)
            counted = min(start + context, len(document))
            start += context // 2
    training = model.training
    model.eval()
    nats, wrong, count = 0.0, 0, 0
    # Windows of like length share a batch; what they lack is padded and ignored.
    order = sorted(range(len(windows)), key=lambda i: len(windows[i]))
    for at in range(0, len(order), batch):
        chosen = order[at : at + batch]
        padded = torch.nn.utils.rnn.pad_sequence(
            [windows[i] for i in chosen], batch_first=True, padding_value=-1
        )
        targets = padded[:, 1:].clone()
        for row, i in enumerate(chosen):
            targets[row, : first_counted[i]] = -1
        inputs, targets = padded[:, :-1].clamp(min=0).to(device), targets.to(device)
        logits = model(inputs)[0].float()
        nats += F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum"
        ).item()
        wrong += int(((logits.argmax(dim=-1) != targets) & (targets >= 0)).sum())
        count += int((targets >= 0).sum())
    model.train(training)
    return Score(nats / count / math.log(2), wrong / count)


def bits_per_byte(model: Model, documents: list[bytes]) -> float:
    """Mean of -log2 P over the documents."""
    return score(model, documents).bits


def first_bytes(documents: list[bytes], limit: int | None) -> list[bytes]:
    """Whole documents until they are `limit` bytes or more; None: all."""
    taken, size = [], 0
    for document in documents:
        if limit is not None and size >= limit:
            break
        taken.append(document)
        size += len(document)
    return taken


def scores(
    model: Model, corpus: Path, split: str, *, limit: int | None = None, mode: str = "top"
) -> dict[str, Score]:
    """For each domain of a built corpus; `limit` bounds the bytes read of each.

    `mode` is that of a gated model (`gated_model.py`), which is told the domain.
    """
    result = {}
    model.mode = mode
    for model.domain, domain in enumerate(DOMAINS):
        result[domain] = score(model, first_bytes(load(corpus, split, domain), limit))
    model.mode = "top"
    return result


def by_domain(
    model: Model, corpus: Path, split: str, *, limit: int | None = None, mode: str = "top"
) -> dict[str, float]:
    """Bits per byte alone, as `scores`."""
    return {d: s.bits for d, s in scores(model, corpus, split, limit=limit, mode=mode).items()}


@contextmanager
def _as_hardware(model: Model, name: str | None) -> Iterator[None]:
    """Within, experts compute as the array does in the format `name`; None: in float."""
    for moe in moes(model):
        moe.act8 = name is not None
    with rounded(model, name):
        yield
    for moe in moes(model):
        moe.act8 = False


def report(
    folder: Path,
    corpus: Path,
    *,
    baselines: dict | None = None,
    questions: int = 0,
    limit: int | None = None,
) -> dict:
    """Measure the checkpoint in `folder` on test text, `limit` bytes a domain (None: all of it); writes and
    returns `folder/metrics.json`.

    `baselines` are rows as `sw_model.training.baselines` writes them. Where `folder/heldout` holds the
    excerpt pack, each of its files is measured too, as one document; where `folder/gate.json` is, the gated
    model is.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_checkpoint(folder).to(device)
    measured: dict[str, dict[str, Score]] = {}
    experts = {}
    for row, form in (("model", None), ("int8", "int8"), ("int4", "int4")):
        with _as_hardware(model, form):
            measured[row] = scores(model, corpus, "test", limit=limit)
    if (folder / "gate.json").is_file():
        for row, form in (("gated", None), ("gated_int4", "int4")):
            gated = GateFileModel(folder).to(device)
            with _as_hardware(gated, form):
                measured[row] = scores(gated, corpus, "test", limit=limit)
            experts[row] = [round(mean, 4) for mean in gated.mean_experts]
        first = GatedModel.of(model, domains=len(DOMAINS)).to(device)
        measured["first"] = scores(first, corpus, "test", limit=limit, mode="first")
    rows = {row: {d: s.bits for d, s in by.items()} for row, by in measured.items()} | (baselines or {})
    pack = sorted((folder / "heldout").glob("*.txt"))
    conditions = {
        "model": "BF16 weights, float32 arithmetic; "
        f"{'all test documents' if limit is None else f'test documents, {limit:,} bytes a domain'}, "
        f"each after the beginning-of-text token; windows of {model.config.context} bytes "
        "sliding by half",
        "int8, int4": "as model; weights of the experts rounded as the quantiser does it, what they "
        "multiply to MXINT8",
        "gated": "as model, with gate.json, the domain found by its rows; gated_int4: as int4 too",
        "first": "as model, with each token's better expert alone, at its own weight",
        "ngram": "order 6, Witten-Bell, one a domain; all training text; all test documents",
        "ngram_small": "the same on 3.4 MB of training text; first 2,000 bytes of test documents, 60 kB",
        "xz": "preset 9e, primed with all training text of the domain; all test text",
        "error_rate": "share of next bytes that are not the model's likeliest",
        "excerpts": "as model, each file of heldout/ as one document",
    }
    there = {*rows, "int8, int4", "error_rate", *(("excerpts",) if pack else ())}
    result = {
        "conditions": {name: text for name, text in conditions.items() if name in there},
        "shape": shape(model.config),
        "bits_per_byte": rows,
        "mean": {name: sum(row.values()) / len(row) for name, row in rows.items()},
        "error_rate": {row: {d: s.error for d, s in by.items()} for row, by in measured.items()},
        "mean_experts": experts,
        "excerpts": {path.stem: bits_per_byte(model, [path.read_bytes()]) for path in pack},
    }
    if questions:
        result["exact_match"] = accuracy(model, corpus, questions)
    (folder / "metrics.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, nargs="+")
    parser.add_argument("--corpus", type=Path, default=Path("build/corpus"))
    parser.add_argument(
        "--baselines", type=Path, help="figures to put beside, from training.baselines --json"
    )
    parser.add_argument("--bytes", type=int, help="of test text a domain; all of it")
    parser.add_argument("--questions", type=int, default=0, help="worked problems to ask, too")
    args = parser.parse_args()
    baselines = json.loads(args.baselines.read_text()) if args.baselines else None
    for folder in args.checkpoint:
        result = report(folder, args.corpus, baselines=baselines, questions=args.questions, limit=args.bytes)
        table = Table("", *DOMAINS, "mean", title=f"{folder}: held-out bits per byte")
        for name, row in result["bits_per_byte"].items():
            table.add_row(name, *(f"{row[d]:.4f}" for d in DOMAINS), f"{result['mean'][name]:.4f}")
        Console().print(table)


if __name__ == "__main__":
    main()
