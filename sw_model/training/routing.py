"""Is the routing real? What experts know of domains, what each is worth, and text from elsewhere.

    python -m sw_model.training.routing models/base --json docs/training/routing.json [--bytes 20000]
        [--elsewhere FILE ...]

By layer: the mutual information of expert and domain in bits (each of a token's top-k choices counts alike),
and how often each expert is chosen in each domain. By layer and expert: bits per byte by domain with that
expert taken out of the router's reach, less those of the whole model. Files of `--elsewhere` are texts of
other origin: their choices, and the domain whose choices they resemble most (least Kullback-Leibler
divergence, added over the layers).
"""

import argparse
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from sw_model.training.corpus import load
from sw_model.training.measure import first_bytes, score
from sw_model.training.model import Model, MoE, load_checkpoint
from sw_model.training.sources import DOMAINS

__all__ = ["choices", "information", "report", "without"]


@contextmanager
def _listening(model: Model, counts: list[Tensor]) -> Iterator[None]:
    """Within, every block's choices are added to its entry of `counts` [E]."""
    blocks = [layer.moe for layer in model.layers]

    def heard(block: MoE, total: Tensor) -> None:
        inner = block.route

        def route(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            answer = inner(x)
            total.add_(answer[1].sum(dim=0))
            return answer

        block.route = route

    for block, total in zip(blocks, counts, strict=True):
        heard(block, total)
    yield
    for block in blocks:
        del block.route


def choices(model: Model, documents: list[bytes]) -> Tensor:
    """How often each expert is chosen, as shares [layers, E]; padding of windows counts a little too."""
    counts = [torch.zeros(len(layer.moe.gate), device=layer.moe.gate.device) for layer in model.layers]
    with _listening(model, counts):
        score(model, documents)
    return torch.stack([c / c.sum() for c in counts]).cpu()


def information(share: Tensor) -> Tensor:
    """I(expert; domain) in bits [layers] from shares [domains, layers, E], domains equally likely."""
    mean = share.mean(dim=0)
    return (share * (share / mean.clamp(min=1e-30)).clamp(min=1e-30).log2()).sum(dim=-1).mean(dim=0)


@contextmanager
def without(model: Model, layer: int, expert: int) -> Iterator[None]:
    """Within, the router of `layer` never chooses `expert`."""
    block = model.layers[layer].moe

    def route(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = block.router(x.float())
        logits[:, expert] = -math.inf
        probability = logits.softmax(dim=-1)
        top, chosen = probability.topk(block.top_k, dim=-1)
        mask = torch.zeros_like(probability).scatter(-1, chosen, 1.0)
        return probability, mask, probability * mask / top.sum(dim=-1, keepdim=True)

    block.route = route
    yield
    del block.route


def report(model: Model, corpus: Path, limit: int, elsewhere: list[Path], console: Console) -> dict:
    """All of it, for JSON."""
    texts = {domain: first_bytes(load(corpus, "test", domain), limit) for domain in DOMAINS}
    whole = {domain: score(model, documents).bits for domain, documents in texts.items()}
    share = torch.stack([choices(model, documents) for documents in texts.values()])
    result = {
        "bytes": limit,
        "information": [round(float(i), 4) for i in information(share)],
        "choices": {d: [[round(float(v), 4) for v in row] for row in share[n]] for n, d in enumerate(texts)},
        "bits_per_byte": whole,
        "elsewhere": {},
    }
    for path in elsewhere:
        text = [path.read_bytes()[:limit]]
        own = choices(model, text)
        far = (own * (own.clamp(min=1e-6) / share.clamp(min=1e-6)).log2()).sum(dim=(1, 2))
        result["elsewhere"][path.name] = {
            "bits_per_byte": round(score(model, text).bits, 4),
            "nearest": DOMAINS[int(far.argmin())],
            "divergence": {d: round(float(v), 4) for d, v in zip(DOMAINS, far, strict=True)},
        }
    pairs = [(n, e) for n, layer in enumerate(model.layers) for e in range(len(layer.moe.gate))]
    worse: dict[str, dict[str, float]] = {}
    for n, e in track(pairs, "taking experts out", console=console):
        with without(model, n, e):
            worse[f"{n}.{e}"] = {
                d: round(score(model, documents).bits - whole[d], 4) for d, documents in texts.items()
            }
    result["without"] = worse
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--corpus", type=Path, default=Path("build/corpus"))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--bytes", type=int, default=20_000, help="of test text a domain")
    parser.add_argument("--elsewhere", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_checkpoint(args.checkpoint).to(device).eval()
    with torch.no_grad():
        result = report(model, args.corpus, args.bytes, args.elsewhere, Console())
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
