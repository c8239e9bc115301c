"""The reasoning domain: short problems with every step of the way computed, hence right by construction.

A document is a list of problems of the form

    Q: What is 57 * 88?
    Think: 57*80=4560. 57*8=456. 4560+456=5016.
    A: 5016
"""

import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

__all__ = ["Problem", "documents"]

_PEOPLE = (
    "Ada",
    "Bo",
    "Carl",
    "Dina",
    "Ed",
    "Fay",
    "Gus",
    "Hana",
    "Ian",
    "June",
    "Karl",
    "Lena",
    "Max",
    "Nora",
    "Otto",
    "Pam",
    "Ralf",
    "Sara",
    "Tim",
    "Vera",
)
_THINGS = ("apples", "books", "coins", "cups", "keys", "nails", "pens", "shells", "stamps", "tickets")


class Problem(NamedTuple):
    """A question, the steps that solve it, and the answer."""

    question: str
    steps: list[str]
    answer: str

    def __str__(self) -> str:
        return f"Q: {self.question}\nThink: {' '.join(self.steps)}\nA: {self.answer}"


def _addition(rng: random.Random) -> Problem:
    a, b = rng.randrange(10, 10_000), rng.randrange(10, 10_000)
    steps, carry, x, y = [], 0, a, b
    while x or y:
        total = x % 10 + y % 10 + carry
        steps.append(f"{x % 10}+{y % 10}+{carry}={total}, write {total % 10}, carry {total // 10}.")
        carry, x, y = total // 10, x // 10, y // 10
    return Problem(f"What is {a} + {b}?", steps, str(a + b))


def _product(rng: random.Random) -> Problem:
    a, b = rng.randrange(12, 100), rng.randrange(12, 100)
    tens, ones = b - b % 10, b % 10
    steps = [f"{a}*{tens}={a * tens}.", f"{a}*{ones}={a * ones}.", f"{a * tens}+{a * ones}={a * b}."]
    return Problem(f"What is {a} * {b}?", steps, str(a * b))


def _remainder(rng: random.Random) -> Problem:
    a, m = rng.randrange(20, 1000), rng.randrange(3, 14)
    q = a // m
    return Problem(
        f"What is {a} mod {m}?",
        [f"{a} // {m} = {q}.", f"{q}*{m}={q * m}.", f"{a}-{q * m}={a % m}."],
        str(a % m),
    )


def _sum_of_terms(rng: random.Random) -> Problem:
    value = rng.randrange(1, 40)
    question, steps = str(value), []
    for _ in range(rng.randrange(2, 6)):
        sign, term = rng.choice("+-"), rng.randrange(1, 40)
        after = value + term if sign == "+" else value - term
        question += f" {sign} {term}"
        steps.append(f"{value}{sign}{term}={after}.")
        value = after
    return Problem(f"Compute {question}.", steps, str(value))


def _linear(rng: random.Random) -> Problem:
    x, a, b = rng.randrange(-12, 13), rng.randrange(2, 10), rng.randrange(1, 30)
    c = a * x + b
    return Problem(
        f"Solve {a}x + {b} = {c}.", [f"{a}x = {c} - {b} = {c - b}.", f"x = {c - b}/{a} = {x}."], str(x)
    )


def _story(rng: random.Random) -> Problem:
    who, what, have = rng.choice(_PEOPLE), rng.choice(_THINGS), rng.randrange(5, 60)
    told, steps = [f"{who} has {have} {what}."], []
    for _ in range(rng.randrange(2, 5)):
        other, count = rng.choice([p for p in _PEOPLE if p != who]), rng.randrange(2, 30)
        if count <= have and rng.random() < 0.5:
            told.append(f"{who} gives {count} to {other}.")
            steps.append(f"{have}-{count}={have - count}.")
            have -= count
        else:
            told.append(f"{other} gives {who} {count} more.")
            steps.append(f"{have}+{count}={have + count}.")
            have += count
    return Problem(f"{' '.join(told)} How many {what} does {who} have?", steps, str(have))


def _tallest(rng: random.Random) -> Problem:
    people = rng.sample(_PEOPLE, rng.randrange(3, 6))
    facts = [f"{a} is taller than {b}." for a, b in pairwise(people)]
    shown = rng.sample(facts, len(facts))
    return Problem(f"{' '.join(shown)} Who is tallest?", [*facts, f"Order: {' > '.join(people)}."], people[0])


_KINDS: tuple[Callable[[random.Random], Problem], ...] = (
    _addition,
    _product,
    _remainder,
    _sum_of_terms,
    _linear,
    _story,
    _tallest,
)


def documents(count: int, *, seed: int, problems: int = 24) -> Iterator[str]:
    """`count` documents of `problems` problems each; no question is asked twice in the whole set."""
    rng, seen = random.Random(seed), set()
    for _ in range(count):
        chosen = []
        while len(chosen) < problems:
            problem = rng.choice(_KINDS)(rng)
            if problem.question not in seen:
                seen.add(problem.question)
                chosen.append(str(problem))
        yield "\n\n".join(chosen) + "\n"
