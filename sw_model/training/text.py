"""Plain text: folding to ASCII, joining wrapped lines, cutting at paragraphs, and two filters of quality."""

import re
import unicodedata
import zlib

__all__ = ["cut", "fold", "is_prose", "join_lines", "word_grams"]

_REPLACE = str.maketrans(
    {
        "‘": "'",
        "’": "'",
        "“": '"',
        "”": '"',
        "–": "-",
        "—": "--",
        "−": "-",
        "…": "...",
        "•": "*",
        "§": "Section ",
        "©": "(c)",
        "®": "(R)",
        "™": "(TM)",
        "\u00a0": " ",
        "\u00ad": "",
        "\ufeff": "",
        "\t": "    ",
        "\r": "",
    }
)
_WORD = re.compile(r"[a-z0-9]+")


def fold(text: str, *, keep_indent: bool = False) -> str:
    """Text in printable ASCII and newlines alone, at most one blank line in a row, one newline at the end.

    Runs of blanks shrink to one unless `keep_indent` (program code). Characters without an ASCII form go.
    """
    text = unicodedata.normalize("NFKD", text.translate(_REPLACE)).encode("ascii", "ignore").decode()
    lines = []
    for line in text.split("\n"):
        line = "".join(ch for ch in line if " " <= ch <= "~")
        lines.append(line.rstrip() if keep_indent else " ".join(line.split()))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n") + "\n"


def join_lines(text: str) -> str:
    """One line a paragraph: undoes the hard wrapping of books and licences."""
    paragraphs = (" ".join(p.split()) for p in re.split(r"\n\s*\n", text))
    return "\n\n".join(p for p in paragraphs if p) + "\n"


def cut(text: str, size: int) -> list[str]:
    """Pieces of at most about `size` characters, cut between paragraphs only."""
    pieces, current, length = [], [], 0
    for paragraph in text.strip("\n").split("\n\n"):
        if current and length + len(paragraph) > size:
            pieces.append("\n\n".join(current) + "\n")
            current, length = [], 0
        current.append(paragraph)
        length += len(paragraph) + 2
    return pieces + ["\n\n".join(current) + "\n"]


def word_grams(text: str, n: int) -> set[int]:
    """32-bit hashes of all runs of `n` words (case and punctuation ignored)."""
    words = _WORD.findall(text.lower())
    return {zlib.crc32(" ".join(words[i : i + n]).encode()) for i in range(len(words) - n + 1)}


def is_prose(text: str, *, letters: float, distinct: float = 0.45) -> bool:
    """False for tables and boilerplate lists.

    `letters` is the least share of letters and blanks among the characters, `distinct` the least share of
    different word triples among all word triples.
    """
    words = re.findall(r"\w+", text)
    triples = list(zip(words, words[1:], words[2:], strict=False))
    enough = sum(ch.isalpha() or ch == " " for ch in text) >= letters * len(text)
    return enough and len(set(triples)) >= distinct * len(triples)
