"""Files of a checkpoint: JSON that is checked, safetensors headers, and the bytes of one tensor at a time.

A tensor is read by its byte range, so that a layer of a checkpoint of any size costs that layer's bytes. The
safetensors library checks each header (offsets without hole or overlap, sizes, the end of the file); names
given twice pass it unseen, so they are looked for here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from sw_model.errors import ExpertileError

__all__ = ["INDEX", "WHOLE", "Entry", "Store", "one_line", "read_json"]

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MOST_JSON_BYTES = 1 << 28  # the index of the largest public MoE is 9 MB
_PREFIX = "model."
_MOST_NAME_BYTES = 255  # of a file, on the systems we know

#: What an element of each dtype is read as; BF16 and F8_E4M3 are decoded by whoever asked.
_RAW = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "U8": "u1"}


def one_line(error: object) -> str:
    """An error of another library, short and on one line."""
    return " ".join(str(error).split())[:160]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where a tensor lies: dtype as safetensors names it, and the first byte in ``path``."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def need(self, shape: tuple[int, ...], dtypes: Iterable[str]) -> None:
        """Raise :class:`ExpertileError` unless this is what ``config.json`` promises."""
        if self.shape != shape:
            raise ExpertileError(
                f"{self.path}: tensor {self.name} has shape {list(self.shape)}: "
                f"config.json makes it {list(shape)}"
            )
        if self.dtype not in dtypes:
            raise ExpertileError(
                f"{self.path}: tensor {self.name} is {self.dtype}: {', '.join(dtypes)} can be read here"
            )

    def damaged(self, what: str) -> ExpertileError:
        """The error for a tensor that holds what it must not."""
        return ExpertileError(f"{self.path}: tensor {self.name} holds {what}: the checkpoint is damaged")


class Store:
    """All tensors of a folder by name; a file is opened when one of its tensors is first asked for.

    A bare decoder, saved without its head, lacks the "model." that names begin with elsewhere: it is found
    under either spelling.

    Raises :class:`ExpertileError` if the folder has neither the one file nor an index, or a bad one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._headers: dict[str, dict[str, Entry]] = {}
        if (folder / WHOLE).exists():
            self._files = dict.fromkeys(self._header(WHOLE), WHOLE)
        elif (folder / INDEX).exists():
            self._files = _weight_map(folder / INDEX)
        else:
            raise ExpertileError(f"{folder}: neither {WHOLE} nor {INDEX} is here: is the download complete?")
        self._bare = not any(name.startswith(_PREFIX) for name in self._files)

    def __contains__(self, name: str) -> bool:
        return self._stored(name) in self._files

    def entry(self, name: str) -> Entry:
        """Tensor ``name``; raises :class:`ExpertileError` if it is missing or its file is bad."""
        name = self._stored(name)
        if name not in self._files:
            raise ExpertileError(f"{self.folder}: tensor {name} is missing: a layer of this family has one")
        file = self._files[name]
        if name not in self._header(file):
            raise ExpertileError(f"{self.folder / file}: tensor {name} is missing: {INDEX} places it here")
        return self._header(file)[name]

    def read(self, entry: Entry, part: int | None = None) -> np.ndarray:
        """The tensor's elements as they are stored, or those of index ``part`` on its first axis alone."""
        raw = np.dtype(_RAW[entry.dtype])
        shape = entry.shape if part is None else entry.shape[1:]
        count = math.prod(shape)
        offset = entry.offset + (part or 0) * count * raw.itemsize
        try:
            value = np.fromfile(entry.path, dtype=raw, count=count, offset=offset)
        except OSError as error:
            reason = error.strerror or error
            raise ExpertileError(
                f"{entry.path}: tensor {entry.name} cannot be read ({one_line(reason)})"
            ) from error
        except MemoryError:
            raise ExpertileError(
                f"{entry.path}: tensor {entry.name} of shape {list(entry.shape)} does not fit into memory"
            ) from None
        if value.size != count:
            raise ExpertileError(f"{entry.path}: tensor {entry.name} ends early: fetch the file anew")
        return value.reshape(shape)

    def _stored(self, name: str) -> str:
        return name.removeprefix(_PREFIX) if self._bare else name

    def _header(self, file: str) -> dict[str, Entry]:
        if file not in self._headers:
            self._headers[file] = _read_header(self.folder / file)
        return self._headers[file]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises
    ------
    ExpertileError
        No such file, one too large to be true, not JSON, not an object, or a key given twice.
    """
    try:
        if not path.is_file():
            raise ExpertileError(f"{path}: no such file: --checkpoint takes a Hugging Face folder")
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise ExpertileError(f"{path}: larger than {_MOST_JSON_BYTES} bytes: this is no such file")
        return _parse(path, path.read_bytes())
    except OSError as error:
        raise ExpertileError(f"{path}: cannot be read ({error.strerror})") from error


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(items)
        if len(value) != len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ExpertileError(f"{path}: key {twice[:80]!r} is given twice: which one holds?")
        return value

    try:
        value = json.loads(text.decode(), object_pairs_hook=pairs)
    except ExpertileError:
        raise
    except (ValueError, RecursionError) as error:
        raise ExpertileError(f"{path}: not JSON ({one_line(error)})") from error
    if not isinstance(value, dict):
        raise ExpertileError(f"{path}: not a JSON object")
    return value


def _read_header(path: Path) -> dict[str, Entry]:
    try:
        if not path.is_file():
            raise ExpertileError(f"{path}: no such file: is the download complete?")
        with safe_open(path, framework="numpy"):  # checks the header, and the size of the file against it
            pass
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = _parse(path, file.read(size))
    except (SafetensorError, OSError) as error:
        raise ExpertileError(
            f"{path}: no whole safetensors file ({one_line(error)}): fetch it anew"
        ) from None
    header.pop("__metadata__", None)
    return {
        name: Entry(
            name=name,
            path=path,
            dtype=fields["dtype"],
            shape=tuple(fields["shape"]),
            offset=8 + size + fields["data_offsets"][0],
        )
        for name, fields in header.items()
    }


def _weight_map(path: Path) -> dict[str, str]:
    files = read_json(path).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ExpertileError(f"{path}: weight_map is missing: it maps tensor names to files")
    if not all(isinstance(file, str) for file in files.values()):
        raise ExpertileError(f"{path}: weight_map holds other things than names of files")
    for file in set(files.values()):
        # A file of this folder and nothing else: no folders, no "..", no drive letters.
        plain = Path(file).name == file and not any(c in file for c in "\\:\0")
        if (
            not plain
            or not file.endswith(".safetensors")
            or len(file.encode(errors="replace")) > _MOST_NAME_BYTES
        ):
            raise ExpertileError(f"{path}: {file[:60]!r} does not name a safetensors file of this folder")
    return files
