"""The governor's promises, over 1,000 random budget traces side by side."""

from dataclasses import dataclass

import numpy as np
import pytest

from sw_model.energy import governor
from sw_model.energy.governor import LEAST_BUDGET, MODES, registers, start, step
from sw_model.errors import ExpertileError

TRACES, STEPS, LENGTH, WINDOW = 1000, 5, 96, 32
UNIT = 100_000  # energy of an average token with everything on
SAVES = np.array([1.0, 0.55, 0.35, 0.2])  # attention, by mode


@dataclass(frozen=True, kw_only=True)
class Plants:
    """Many machines: energy of what is always there, of an expert (two a token) and of full attention; what
    experts and 70 % of the first take where high nibbles alone are read."""

    base: np.ndarray
    expert: np.ndarray
    attention: np.ndarray
    high: np.ndarray

    @classmethod
    def random(cls, rng: np.random.Generator) -> "Plants":
        attention, base = rng.uniform(0.05, 0.3, TRACES), rng.uniform(0.3, 0.6, TRACES)
        base *= 1 - attention
        high = rng.choice([1.0, 0.7, 0.55], TRACES)
        return cls(base=base, expert=(1 - base - attention) / 2, attention=attention, high=high)

    def budgets(self, rng: np.random.Generator) -> np.ndarray:
        """[steps, traces], from a little over the least that is possible to more than is ever used."""
        everything = self.base + 2 * self.expert + self.attention
        least = np.maximum(1.08 * (self.base * self._read(1) + SAVES[-1] * self.attention), 2 * self.expert)
        least, most = np.maximum(least, everything / 2.5), 1.2 * everything
        return (UNIT * (least + (most - least) * rng.random((STEPS, TRACES)))).astype(np.int64)

    def _read(self, high: np.ndarray | int) -> np.ndarray:
        """Share of what is always there that is left."""
        return 1 - 0.7 * (1 - self.high) * high

    def token(self, rng: np.random.Generator, s: governor.State) -> tuple[np.ndarray, np.ndarray]:
        """Energy of the next token under the governor's settings, and what it would be without."""
        worth = 256 * np.stack([rng.normal(-0.6, 0.4, TRACES), rng.normal(-2.2, 1.0, TRACES)])
        stay = (worth - s.lam >= -6 * 256) & (np.array([[1], [2]]) <= s.cap)
        noise = rng.normal(1, 0.03, TRACES)
        free = self.base + 2 * self.expert + self.attention * noise
        expert = self.expert * np.where(s.high, self.high, 1)
        spent = self.base * self._read(s.high) + stay.sum(axis=0) * expert
        spent = spent + SAVES[s.mode] * self.attention * noise
        return (UNIT * spent).astype(np.int64), UNIT * free


def run(seed: int) -> tuple[np.ndarray, ...]:
    """Energy, what it would be with everything on, budget, and mode, all [tokens, traces]."""
    rng = np.random.default_rng(seed)
    plants = Plants.random(rng)
    told: list[tuple[np.ndarray, ...]] = []
    for budget in plants.budgets(rng):
        r = registers(budget)
        s = start(r)
        for _ in range(LENGTH):
            spent, free = plants.token(rng, s)
            told.append((spent, free, budget, s.mode))
            s = step(s, r, spent)
    return tuple(np.array(part) for part in zip(*told, strict=True))


@pytest.mark.parametrize("seed", range(2))
def test_the_mean_settles_within_5_percent_in_32_tokens_without_hunting(seed: int) -> None:
    spent, free, budget, mode = run(seed)
    assert spent.shape == (STEPS * LENGTH, TRACES)  # one token in, one out, in order

    def means(energy: np.ndarray) -> np.ndarray:
        """Of 32 tokens, [windows, traces]; window i begins with token i."""
        sums = np.cumsum(np.pad(energy, ((1, 0), (0, 0))), axis=0)
        return (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW

    limited = 0
    for first in range(0, STEPS * LENGTH, LENGTH):
        windows = slice(first, first + LENGTH - WINDOW + 1)  # from the step on, up to the next
        asked = means(free)[windows]
        target = np.minimum(budget[first], asked)  # a budget above what is asked for is not used up
        off = means(spent)[windows] / target - 1
        assert off.max() <= 0.05
        assert off.min() >= -0.05
        limited += int((budget[first] < asked[0]).sum())
        sides = np.sign(np.where(np.abs(off) > 0.05, off, 0))
        assert not (np.abs(np.diff(sides, axis=0)) > 1).any()
        moves = np.diff(mode[first : first + LENGTH].astype(int), axis=0)
        for trace in moves.T:
            way = np.sign(trace[trace != 0])
            assert (way[1:] != way[:-1]).sum() <= 1  # one reversal
    assert limited > STEPS * TRACES // 2  # most budgets did bind
    assert set(np.unique(mode)) == set(range(MODES))


def test_without_the_governor_the_budget_is_broken() -> None:
    """The same plants with everything on: the property above is not free."""
    rng = np.random.default_rng(0)
    plants = Plants.random(rng)
    budgets = plants.budgets(rng)
    open_state = start(registers(budgets[0]))
    spent = np.mean([plants.token(rng, open_state)[0] for _ in range(WINDOW)], axis=0)
    assert (spent > 1.05 * budgets).mean() > 0.5


def test_steps_by_hand() -> None:
    r = registers(4096)
    assert (int(r.budget), int(r.shift)) == (4096, 1)
    s = start(r)
    seen = []
    for energy in (4096, 5120, 5120, 5120, 5120, 4096, 5120, 3072, 1023, 0, 0, 0):
        s = step(s, r, np.asarray(energy))
        seen.append(tuple(int(v) for v in (s.credit, s.lam, s.cap, s.mode, s.high, s.rest, s.turned)))
    assert seen == [
        (0, 0, 255, 0, 0, 0, 0),
        (-1024, 0, 255, 1, 0, 1, 0),  # b / 4 owed: the mode goes up
        (-2048, 512, 255, 1, 0, 0, 0),  # and rests, and lambda begins; b / 2: high nibbles, after the next
        (-3072, 1024, 1, 2, 1, 1, 0),  # 3/4 b: one expert a token
        (-4096, 1536, 0, 2, 1, 0, 0),  # b: none
        (-4096, 1536, 0, 3, 1, 1, 0),
        (-5120, 2048, 0, 3, 1, 0, 0),
        (-4096, 1536, 0, 3, 1, 0, 0),
        (-1023, 0, 255, 3, 1, 0, 0),  # below all of their ends
        (1024, 0, 255, 2, 0, 1, 1),  # b / 4 saved: back, which is the one turn
        (1024, 0, 255, 2, 0, 0, 1),
        (1024, 0, 255, 1, 0, 1, 1),
    ]
    for energy in [9000] * 20:
        s = step(s, r, np.asarray(energy))
    assert (int(s.mode), int(s.credit), int(s.cap)) == (1, -8 * 4096, 0)  # it has turned once already
    for owed, cap in ((3 * 4096 // 4, 0), (3 * 4096 // 4 - 1, 1), (2048, 1), (2047, 255), (2048, 255)):
        s = step(s, r, 4096 + s.credit + owed)
        assert (int(-s.credit), int(s.cap)) == (owed, cap)


def test_modes_rest_between_steps_and_stop_at_the_last() -> None:
    r = registers(5000, last_mode=2)
    s, modes = start(r), []
    for _ in range(12):
        s = step(s, r, np.asarray(20_000))
        modes.append(int(s.mode))
    assert modes == [1] * 2 + [2] * 10


@pytest.mark.parametrize("budget", [LEAST_BUDGET - 1, 1 << 24])
def test_budgets_out_of_range(budget: int) -> None:
    with pytest.raises(ExpertileError, match="from 4096 to 16777215"):
        registers(budget)
    registers(np.array([LEAST_BUDGET, (1 << 24) - 1]))
