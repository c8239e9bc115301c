"""Held-out bits per byte of a torch model, by domain.

    python -m sw_model.training.measure models/base [--corpus build/corpus] [--baselines FILE]

writes `metrics.json` into the checkpoint folder. Every document starts with the beginning-of-text token;
windows of the model's context slide by half of it, so that every byte but those of a document's first half
window sees at least half a context.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from sw_model.training.corpus import load
from sw_model.training.model import BOS, Model, load_checkpoint
from sw_model.training.sources import DOMAINS

__all__ = ["bits_per_byte", "by_domain", "report"]


@torch.no_grad()
def bits_per_byte(model: Model, documents: list[bytes], *, batch: int = 64) -> float:
    """Mean of -log2 P over all bytes of the documents (the beginning-of-text token itself is not counted)."""
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
    nats, count = 0.0, 0
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
        logits, _ = model(inputs)
        nats += F.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-1, reduction="sum"
        ).item()
        count += int((targets >= 0).sum())
    model.train(training)
    return nats / count / math.log(2)


def by_domain(model: Model, corpus: Path, split: str, *, limit: int | None = None) -> dict[str, float]:
    """Bits per byte for each domain of a built corpus; `limit` bounds the bytes read of each."""
    result = {}
    for domain in DOMAINS:
        documents, taken = [], 0
        for document in load(corpus, split, domain):
            if limit is not None and taken >= limit:
                break
            documents.append(document)
            taken += len(document)
        result[domain] = bits_per_byte(model, documents)
    return result


def report(folder: Path, corpus: Path, *, baselines: dict | None = None) -> dict:
    """Measure the checkpoint in `folder` on all test text; writes and returns `folder/metrics.json`.

    `baselines` are rows as `sw_model.training.baselines` writes them. Where `folder/heldout` holds the
    excerpt pack, each of its files is measured too, as one document.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_checkpoint(folder).to(device)
    rows = {"model": by_domain(model, corpus, "test"), **(baselines or {})}
    pack = sorted((folder / "heldout").glob("*.txt"))
    result = {
        "conditions": {
            "model": f"BF16 weights, float32 arithmetic; all test documents, each after the beginning-of-text"
            f" token; windows of {model.config.context} bytes sliding by half",
            "ngram": "order 6, Witten-Bell, one a domain; all training text; all test documents",
            "ngram_small": "the same on 3.4 MB of training text; first 2,000 bytes of test documents, 60 kB",
            "xz": "preset 9e, primed with all training text of the domain; all test text",
            "excerpts": "as model, each file of heldout/ as one document",
        },
        "bits_per_byte": rows,
        "mean": {name: sum(row.values()) / len(row) for name, row in rows.items()},
        "excerpts": {path.stem: bits_per_byte(model, [path.read_bytes()]) for path in pack},
    }
    (folder / "metrics.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--corpus", type=Path, default=Path("build/corpus"))
    parser.add_argument(
        "--baselines", type=Path, help="figures to put beside, from training.baselines --json"
    )
    args = parser.parse_args()
    baselines = json.loads(args.baselines.read_text()) if args.baselines else None
    result = report(args.checkpoint, args.corpus, baselines=baselines)
    table = Table("", *DOMAINS, "mean", title="held-out bits per byte")
    for name, row in result["bits_per_byte"].items():
        table.add_row(name, *(f"{row[d]:.3f}" for d in DOMAINS), f"{result['mean'][name]:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
