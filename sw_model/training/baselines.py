"""What a byte model must beat: an order-6 Witten-Bell n-gram a domain, and xz primed with the training text.

    python -m sw_model.training.baselines [--corpus build/corpus] [--json FILE]

prints held-out bits per byte by domain.
"""

import argparse
import json
import lzma
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sw_model.training.corpus import load
from sw_model.training.sources import DOMAINS

__all__ = ["NGram", "measure", "xz_bits_per_byte"]


class NGram:
    """Interpolated n-gram over bytes with Witten-Bell smoothing.

    With n(c) the count of a context, n(c, x) that of byte x after it, and t(c) the number of different bytes
    seen after it,

        P(x | c) = (n(c, x) + t(c) * P(x | c')) / (n(c) + t(c)),

    where c' is c less its oldest byte; an unseen context passes on P(x | c'); below the empty context stands
    the uniform 1/256.

    Parameters: `text` (training bytes), `order` (context bytes at most, 0 to 6: context and next byte share
    a 64-bit key). Raises ValueError for another order.
    """

    def __init__(self, text: bytes, order: int = 6) -> None:
        if not 0 <= order <= 6:
            raise ValueError(f"order must be 0 to 6, not {order}")
        self.order = order
        data = np.frombuffer(text, np.uint8)
        self._pairs, self._contexts = [], []
        for length in range(order + 1):
            context, follower = self._windows(data, length)
            pairs, counts = np.unique(context << np.uint64(8) | follower, return_counts=True)
            # A sorted run of equal contexts in the pairs gives n(c) as a sum and t(c) as a length.
            contexts, start, kinds = np.unique(pairs >> np.uint64(8), return_index=True, return_counts=True)
            totals = np.add.reduceat(counts, start) if start.size else start
            self._pairs.append((pairs, counts))
            self._contexts.append((contexts, totals, kinds))

    @staticmethod
    def _windows(data: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Each run of `length` bytes as one uint64, and the byte after it."""
        follower = data[length:].astype(np.uint64)
        context = np.zeros(len(follower), np.uint64)
        for i in range(length):
            context = context << np.uint64(8) | data[i : i + len(follower)]
        return context, follower

    @staticmethod
    def _find(table: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position of each key in a sorted table, and whether it is there."""
        at = np.minimum(np.searchsorted(table, keys), max(len(table) - 1, 0))
        return at, (table[at] == keys) if table.size else np.zeros(len(keys), bool)

    def probabilities(self, text: bytes) -> np.ndarray:
        """P of each byte of `text` after the bytes before it: float64 [len(text)]."""
        data = np.frombuffer(text, np.uint8)
        result = np.full(len(data), 1 / 256)
        for length in range(self.order + 1):
            context, follower = self._windows(data, length)
            contexts, totals, kinds = self._contexts[length]
            at, known = self._find(contexts, context)
            where, seen = self._find(self._pairs[length][0], context << np.uint64(8) | follower)
            if not contexts.size:
                continue
            count = np.where(seen, self._pairs[length][1][where], 0)
            lower = result[length:]
            mixed = (count + kinds[at] * lower) / (totals[at] + kinds[at])
            result[length:] = np.where(known, mixed, lower)
        return result

    def bits_per_byte(self, documents: list[bytes]) -> float:
        """Mean of -log2 P over all bytes; contexts do not cross documents."""
        bits = sum(-np.log2(self.probabilities(document)).sum() for document in documents)
        return float(bits / sum(map(len, documents)))


def xz_bits_per_byte(train: bytes, test: bytes) -> float:
    """Growth of the xz-compressed training text when the test text follows it, in bits a test byte."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 26}]

    def size(data: bytes) -> int:
        return len(lzma.compress(data, format=lzma.FORMAT_XZ, filters=filters))

    return 8 * (size(train + test) - size(train)) / len(test)


def _starts(documents: list[bytes], each: int, total: int) -> list[bytes]:
    """The first `each` bytes of every document, until `total` bytes are there."""
    taken, left = [], total
    for document in documents:
        if left <= 0:
            break
        taken.append(document[: min(each, left)])
        left -= len(taken[-1])
    return taken


def measure(corpus: Path) -> dict[str, dict[str, float]]:
    """Bits per byte of each baseline by domain.

    `ngram` and `xz` train on all of a domain's training text and are measured on all of its test text;
    `ngram_small` trains on the first 3.4 MB and is measured on the first 2,000 bytes of test documents up to
    60 kB.
    """
    result: dict[str, dict[str, float]] = {"ngram": {}, "ngram_small": {}, "xz": {}}
    for domain in track(DOMAINS, "measuring baselines"):
        train, test = b"\0".join(load(corpus, "train", domain)), load(corpus, "test", domain)
        result["ngram"][domain] = NGram(train).bits_per_byte(test)
        result["ngram_small"][domain] = NGram(train[:3_400_000]).bits_per_byte(_starts(test, 2000, 60_000))
        result["xz"][domain] = xz_bits_per_byte(train, b"".join(test))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, default=Path("build/corpus"))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    result = measure(args.corpus)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    table = Table("baseline", *DOMAINS, "mean", title="held-out bits per byte")
    for name, row in result.items():
        table.add_row(name, *(f"{row[d]:.3f}" for d in DOMAINS), f"{sum(row.values()) / len(row):.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
