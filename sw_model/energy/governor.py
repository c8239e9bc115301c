"""The governor: keeps the mean energy of a token at a budget, by a token bucket and four kinds of saving.

After every token of energy e, with a budget of b a token (integers of the same unit):

    credit  = clip(credit + b - e, -8 b, b / 4)          d = max(0, -credit), what is owed
    mode    one step up where d >= b / 4, one down where credit = b / 4; never after two tokens running
    lambda  = min(max(0, d - b / 4) >> shift, lambda_max)            added to the gate's, Q7.8
    high    = 1 from d >= b / 2 on until d < b / 4: of INT8 weights the high nibble alone, one token later
    cap     = 1 from d >= 3/4 b on until d < b / 2, 0 from d >= b on until d < 3/4 b, else the gate's own

The mode goes first, since it is for what saves at little loss: it is the level of sparse attention (0 to 3).
lambda then takes experts from the tokens that miss them least, weights lose their low nibbles, and the cap
bounds what one token may cost. The nibbles follow a token late, since a token's first passes are issued
before the one before is through.

What is owed is paid back before anything is allowed again, so the mean over n tokens is off by what is owed
at their end, at most about 1.25 b / n: 4 % of b after 32 tokens. Between two writes of the budget the mode
turns at most once, so it cannot hunt. Writing the budget starts afresh, from nothing owed and mode 0.

The resolution is an expert of one token: the bound holds while no expert costs more than half of the budget,
and no token with everything on more than 2.5 budgets.

All arithmetic is on integers, adds, shifts and compares, as in ``hw/energy/governor.py``; arrays of any shape
are that many governors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sw_model.errors import ExpertileError

__all__ = ["LEAST_BUDGET", "MODES", "NO_CAP", "Registers", "State", "registers", "start", "step"]

MODES = 4
NO_CAP = 255
DEBT_SHIFT, CREDIT_SHIFT = 3, 2  # owed at most b << 3, saved at most b >> 2
BUDGET_BITS = 24
ENERGY_BITS = 28  # of what a token took, saturated: more than any debt that is kept
LEAST_BUDGET = 1 << 12
LAMBDA_BITS = 11  # lambda_max = 8 octaves


@dataclass(frozen=True, kw_only=True)
class Registers:
    """budget : of a token; shift : from what is owed to lambda; lambda_max : most that is added, Q7.8;
    last_mode : the highest mode in use"""

    budget: np.ndarray
    shift: np.ndarray
    lambda_max: int = 1 << LAMBDA_BITS
    last_mode: int = MODES - 1


@dataclass(frozen=True, kw_only=True)
class State:
    """What the next token runs under: cap (255, 1 or 0); lam, what is added to lambda; mode; high. And
    credit; later: high for the token after; rest: the mode has just moved; way: of its last step (+1, -1, 0
    none yet); turned: it has turned once"""

    credit: np.ndarray
    cap: np.ndarray
    lam: np.ndarray
    mode: np.ndarray
    high: np.ndarray
    later: np.ndarray
    rest: np.ndarray
    way: np.ndarray
    turned: np.ndarray


def registers(budget: int | np.ndarray, *, last_mode: int = MODES - 1) -> Registers:
    """For ``budget``, so that lambda is full when 3/4 to 5/4 of it is owed.

    Raises :class:`ExpertileError` for a budget below LEAST_BUDGET or of more than 24 bits.
    """
    b = np.asarray(budget, dtype=np.int64)
    if b.min() < LEAST_BUDGET or b.max() >= 1 << BUDGET_BITS:
        raise ExpertileError(
            f"energy budget {int(b.min())} units: from {LEAST_BUDGET} to {(1 << BUDGET_BITS) - 1} are needed"
        )
    length = np.floor(np.log2(b)).astype(np.int64) + 1
    return Registers(budget=b, shift=length - LAMBDA_BITS - 1, last_mode=last_mode)


def start(r: Registers) -> State:
    """What a write of the budget makes of the state."""
    nothing = np.zeros_like(r.budget)
    return State(
        credit=nothing,
        cap=nothing + NO_CAP,
        lam=nothing,
        mode=nothing,
        high=nothing,
        later=nothing,
        rest=nothing,
        way=nothing,
        turned=nothing,
    )


def step(s: State, r: Registers, energy: np.ndarray) -> State:
    """The state after a token of ``energy``."""
    b = r.budget
    credit = np.clip(s.credit + b - energy, -(b << DEBT_SHIFT), b >> CREDIT_SHIFT)
    owed = np.maximum(-credit, 0)
    half, quarter = b >> 1, b >> 2
    most = half + quarter
    none = (owed >= b) | ((s.cap == 0) & (owed >= most))
    one = (owed >= most) | ((s.cap != NO_CAP) & (owed >= half))
    may_turn = s.turned == 0
    rested = s.rest == 0
    up = rested & (owed >= quarter) & (s.mode < r.last_mode) & ((s.way >= 0) | may_turn)
    down = rested & (credit == b >> CREDIT_SHIFT) & (s.mode > 0) & ((s.way <= 0) | may_turn)
    way = up.astype(np.int64) - down
    turns = (way != 0) & (s.way == -way)
    return replace(
        s,
        credit=credit,
        cap=np.where(none, 0, np.where(one, 1, NO_CAP)),
        lam=np.minimum(np.maximum(owed - quarter, 0) >> r.shift, r.lambda_max),
        mode=s.mode + way,
        high=s.later,
        later=((owed >= half) | ((s.later != 0) & (owed >= quarter))).astype(np.int64),
        rest=np.abs(way),
        way=np.where(way != 0, way, s.way),
        turned=s.turned | turns,
    )
