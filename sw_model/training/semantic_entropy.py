"""Which documents to train on: a filter by semantic entropy.

    python -m sw_model.training.semantic_entropy CHECKPOINT --out build/filtered [--share 0.25] [--random N]

**Score.** At two places of every training document the model writes K continuations of the 128 bytes before.
They are clustered by meaning: each is represented by the model's mean last hidden state over it, less the
mean over all, and joins the first cluster whose first member lies within a cosine of tau; tau is the median
cosine of two continuations of one prompt. With p_c the share of cluster c,

    H = - sum p_c log2 p_c,        a document's score: the mean of H over its places and four draws

A low score says that what follows is foreseen: boilerplate, and text like much other text.

**Budget.** A domain d of size_d bytes and mean score H_d (by bytes) gets size_d * sqrt(H_d), in proportion:
what is foreseen needs less text.

**Choice.** In a domain documents form groups of like subject (k-means of their mean last hidden states), each
group gets its share of the budget, and in a group documents are taken by falling score. By score alone the
hardest subjects would crowd out all others, and held-out text is of all subjects. Near-duplicates are gone
already (`corpus.py`).

`--random N` takes documents by lot N instead, the same share of every domain: what the filter must beat.

OUT becomes a corpus with the same held-out text, and gets `filter.json`: what was kept, and scores by domain.
"""

import argparse
import json
import random
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from sw_model.training.corpus import SEPARATOR, load
from sw_model.training.model import BOS, Model, load_checkpoint
from sw_model.training.sample import continuations
from sw_model.training.sources import DOMAINS

__all__ = ["budgets", "choose", "clusters", "entropies", "groups", "scores", "subjects"]

PROMPT, LENGTH, SAMPLES, DRAWS = 128, 32, 8, 4
PLACES = (1 / 3, 2 / 3)
_GROUP = 40  # documents, about, of one subject


def hidden(model: Model, tokens: Tensor) -> Tensor:
    """Last hidden states [B, T, H] of tokens [B, T]."""
    x, end = model.embedding(tokens), tokens.shape[1]
    for layer in model.layers:
        x, _ = layer(x, model.cos[:end], model.sin[:end])
    return model.norm(x)


@torch.no_grad()
def meaning(model: Model, tokens: Tensor, length: int) -> Tensor:
    """Mean last hidden state [B, H] over the last `length` of tokens [B, T]."""
    return hidden(model, tokens)[:, -length:].mean(dim=1)


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


@torch.no_grad()
def subjects(model: Model, documents: list[bytes], *, batch: int = 64) -> np.ndarray:
    """Mean last hidden state over the start of each document, as much as the context holds: [N, H]."""
    device, context = next(model.parameters()).device, model.config.context
    result = np.zeros((len(documents), model.config.hidden))
    order = sorted(range(len(documents)), key=lambda n: len(documents[n]))
    for at in range(0, len(order), batch):
        here = order[at : at + batch]
        rows = [torch.tensor([BOS, *documents[n][: context - 1]]) for n in here]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1).to(device)
        there = (tokens >= 0)[:, :, None]
        x = hidden(model, tokens.clamp(min=0))
        result[here] = ((x * there).sum(dim=1) / there.sum(dim=1)).double().cpu().numpy()
    return result


def groups(vectors: np.ndarray, count: int, *, seed: int = 0, rounds: int = 30) -> np.ndarray:
    """Labels [N] of `count` groups of vectors [N, H]: k-means of the normalised columns."""
    x = (vectors - vectors.mean(axis=0)) / (vectors.std(axis=0) + 1e-9)
    centre = x[np.random.default_rng(seed).choice(len(x), count, replace=False)]
    for _ in range(rounds):
        far = (x * x).sum(axis=1)[:, None] - 2 * x @ centre.T + (centre * centre).sum(axis=1)
        label = far.argmin(axis=1)
        for n in np.unique(label):
            centre[n] = x[label == n].mean(axis=0)
    return label


def budgets(size: list[np.ndarray], score: list[np.ndarray], share: float) -> list[float]:
    """Bytes for every domain, from its documents' sizes and scores; at most 95 % of a domain."""
    whole = [float(s.sum()) for s in size]
    weight = [w * np.average(h, weights=s) ** 0.5 for w, s, h in zip(whole, size, score, strict=True)]
    return [
        min(0.95 * w, share * sum(whole) * part / sum(weight)) for w, part in zip(whole, weight, strict=True)
    ]


def choose(size: np.ndarray, label: np.ndarray, order: Iterable[int], budget: float) -> list[int]:
    """Numbers of the documents taken: each group has its share of `budget` bytes, documents of a group come
    in this order, and what one group takes too much the next ones have less."""
    taken, used, quota, order = [], 0, 0.0, list(order)
    for group in np.unique(label):
        quota += budget * size[label == group].sum() / size.sum()
        for n in order:
            if label[n] == group and used + size[n] / 2 <= quota:
                taken.append(int(n))
                used += size[n]
    return sorted(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--corpus", type=Path, default=Path("build/corpus"))
    parser.add_argument("--out", type=Path, default=Path("build/filtered"))
    parser.add_argument("--share", type=float, default=0.25, help="of the training bytes")
    parser.add_argument("--random", type=int, metavar="N", help="take documents by lot, the Nth draw of it")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    (args.out / "train").mkdir(parents=True, exist_ok=True)
    for split in ("valid", "test"):
        shutil.copytree(args.corpus / split, args.out / split, dirs_exist_ok=True)
    texts = [load(args.corpus, "train", domain) for domain in DOMAINS]
    size = [np.array([len(document) for document in own]) for own in texts]
    result: dict = {"checkpoint": args.checkpoint.name, "share": args.share, "random": args.random}
    if args.random is None:
        model = load_checkpoint(args.checkpoint).to(device).eval()
        everything = [document for own in texts for document in own]
        mean = np.mean([scores(model, everything, seed=1 + n) for n in range(DRAWS)], axis=0)
        score = np.split(mean, np.cumsum([len(own) for own in texts])[:-1])
        budget = budgets(size, score, args.share)
        order = [np.argsort(-h, kind="stable") for h in score]
        label = [groups(subjects(model, own), max(4, min(24, len(own) // _GROUP))) for own in texts]
    else:
        score, label = ([np.zeros(len(own), int) for own in texts] for _ in range(2))
        budget = [args.share * float(s.sum()) for s in size]
        order = [_lot(domain, len(own), args.random) for domain, own in zip(DOMAINS, texts, strict=True)]
    result["domains"] = {}
    for n, domain in enumerate(DOMAINS):
        taken = choose(size[n], label[n], order[n], budget[n])
        kept = SEPARATOR.join(texts[n][document] for document in taken)
        (args.out / "train" / f"{domain}.txt").write_bytes(kept)
        result["domains"][domain] = {
            "documents": len(texts[n]),
            "bytes": int(size[n].sum()),
            "kept_documents": len(taken),
            "kept_bytes": int(size[n][taken].sum()),
            "mean_entropy": round(float(score[n].mean()), 4),
            "kept_mean_entropy": round(float(score[n][taken].mean()), 4),
        }
    (args.out / "filter.json").write_text(json.dumps(result, indent=1) + "\n")
    Console().print(result)


def _lot(domain: str, count: int, draw: int) -> list[int]:
    order = list(range(count))
    random.Random(f"lot {domain} {draw}").shuffle(order)
    return order


if __name__ == "__main__":
    main()
