"""The energy table: what one action costs, in pJ, with the technology and the source of every number.

``table.json`` holds rows and sets. A row is one action of one component in one technology, ``pJ`` for
``bits`` bits where it is a memory. A set is a technology that is complete in itself: memories of one
technology, logic of one technology, both of one node, and the DRAM that it is compared with, which is a chip
of its own. Numbers of two sets never meet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sw_model.errors import ExpertileError

__all__ = ["Memory", "Row", "Technology", "check", "rows", "technologies", "technology"]

_PATH = Path(__file__).with_name("table.json")
_LEAST_SOURCE = 12  # characters: an author, a venue, a year


@dataclass(frozen=True, kw_only=True)
class Row:
    """One action: pJ an access of ``bits`` bits, or an operation (``bits`` 0); node_nm None: a DRAM chip."""

    id: str
    component: str
    action: str
    technology: str
    node_nm: int | None
    pJ: float
    source: str
    bits: int = 0
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """pJ a bit, read and written; a source that tells reads alone stands for both."""

    read: float
    write: float


@dataclass(frozen=True, kw_only=True)
class Technology:
    """One complete set.

    dram : pJ a bit read
    sram, macro : large memories, and memories that multiply where they store, by size; ``*_default`` of them
    buffer : activations; sums : a row's running sum by place, None: it lives in ``registers``
    product : pJ of a 4 x 4 bit product in the macro; registers : of clocking its registers, 0 where the
        source does not tell it apart from ``product``
    plain : pJ of an 8 x 4 bit product outside a macro; twice ``product`` where none is published
    used : the rows that it is made of
    """

    name: str
    title: str
    dram: float
    sram: Mapping[str, Memory]
    sram_default: str
    macro: Mapping[str, Memory]
    macro_default: str
    buffer: Memory
    sums: Mapping[str, Memory | None]
    product: float
    registers: float
    plain: float
    used: tuple[Row, ...]


@cache
def _file() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(_PATH.read_text())
    return data


def rows(data: Mapping[str, Any] | None = None) -> dict[str, Row]:
    """All rows by id.

    Raises
    ------
    ExpertileError : a row without a source, technology or component, with an energy that is not positive, or
        with an id that another has
    """
    found: dict[str, Row] = {}
    for entry in (data or _file())["rows"]:
        name = entry.get("id", "?")
        for key in ("id", "component", "action", "technology", "source"):
            value = entry.get(key)
            if not isinstance(value, str) or not value.strip():
                raise ExpertileError(f"energy table: row {name!r} has no {key}")
        if len(entry["source"]) < _LEAST_SOURCE or entry["source"].strip().lower().startswith("same"):
            raise ExpertileError(f"energy table: row {name!r}: a source {entry['source']!r} finds nobody")
        if not isinstance(entry.get("pJ"), int | float) or not entry["pJ"] > 0:
            raise ExpertileError(f"energy table: row {name!r}: pJ must be positive")
        if name in found:
            raise ExpertileError(f"energy table: two rows are called {name!r}")
        found[name] = Row(**entry)
    return found


def _named(entry: Any) -> Iterator[str]:
    """Ids of rows in a part of a set."""
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, Mapping):
        for value in entry.values():
            yield from _named(value)


_MEMORIES, _LOGIC = ("sram", "macro", "buffer", "sums"), ("product", "registers", "plain")


def check(name: str, entry: Mapping[str, Any], known: Mapping[str, Row]) -> tuple[Row, ...]:
    """The rows of a set.

    Raises
    ------
    ExpertileError : a row that is not there, memories or logic of two technologies, another node, or an
        on-chip part where the DRAM belongs
    """
    ids = {part: [i for i in _named(entry[part])] for part in (*_MEMORIES, *_LOGIC, "dram")}
    for part, named in ids.items():
        for i in named:
            if i not in known:
                raise ExpertileError(f"energy table: set {name!r}: {part} names no row: {i!r}")
    for parts in (_MEMORIES, _LOGIC):
        of = [known[i] for part in parts for i in ids[part]]
        labels = sorted({row.technology for row in of})
        if len(labels) > 1:
            raise ExpertileError(f"energy table: set {name!r} mixes {labels[0]!r} and {labels[1]!r}")
        if {row.node_nm for row in of} != {entry["node_nm"]}:
            raise ExpertileError(f"energy table: set {name!r} is {entry['node_nm']} nm, not all of its rows")
    for i in ids["dram"]:
        if known[i].node_nm is not None:
            raise ExpertileError(f"energy table: set {name!r}: {i!r} is no DRAM")
    return tuple(known[i] for i in dict.fromkeys(i for named in ids.values() for i in named))


def _technology(name: str, entry: Mapping[str, Any], known: Mapping[str, Row]) -> Technology:
    def bit(i: str) -> float:
        return known[i].pJ / known[i].bits

    def memory(spec: Mapping[str, str]) -> Memory:
        return Memory(read=bit(spec["read"]), write=bit(spec["write"]))

    used = check(name, entry, known)
    product, registers, plain = (known[entry[k]].pJ if entry[k] else 0.0 for k in _LOGIC)
    return Technology(
        name=name,
        title=entry["title"],
        dram=bit(entry["dram"]),
        sram={size: memory(spec) for size, spec in entry["sram"].items()},
        sram_default=entry["sram_default"],
        macro={size: memory(spec) for size, spec in entry["macro"].items()},
        macro_default=entry["macro_default"],
        buffer=memory(entry["buffer"]),
        sums={place: None if spec is None else memory(spec) for place, spec in entry["sums"].items()},
        product=product,
        registers=registers,
        plain=plain or 2 * (product + registers),
        used=used,
    )


@cache
def technologies() -> dict[str, Technology]:
    """All sets by name."""
    known = rows()
    return {name: _technology(name, entry, known) for name, entry in _file()["sets"].items()}


def technology(name: str) -> Technology:
    """A set by name; :class:`ExpertileError` if there is none."""
    if name not in technologies():
        raise ExpertileError(f"technology {name!r}: unknown; choose one of {', '.join(technologies())}")
    return technologies()[name]
