"""Imports run one way: expertile -> sim -> driver -> hw -> sw_model; torch only in training."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("expertile", "sim", "driver", "hw", "sw_model")  # each may import those after it
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def against(path: Path, source: str) -> list[str]:
    """Modules that ``source``, the text of ``path``, may not import."""
    place = path.relative_to(ROOT)
    room = place.parts[0]
    forbidden = set(ROOMS[: ROOMS.index(room)])
    if room == "sw_model":
        forbidden |= {"amaranth", "amaranth_boards", "cocotb"}
    if place.parts[:2] != ("sw_model", "training"):
        forbidden.add("torch")
    return sorted(name for name in imports(ast.parse(source)) if name.split(".")[0] in forbidden)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrow(path):
    assert not against(path, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("sw_model/x.py", "import hw.top"),
        ("sw_model/x.py", "def f():\n    from amaranth.lib import wiring"),
        ("sw_model/x.py", "import torch"),
        ("hw/x.py", "from sim import engines"),
        ("hw/x.py", "from driver.link import Link"),
        ("driver/x.py", "from sim import engines"),
        ("sim/x.py", "import numpy, expertile.cli"),
    ],
)
def test_a_wrong_arrow_is_seen(place, source):
    assert against(ROOT / place, source)


def test_files_stay_readable():
    long = {str(p.relative_to(ROOT)): n for p in FILES if (n := len(p.read_text().splitlines())) > 400}
    assert not long, "over 400 lines: is each still one thing?"
