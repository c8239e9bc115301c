"""Decoders whose MoE layers are gated, and governed: under an energy budget, and what that costs in bits."""

from itertools import pairwise
from typing import Any

import numpy as np

from expertile.engines import ModelEngine
from sw_model.checkpoint import Checkpoint
from sw_model.decoder import Decoder
from sw_model.energy.estimate import KEY_BITS, Estimate
from sw_model.energy.governor import NO_CAP
from sw_model.energy.meter import Governor
from sw_model.gate_file import GateFile

__all__ = ["GatedDecoder", "GovernedDecoder"]

SETTLED = 32  # tokens over which the governor keeps the mean
#: The steps of the governor, the first one last: a token's mode is the furthest that one of its layers took.
MODES = (
    ("fewer experts", lambda row: any(cap < NO_CAP for cap in row["cap"])),
    ("high nibble", lambda row: any(row["high_nibble"])),
    ("higher lambda", lambda row: any(row["lambda"])),
    ("sparse attention", lambda row: any(row["attention"])),
    ("all", lambda row: True),
)


class GatedDecoder(Decoder):
    """Tells the engine about its tokens before they come."""

    def __init__(self, checkpoint: Checkpoint, moe: ModelEngine, gate: GateFile) -> None:
        super().__init__(checkpoint, moe)
        self._engine, self._gate = moe, gate

    def forward(self, token_ids: Any) -> Any:
        self._engine.side = self._gate.side_band(token_ids)
        return super().forward(token_ids)


class GovernedDecoder(GatedDecoder):
    """A decoder under an energy budget, from its token ``begin`` on. Each MoE layer has a governor and an
    equal share of the budget, from which attention is paid too: that of a layer, and of layers without
    experts before it, and each asks for the level of sparse attention in them.

    Parameters
    ----------
    energy : a layer's share of the budget

    Attributes
    ----------
    trace : list of dict
        For every token that came alone: nJ by the estimate, all layers together; the credit (nJ, negative:
        owed); the settings that it ran under, a list with an entry a layer each: what was added to lambda,
        the cap, the level of sparse attention, whether high nibbles alone were read; experts run.
    """

    def __init__(
        self, checkpoint: Checkpoint, moe: ModelEngine, gate: GateFile, energy: Estimate, begin: int
    ) -> None:
        self._read: list[list[int]] = []  # the tokens, a list for each time that the sequence was forgotten
        super().__init__(checkpoint, moe, gate)
        self._moe = self._charged
        self._energy, self._begin = energy, begin
        self._governors: dict[int, Governor] = {}
        layers = checkpoint.moe_layers
        self._owner = [next((m for m in layers if m >= n), layers[0]) for n in range(self.shape.layers)]
        self._reads = dict.fromkeys(layers, 0)  # of keys and values, not charged yet
        self.trace: list[dict[str, Any]] = []
        self._logits: list[tuple[int, int, np.ndarray]] = []  # of trace: place in _read, and what came out

    def reset(self) -> None:
        super().reset()
        self._read.append([])

    def forward(self, token_ids: Any) -> Any:
        alone, engine = len(token_ids) == 1, self._engine
        if alone and len(self.trace) == self._begin and not self._governors:
            self._governors = engine.govern()
        states = [g.state for g in self._governors.values()]
        engine.work = None
        logits = super().forward(token_ids)
        self._read[-1].extend(token_ids)
        if alone and engine.work is not None:
            self._logits.append((len(self._read) - 1, len(self._read[-1]) - 1, logits[0]))
            bits = KEY_BITS * self.shape.head_dim * int(self.attention_reads.sum())
            unit = self._energy.unit / 1000
            self.trace.append(
                {
                    "position": self.position,
                    "nj": (self._energy.of(engine.work) + self._energy.keys(bits)) * unit,
                    "credit_nj": sum(int(s.credit) for s in states) * unit,
                    "lambda": [int(s.lam) / 256 for s in states],
                    "cap": [int(s.cap) for s in states],
                    "attention": [int(s.mode) for s in states],
                    "high_nibble": [int(s.high) for s in states],
                    "experts": int(engine.work.experts_used),
                }
            )
        return logits

    def _attention(self, layer: Any, *args: Any) -> Any:
        owner = self._owner[self._layers.index(layer)]
        governor = self._governors.get(owner)
        self.sparse_attention = 0 if governor is None else int(governor.state.mode)
        before = int(self.attention_reads.sum())
        out = super()._attention(layer, *args)
        self._reads[owner] += int(self.attention_reads.sum()) - before
        return out

    def _charged(self, n: int, x: np.ndarray) -> np.ndarray:
        """The experts of layer ``n``, told what attention has read."""
        bits = KEY_BITS * self.shape.head_dim * self._reads[n]
        self._reads[n] = 0
        if n in self._governors:
            self._governors[n].outside(self._energy.keys(bits // len(x)))
        return self._engine(n, x)

    def figures(self) -> dict[str, Any]:
        """Means before the budget began and after, whether it was kept (the mean of the last 32 tokens is at
        most 5 % above it; None: there are fewer), and where the level of attention changed."""
        before, after = self.trace[: self._begin], self.trace[self._begin :]

        def mean(rows: list[dict[str, Any]], key: str) -> float | None:
            return sum(row[key] for row in rows) / len(rows) if rows else None

        moved = [
            f"{sum(a)}>{sum(b)} at token {n}"
            for n, (a, b) in enumerate(pairwise(row["attention"] for row in self.trace), start=1)
            if sum(a) != sum(b)
        ]
        budget = len(self._reads) * self._energy.budget * self._energy.unit / 1000
        settled = mean(after[-SETTLED:], "nj") if len(after) >= SETTLED else None
        return {
            "budget_nj": budget,
            "budget_from": self._begin,
            "nj_before": mean(before, "nj"),
            "nj_after": mean(after, "nj"),
            "kept": None if settled is None else settled <= 1.05 * budget,
            "experts_before": mean(before, "experts"),
            "experts_after": mean(after, "experts"),
            "attention": moved,
        }

    def modes(self, free: Decoder) -> list[dict[str, Any]]:
        """What each mode of the governor cost and saved.

        With p the next byte's distribution by ``free``, which reads the same text, and q the governed
        model's, bits_per_byte is the mean of -sum p log2 q, and more_bits that of sum p log2 (p / q): what
        the mode costs a text of the free model's.

        Parameters
        ----------
        free : the same model with no budget

        Returns
        -------
        For each mode that occurred, from all the work to the least: mode, tokens, nj, experts, bits_per_byte,
        more_bits.
        """
        logits = []
        for ids in self._read:
            free.reset()
            logits.append(free.forward(ids) if ids else np.zeros((0, free.shape.vocabulary), np.float32))
        found: dict[str, list[tuple[float, ...]]] = {name: [] for name, _ in reversed(MODES)}
        for row, (segment, place, governed) in zip(self.trace, self._logits, strict=True):
            p, q = _log2_softmax(logits[segment][place]), _log2_softmax(governed)
            cross, entropy = -(np.exp2(p) @ q), -(np.exp2(p) @ p)
            mode = next(name for name, taken in MODES if taken(row))
            found[mode].append((row["nj"], row["experts"], cross, cross - entropy))
        keys = ("nj", "experts", "bits_per_byte", "more_bits")
        return [
            {"mode": mode, "tokens": len(rows)}
            | dict(zip(keys, map(float, np.mean(rows, axis=0)), strict=True))
            for mode, rows in found.items()
            if rows
        ]


def _log2_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64) / np.log(2)
    return x - np.logaddexp2.reduce(x)
