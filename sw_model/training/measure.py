"""Held-out bits per byte of a torch model, by domain.

    python -m sw_model.training.measure models/base [--corpus build/corpus] [--json FILE]

Every document starts with the beginning-of-text token; windows of the model's context slide by half of it, so
that every byte but those of a document's first half window sees at least half a context.
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

__all__ = ["bits_per_byte", "by_domain"]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--corpus", type=Path, default=Path("build/corpus"))
    parser.add_argument("--split", default="test", choices=("valid", "test"))
    parser.add_argument("--limit", type=int, help="bytes a domain, about")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = by_domain(load_checkpoint(args.checkpoint).to(device), args.corpus, args.split, limit=args.limit)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    table = Table("split", *DOMAINS, "mean", title="held-out bits per byte")
    table.add_row(
        args.split, *(f"{v:.3f}" for v in result.values()), f"{sum(result.values()) / len(result):.3f}"
    )
    Console().print(table)


if __name__ == "__main__":
    main()
