"""Exact-match accuracy on worked problems of the test split, none of whose questions was trained on.

    python -m sw_model.training.exact_match CHECKPOINT [--questions 500]

A question follows some solved problems of its document; the model writes its steps and its answer, always
the likeliest byte. An answer counts when it equals the computed one.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import torch

from sw_model.training.corpus import load
from sw_model.training.model import Model, load_checkpoint
from sw_model.training.sample import continuations

__all__ = ["accuracy", "answer", "kind", "prompts"]

PROMPT, LENGTH = 384, 240
_KINDS = {
    "+": "addition",
    "*": "product",
    "mod": "remainder",
    "Compute": "terms",
    "Solve": "linear",
    "tallest": "order",
    "How many": "story",
}


def kind(question: str) -> str:
    """What sort of problem this is."""
    for mark in ("tallest", "How many", "Solve", "Compute", "mod", "*", "+"):
        if mark in question:
            return _KINDS[mark]
    return "other"


def answer(text: str) -> str | None:
    """What stands after the first `A: ` line head of a continuation that ended that line."""
    for line in text.split("\n")[:-1]:
        if line.startswith("A: "):
            return line.removeprefix("A: ")
        if line.startswith("Q: "):
            break
    return None


def prompts(documents: list[bytes], count: int) -> list[tuple[bytes, str, str]]:
    """Prompts of PROMPT bytes that end in a question, with its kind and its answer."""
    found = []
    for document in documents:
        text = document.decode("ascii")
        at = text.find("\nThink: ")
        while at >= 0 and len(found) < count:
            end = at + len("\nThink: ")
            truth = answer(text[end:] + "\n")
            if end >= PROMPT and truth is not None:
                question = text[text.rfind("Q: ", 0, at) : at]
                found.append((text[end - PROMPT : end].encode(), kind(question), truth))
            at = text.find("\nThink: ", end)
    return found


def accuracy(model: Model, corpus: Path, count: int, *, batch: int = 512) -> dict[str, float]:
    """Share of right answers among `count` questions: `all` and by kind; {} when there are none to ask."""
    asked = prompts(load(corpus, "test", "reasoning"), count)
    device, right, total = next(model.parameters()).device, Counter(), Counter()
    for at in range(0, len(asked), batch):
        part = asked[at : at + batch]
        heads = torch.tensor([list(prompt) for prompt, _, _ in part], device=device)
        written = continuations(model, heads, LENGTH)
        for (_, sort, truth), row in zip(part, written.tolist(), strict=True):
            good = answer(bytes(row).decode("ascii", "replace")) == truth
            for name in ("all", sort):
                right[name] += good
                total[name] += 1
    return {name: round(right[name] / total[name], 4) for name in sorted(total)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="of a context of at least 624 bytes")
    parser.add_argument("--corpus", type=Path, default=Path("build/corpus"))
    parser.add_argument("--questions", type=int, default=500)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_checkpoint(args.checkpoint).to(device)
    print(json.dumps(accuracy(model, args.corpus, args.questions), indent=1))


if __name__ == "__main__":
    main()
