"""Output files that are whole or not there, and the tables that people read."""

import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table

from sw_model.errors import ExpertileError

__all__ = ["Mismatch", "check_writable", "console", "table", "write_file", "write_json", "write_npy"]


class Mismatch(Exception):
    """An RTL engine and the golden model gave different bits: exit code 1."""


@cache
def console(stderr: bool = False) -> Console:
    """The one console for standard output, and the one for progress and status on standard error."""
    return Console(stderr=stderr, highlight=False)


def check_writable(*paths: Path | None) -> None:
    """Refuse outputs that cannot be written, before hours of work and not after.

    Raises
    ------
    ExpertileError
        A path is a folder, or its folder does not exist or cannot be written to.
    """
    for path in filter(None, paths):
        if path.is_dir():
            raise ExpertileError(f"{path}: is a folder: name a file")
        if not path.parent.is_dir():
            raise ExpertileError(f"{path}: no folder {path.parent}: make it first")
        if not os.access(path.parent, os.W_OK):
            raise ExpertileError(f"{path}: folder {path.parent} is not writable")


def write_file(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in its place: whole, or not at all.

    Raises
    ------
    ExpertileError
        The system refused (disk full, no permission, ...); nothing is left behind.
    """
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with open(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise ExpertileError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if temporary is not None:
            os.unlink(temporary)


def write_npy(path: Path, array: Any) -> None:
    """``array`` as .npy; through memory, because NumPy's own writing to a file hides why it failed."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_file(path, lambda file: file.write(buffer.getbuffer()))


def write_json(path: Path | None, value: Mapping[str, Any]) -> None:
    """``value`` as JSON; no path, no file."""
    if path is not None:
        text = json.dumps(value, indent=2, allow_nan=False) + "\n"
        write_file(path, lambda file: file.write(text.encode()))


def table(title: str, rows: Mapping[str, Any]) -> None:
    """Print names and values; values of None are left out, floats are rounded to be read."""
    grid = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None)
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows.items():
        if value is not None:
            grid.add_row(name, _shown(value))
    console().print(grid)
    sys.stdout.flush()


def _shown(value: Any) -> str:
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:.4g}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.0f}"
    return str(value)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
