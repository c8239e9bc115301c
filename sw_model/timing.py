"""Cycles of a stream of tokens, pass by pass: the cost model, which measured cycles must bear out.

A pass is a queue of row slots: the array works on one after the other, L cycles each; the drain gives out a
finished slot's rows, ``drain`` a cycle, D beats; at most ``SLOTS`` slots are begun and not given out:

    begin_s = max(begin_{s-1} + L, out_{s-SLOTS})      out_s = max(begin_s + L + latency, out_{s-1}) + D

Around the array: elements of x enter one a cycle, and of y leave; a token's passes wait for its quantised x,
for its route, and for its quantised h (:mod:`hw.pe.scheduler`). Not for body "lut", which works in chunks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sw_model.config import HardwareConfig
from sw_model.formats import BLOCK, QuantisedMatrix
from sw_model.quantised import QuantisedLayer
from sw_model.topology import choose_split, slot_beats, slot_cycles

__all__ = ["Line", "Pass", "stream_cycles"]

SLOTS = 16  # of the drain's store


@dataclass(frozen=True)
class Pass:
    """Of a matrix on an array: cycles of a row slot, and the beats of each."""

    cycles: int
    beats: tuple[int, ...]

    @staticmethod
    def of(m: QuantisedMatrix, config: HardwareConfig, split: int | None, high: bool = False) -> Pass:
        """``split``: None for the compiler's; ``high``: of INT8 the high nibble alone."""
        if split is None:
            split = choose_split(m.rows, m.blocks, config.tiles, config.columns)
        return Pass(
            slot_cycles(m.blocks, m.fmt, split, config.step_cycles, high),
            slot_beats(m.rows, config.tiles, split, config.drain),
        )


class Line:
    """The array and its drain, passes one after the other.

    latency : cycles from a slot's last step to its first rows at the drain
    free, out : the array has read its last activations; the last beat has left
    """

    def __init__(self, latency: int) -> None:
        self._latency = latency
        self._freed = deque([0] * SLOTS, maxlen=SLOTS)
        self.free = self.out = 0

    def run(self, p: Pass, ready: int) -> int:
        """Run ``p``, which may not start before ``ready``; when its first beat leaves."""
        begin, first = max(self.free, ready), 0
        for beats in p.beats:
            begin = max(begin, self._freed[0])
            start = max(begin + p.cycles + self._latency, self.out)
            first = first or start
            self.out = start + beats
            self._freed.append(self.out)
            begin += p.cycles
        self.free = begin
        return first


# Cycles of the stages that a token passes.
_ARRAY = 11  # from a slot's last step to its rows at the drain, less the reduction's
_QUANTISE = 12  # from the last element of a vector to the first of its codes; passes start 3 later
_ROUTE = 8  # from the last router row to the route, 3 / 2 for each expert, 20 for each that is chosen
_ACTIVATE = 24  # from a row at the drain to its h
_COMBINE = 14  # from a row at the drain to y


def stream_cycles(
    layer: QuantisedLayer, config: HardwareConfig, chosen: Sequence[np.ndarray], split: int | None = None
) -> int:
    """Cycles from the first element of x to the last of y, tokens back to back, all experts on chip, no gate.

    chosen : of each token the routed experts that run; ``split``: as :func:`sw_model.compiler.compile` has it
    """
    hidden, lanes = layer.hidden, config.drain
    line = Line(_ARRAY + config.columns.bit_length() - 1)

    def cost(m: QuantisedMatrix) -> Pass:
        return Pass.of(m, config, split, layer.high_nibble and m is not layer.router)

    router = cost(layer.router)
    ups = [cost(e.gate_up) for e in layer.everyone]
    downs = [cost(e.down) for e in layer.everyone]
    h_blocks = [e.down.blocks for e in layer.everyone]
    fill = [-e.intermediate % BLOCK // max(1, lanes // 2) for e in layer.everyone]  # zeros to a whole block
    base = [len(layer.experts)] if layer.shared is not None else []

    x_blocks = -(-hidden // BLOCK) + layer.x_biased
    quantise = _QUANTISE + x_blocks * BLOCK // lanes
    entered = 0
    ready: list[int] = []  # x is quantised
    released = [0, 0]  # its bank is free again
    routed = based = 0  # the next token's route is known; the base expert's h is collected

    def enter(t: int) -> None:
        nonlocal entered
        entered = max(entered, (ready[t - 1] - quantise) if t else 0) + hidden
        ready.append(max(entered, released[t % 2]) + quantise)

    def begin(t: int, at: int) -> None:
        """Router and base gate_up of token t."""
        nonlocal routed, based
        line.run(router, max(at, ready[t] + 3))
        routed = line.out + _ROUTE + 3 * len(layer.experts) // 2 + 20 * layer.rule.top_k
        for e in base:
            line.run(ups[e], 0)
            based = line.out + _ACTIVATE + fill[e]

    y_out, ahead = 0, False
    enter(0)
    for t, experts in enumerate(chosen):
        if not ahead:
            begin(t, 0)
        at = routed
        mine = [*base, *experts]
        collected = based
        for e in experts:
            line.run(ups[e], at)
            collected = max(collected, line.out + _ACTIVATE) + fill[e]
        released[t % 2] = line.free
        if t + 1 < len(chosen):
            enter(t + 1)
        h = collected + _QUANTISE
        first_h = h + h_blocks[mine[0]] * BLOCK // lanes
        ahead = t + 1 < len(chosen) and ready[t + 1] <= first_h
        if ahead:
            begin(t + 1, line.free)
        there = h
        for e in mine:
            there += h_blocks[e] * BLOCK // lanes
            start = line.run(downs[e], there + 3)
        y_out = max(max(y_out, start + _COMBINE) + hidden, line.out + _COMBINE + lanes)
        line.out = max(line.out, y_out - config.max_hidden)
    return y_out
