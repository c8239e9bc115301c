"""Which documents to train on: a filter by semantic entropy.

    python -m sw_model.training.semantic_entropy CHECKPOINT --out build/filtered [--share 0.25] [--random]

At two places of every training document the model writes K continuations of the 128 bytes before. They are
clustered by meaning: each is represented by the model's mean last hidden state over it, less the mean over
all, and joins the first cluster whose first member lies within a cosine of tau; tau is the median cosine of
two continuations of one prompt. With p_c the share of cluster c,

    H = - sum p_c log2 p_c,        a document's score: the mean of H over its places

A low score says that what follows is foreseen: boilerplate, and text like much other text. In every domain
documents are taken by falling score until `share` of the bytes is used up; one that shares more than half
of its runs of five words with those already taken is passed over (problems of `reasoning`, made from
templates, are not). `--random` takes documents by lot instead, as many bytes: what the filter must beat.

OUT becomes a corpus with the same held-out text, and gets `filter.json`: what was kept, and scores by domain.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from sw_model.training.corpus import SEPARATOR, load
from sw_model.training.model import Model, load_checkpoint
from sw_model.training.sample import continuations
from sw_model.training.sources import DOMAINS
from sw_model.training.text import word_grams

__all__ = ["choose", "clusters", "entropies", "scores"]

PROMPT, LENGTH, SAMPLES = 128, 32, 8
PLACES = (1 / 3, 2 / 3)


@torch.no_grad()
def meaning(model: Model, tokens: Tensor, length: int) -> Tensor:
    """Mean last hidden state [B, H] over the last `length` of tokens [B, T]."""
    x, end = model.embedding(tokens), tokens.shape[1]
    for layer in model.layers:
        x, _ = layer(x, model.cos[:end], model.sin[:end])
    return model.norm(x)[:, -length:].mean(dim=1)


def clusters(similar: np.ndarray) -> np.ndarray:
    """Labels [N, K] from whether members are alike, bool [N, K, K]: the first earlier leader alike, or one's
    own number, which makes one a leader."""
    count, members = similar.shape[:2]
    label = np.tile(np.arange(members), (count, 1))
    for j in range(1, members):
        for i in reversed(range(j)):
            label[similar[:, i, j] & (label[:, i] == i), j] = i
    return label


def entropies(label: np.ndarray) -> np.ndarray:
    """H in bits [N] of labels [N, K]."""
    share = np.stack([(label == c).mean(axis=1) for c in range(label.shape[1])], axis=1)
    return -(share * np.log2(np.maximum(share, 1e-30))).sum(axis=1)


def scores(model: Model, documents: list[bytes], *, seed: int = 1, batch: int = 512) -> np.ndarray:
    """Semantic entropy of each document; of one too short for a place, 0."""
    device = next(model.parameters()).device
    owner, prompts = [], []
    for n, document in enumerate(documents):
        for place in PLACES:
            end = max(PROMPT, round(len(document) * place))
            if end <= len(document):
                owner.append(n)
                prompts.append(list(document[end - PROMPT : end]))
    generator = torch.Generator(device).manual_seed(seed)
    vectors = []
    for at in range(0, len(prompts), batch):
        heads = torch.tensor(prompts[at : at + batch], device=device).repeat_interleave(SAMPLES, dim=0)
        written = continuations(model, heads, LENGTH, generator=generator)
        vectors.append(meaning(model, torch.cat([heads, written], dim=1), LENGTH).float().cpu())
    v = torch.cat(vectors)
    v = torch.nn.functional.normalize(v - v.mean(dim=0), dim=1).view(-1, SAMPLES, v.shape[1])
    cosine = (v @ v.mT).numpy()
    upper = np.triu_indices(SAMPLES, 1)
    tau = np.median(cosine[:, upper[0], upper[1]])
    h = entropies(clusters(cosine >= tau))
    total, count = np.zeros(len(documents)), np.zeros(len(documents))
    np.add.at(total, owner, h)
    np.add.at(count, owner, 1)
    return total / np.maximum(count, 1)


def choose(documents: list[bytes], order: list[int], budget: float, *, overlap: float | None) -> list[int]:
    """Numbers of the documents taken in this order until `budget` bytes; `overlap`: share of five-word runs
    above which one is passed over, None: never."""
    taken, used, seen = [], 0, set()
    for n in order:
        if used >= budget:
            break
        if overlap is not None:
            grams = word_grams(documents[n].decode("ascii"), 5)
            if len(grams & seen) > overlap * len(grams):
                continue
            seen |= grams
        taken.append(n)
        used += len(documents[n])
    return sorted(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--corpus", type=Path, default=Path("build/corpus"))
    parser.add_argument("--out", type=Path, default=Path("build/filtered"))
    parser.add_argument("--share", type=float, default=0.25, help="of each domain's training bytes")
    parser.add_argument("--random", action="store_true", help="take documents by lot")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_checkpoint(args.checkpoint).to(device).eval()
    (args.out / "train").mkdir(parents=True, exist_ok=True)
    for split in ("valid", "test"):
        shutil.copytree(args.corpus / split, args.out / split, dirs_exist_ok=True)
    texts = {domain: load(args.corpus, "train", domain) for domain in DOMAINS}
    everything = [document for domain in DOMAINS for document in texts[domain]]
    score = np.zeros(len(everything)) if args.random else scores(model, everything)
    result, start = {"checkpoint": args.checkpoint.name, "share": args.share, "random": args.random}, 0
    result["domains"] = {}
    for domain in DOMAINS:
        documents = texts[domain]
        own = score[start : start + len(documents)]
        start += len(documents)
        order = list(np.argsort(-own, kind="stable"))
        if args.random:
            random.Random(f"lot {domain}").shuffle(order)
        repeats = None if args.random or domain == "reasoning" else 0.5
        total = sum(map(len, documents))
        taken = choose(documents, order, args.share * total, overlap=repeats)
        (args.out / "train" / f"{domain}.txt").write_bytes(SEPARATOR.join(documents[n] for n in taken))
        result["domains"][domain] = {
            "documents": len(documents),
            "bytes": total,
            "kept_documents": len(taken),
            "kept_bytes": sum(len(documents[n]) for n in taken),
            "mean_entropy": round(float(own.mean()), 4),
            "kept_mean_entropy": round(float(own[taken].mean()), 4),
        }
    (args.out / "filter.json").write_text(json.dumps(result, indent=1) + "\n")
    Console().print(result)


if __name__ == "__main__":
    main()
