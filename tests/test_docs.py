"""The documents say what is there: files of the diagram, options of the commands, targets of the Makefile."""

import re
import runpy
from pathlib import Path

import typer

from expertile.cli import app

ROOT = Path(__file__).parent.parent


def test_every_block_of_the_diagram_is_a_file():
    text = (ROOT / "docs" / "diagram.py").read_text()
    paths = set(re.findall(r"\b(?:hw|sim|sw_model)/[\w/]*(?:\.py)?", text))
    assert len(paths) > 12
    assert not {path for path in paths if not (ROOT / path).exists()}


def test_the_diagram_is_drawn_by_its_script(tmp_path):
    draw = runpy.run_path(str(ROOT / "docs" / "diagram.py"))["draw"]
    draw(tmp_path / "diagram.svg")
    assert (tmp_path / "diagram.svg").read_text() == (ROOT / "docs" / "diagram.svg").read_text()


def test_every_option_is_documented():
    text = (ROOT / "docs" / "cli.md").read_text()
    _, *sections = re.split(r"^## expertile ", text, flags=re.MULTILINE)
    documented = {section.split("\n", 1)[0]: section for section in sections}
    commands = typer.main.get_command(app).commands
    assert documented.keys() == commands.keys()
    for name, command in commands.items():
        for option in command.params:
            assert any(spelling in documented[name] for spelling in option.opts), (name, option.opts)


def test_make_targets_named_in_the_readme_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|    )make ([a-z-]+)", (ROOT / "README.md").read_text())) <= targets
