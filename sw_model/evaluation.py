"""Held-out bits per byte, by domain, with any MoE engine in the decoder.

Every byte of a text is predicted once. Windows of ``context`` tokens slide by ``stride``; a window scores
only the bytes that no earlier window scored, so each has at least ``context - stride`` tokens of history
(fewer at the head of a text). The first byte follows the beginning-of-text token; without one it is not
counted.

    bits per byte = sum over scored bytes of -log2 p(byte | history)  /  scored bytes
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sw_model.decoder import Decoder
from sw_model.errors import ExpertileError

__all__ = ["Score", "default_texts", "documents", "evaluate", "read_texts", "score_text"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """Sum of ``-log2 p`` over ``count`` bytes."""

    bits: float = 0.0
    count: int = 0

    def __add__(self, other: "Score") -> "Score":
        return Score(bits=self.bits + other.bits, count=self.count + other.count)

    @property
    def bits_per_byte(self) -> float:
        """Mean; NaN where nothing was scored."""
        return self.bits / self.count if self.count else float("nan")


def score_text(
    decoder: Decoder,
    text: bytes,
    *,
    context: int,
    stride: int,
    progress: Callable[[int], None] = lambda count: None,
) -> Score:
    """Score one text; ``progress`` is called with the bytes scored by each window.

    Raises
    ------
    ExpertileError
        The model is not byte-level, or not 1 <= stride < context <= its positions.
    """
    if decoder.shape.vocabulary != 256:
        raise ExpertileError(
            f"the model's vocabulary is {decoder.shape.vocabulary}: bits per byte need a byte-level one (256)"
        )
    if not 1 <= stride < context or context > decoder.shape.positions:
        raise ExpertileError(
            f"context {context} and stride {stride}: "
            f"1 <= stride < context <= {decoder.shape.positions} (the model's positions) is needed"
        )
    bos = b"" if decoder.shape.bos is None else bytes([decoder.shape.bos])
    ids = np.frombuffer(bos + text, np.uint8)
    total, scored = Score(), 1  # ids[:scored] are done
    while scored < len(ids):
        end = min(len(ids), max(context, scored + stride))
        start = max(0, end - context)
        decoder.reset()
        logits = decoder.forward(ids[start : end - 1])[scored - 1 - start :].astype(np.float64)
        peak = logits.max(axis=1)
        nats = np.log(np.exp(logits - peak[:, None]).sum(axis=1)) + peak
        nats -= logits[np.arange(end - scored), ids[scored:end]]
        total += Score(bits=float(nats.sum() / np.log(2)), count=end - scored)
        progress(end - scored)
        scored = end
    return total


def evaluate(
    decoder: Decoder,
    texts: Mapping[str, Iterable[bytes]],
    *,
    context: int = 256,
    stride: int = 128,
    progress: Callable[[str, int], None] = lambda domain, count: None,
) -> dict[str, Score]:
    """Score texts by domain; ``progress(domain, bytes)`` is called after every window."""
    scores = {}
    for domain, parts in texts.items():
        scores[domain] = Score()
        for text in parts:
            scores[domain] += score_text(
                decoder, text, context=context, stride=stride, progress=partial(progress, domain)
            )
    return scores


def read_texts(paths: Iterable[Path], limit: int | None = None) -> dict[str, list[bytes]]:
    """Files as domains named by their stems, the first ``limit`` bytes of each.

    Raises
    ------
    ExpertileError
        A file is missing, unreadable, or too short to hold a byte with history.
    """
    texts: dict[str, list[bytes]] = {}
    for path in paths:
        try:
            with path.open("rb") as file:
                text = file.read(-1 if limit is None else limit)
        except OSError as error:
            raise ExpertileError(f"{path}: cannot be read ({error.strerror})") from error
        if len(text) < 2:
            raise ExpertileError(f"{path}: {len(text)} bytes: at least 2 are needed")
        texts.setdefault(path.stem, []).append(text)
    return texts


def default_texts(root: Path, limit: int | None = None) -> dict[str, list[bytes]]:
    """The test split of the built corpus under ``root``/build/corpus, else the shipped held-out excerpts.

    ``limit`` bounds the bytes of each domain.

    Raises
    ------
    ExpertileError
        Neither is there.
    """
    corpus = sorted((root / "build" / "corpus" / "test").glob("*.txt"))
    if corpus:
        return {path.stem: documents(path, limit) for path in corpus}
    excerpts = sorted((root / "models" / "base" / "heldout").glob("*.txt"))
    if not excerpts:
        raise ExpertileError(f"no held-out text in {root}: give files with --text")
    return read_texts(excerpts, limit)


def documents(path: Path, limit: int | None = None) -> list[bytes]:
    """The documents of one file of the built corpus, NUL between them, as far as ``limit`` bytes go."""
    kept, room = [], limit
    for text in path.read_bytes().split(b"\0"):
        piece = text[:room]
        if len(piece) > 1:
            kept.append(piece)
        if room is not None:
            room -= len(piece)
    return kept
