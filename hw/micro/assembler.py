"""Assembler: the text of a program to instructions and the first contents of the data memory.

A line is empty, or one of these, and ``;`` begins a comment.

    .array NAME SIZE        words of data memory, 0 at first; SIZE is an expression
    .var NAME ...           a word each
    .word NAME VALUE        a word, VALUE (an expression) at first
    .scratch REGION NAME .. words that share their places with those of the region's other lines: of
                            routines that do not need them at the same time
    NAME:                   a label; one that begins with a dot belongs to the last one that does not
    op                      an instruction,
    op OPERAND              with the name of an array or variable, ``NAME,x`` (the word X behind it), a
                            port, a label, ``memory,x`` (the word X), or an expression of integers, of the
                            names that were given to the assembler, and of places

An expression becomes an immediate, or, if it does not fit there, a constant in the data memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hw.micro.isa import ADDRESS_BITS, FIRST_PORT, MASK, PROGRAM_BITS, Mode, Op, Port

__all__ = ["Program", "assemble"]


@dataclass(frozen=True)
class Program:
    """code: instructions; data: the data memory as the processor wakes up; labels, places: where names
    are."""

    code: tuple[int, ...]
    data: tuple[int, ...]
    labels: dict[str, int]
    places: dict[str, int]


class _Memory:
    """Places of names and constants in the data memory."""

    def __init__(self, names: Mapping[str, int]) -> None:
        self._names = dict(names)
        self.places: dict[str, int] = {"memory": 0} | {port.name: int(port) for port in Port}
        self._constants: dict[int, int] = {}
        self._first: dict[int, int] = {}  # place -> its first contents
        self._regions: dict[str, list[int]] = {}  # places of each
        self._used = 0

    def value(self, expression: str) -> int:
        try:
            return int(eval(expression, {"__builtins__": {}}, {**self.places, **self._names}))
        except (NameError, SyntaxError) as e:
            raise ValueError(f"{expression!r}: {e}") from None

    def add(self, name: str, size: int, first: int = 0) -> None:
        if name in self.places:
            raise ValueError(f"{name} is there already")
        self.places[name] = at = self._take(size)
        self._first[at] = first & MASK

    def share(self, region: str, names: list[str]) -> None:
        places = self._regions.setdefault(region, [])
        while len(places) < len(names):
            places.append(self._take(1))
        for name, at in zip(names, places, strict=False):
            if name in self.places:
                raise ValueError(f"{name} is there already")
            self.places[name] = at

    def _take(self, size: int) -> int:
        at, self._used = self._used, self._used + size
        if self._used > FIRST_PORT:
            raise ValueError(f"{self._used} words of data, over {FIRST_PORT}")
        return at

    def operand(self, text: str) -> tuple[Mode, int]:
        name, indexed, _ = text.partition(",x")
        if name in self.places:
            return (Mode.INDEXED if indexed else Mode.DIRECT), self.places[name]
        value = self.value(text) & MASK
        if value >> ADDRESS_BITS == 0:
            return Mode.IMMEDIATE, value
        if value not in self._constants:
            self._constants[value] = self._take(1)
        return Mode.DIRECT, self._constants[value]

    def contents(self) -> tuple[int, ...]:
        words = [self._first.get(at, 0) for at in range(self._used)]
        for value, at in self._constants.items():
            words[at] = value
        return tuple(words)


def assemble(texts: Iterable[str], names: Mapping[str, int]) -> Program:
    """The program of some texts, one behind the other; ``names``: of integers, for expressions.

    Raises
    ------
    ValueError : an unknown operation or name, a name that is there twice, or a memory that is full; says
        which line
    """
    memory = _Memory(names)
    lines = [line.partition(";")[0].split() for text in texts for line in text.splitlines()]
    for number, words in enumerate(lines):
        try:
            match words:
                case [".array", name, *size]:
                    memory.add(name, memory.value(" ".join(size)))
                case [".word", name, *value]:
                    memory.add(name, 1, memory.value(" ".join(value)))
                case [".scratch", region, *variables]:
                    memory.share(region, variables)
                case [".var", *variables]:
                    for name in variables:
                        memory.add(name, 1)
        except ValueError as e:
            raise ValueError(f"line {number + 1}: {' '.join(words)}: {e}") from None

    labels: dict[str, int] = {}
    parsed: list[tuple[int, Op, str, str]] = []
    scope = ""
    for number, words in enumerate(lines):
        if not words or words[0] in (".array", ".var", ".word", ".scratch"):
            continue
        if words[0].endswith(":"):
            name = words[0][:-1]
            scope = scope if name.startswith(".") else name
            name = scope + name if name.startswith(".") else name
            if name in labels:
                raise ValueError(f"line {number + 1}: label {name} is there already")
            labels[name] = len(parsed)
            words = words[1:]
        if words:
            if words[0].upper() not in Op.__members__:
                raise ValueError(f"line {number + 1}: {words[0]}: no such operation")
            parsed.append((number, Op[words[0].upper()], " ".join(words[1:]), scope))

    if len(parsed) > 1 << PROGRAM_BITS:
        raise ValueError(f"{len(parsed)} instructions, over {1 << PROGRAM_BITS}")
    code = []
    for number, op, operand, scope in parsed:
        try:
            if op >= Op.JMP:
                target = scope + operand if operand.startswith(".") else operand
                if target not in labels:
                    raise ValueError("no such label")
                code.append(op << PROGRAM_BITS | labels[target])
            else:
                mode, address = memory.operand(operand or "0")
                code.append(op << PROGRAM_BITS | mode << ADDRESS_BITS | address)
        except ValueError as e:
            raise ValueError(f"line {number + 1}: {op.name} {operand}: {e}") from None
    return Program(tuple(code), memory.contents(), labels, memory.places)
