"""What each part of the gate is worth: bits per byte against mean experts, levels off in turn, and how much
experts know of domains. All by the golden model, every variant on the same tokens.

A variant changes the calibrated gate, then its thresholds are set anew for its target, layer after layer, on
the calibration text; held-out text goes through the same layers in the same pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sw_model import golden
from sw_model.calibration import Settings, Tokens, set_thresholds
from sw_model.checkpoint import Checkpoint
from sw_model.config import HardwareConfig
from sw_model.gate import Q_MIN, Gate, SideBand
from sw_model.gate_file import GateFile
from sw_model.lockstep import Lockstep, bits
from sw_model.model_gate import Batch
from sw_model.quantised import QuantisedLayer

__all__ = ["ABLATIONS", "Study", "Variant", "mutual_information"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A gate made of the calibrated one. ``change`` acts before the thresholds are set, ``after`` then."""

    name: str
    change: Callable[[Gate], Gate] = lambda gate: gate
    after: Callable[[Gate], Gate] = lambda gate: gate
    level1: float = Settings.level1
    level2: float = Settings.level2


def _flat(gate: Gate) -> Gate:
    mean = np.rint(gate.domain_bias.mean(axis=0)).astype(np.int64)
    return replace(gate, domain_bias=np.broadcast_to(mean, gate.domain_bias.shape).copy())


def _no_bias(gate: Gate) -> Gate:
    return replace(gate, domain_bias=np.zeros_like(gate.domain_bias))


def _open(gate: Gate, cap: int) -> Gate:
    return replace(_no_bias(gate), tau=(Q_MIN,) * len(gate.tau), phi=Q_MIN, psi=Q_MIN, cap=cap)


ABLATIONS = (
    Variant(name="all three levels"),
    Variant(name="level 1 off", level1=0),
    Variant(name="level 2 off", level2=0),
    Variant(name="levels 1 and 2 off", level1=0, level2=0),
    Variant(name="no density in level 3", change=lambda g: replace(g, density=0)),
    Variant(name="one table row for all domains", change=_flat),
    Variant(name="router weight alone", change=lambda g: replace(_no_bias(g), density=0), level1=0, level2=0),
    Variant(name="level 1 does it all", level1=0.8, level2=0, after=lambda g: replace(g, psi=Q_MIN)),
    Variant(name="level 3 off", after=lambda g: replace(g, psi=Q_MIN)),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """cost: -log2 p of every held-out byte; by layer mean_experts, p_empty, and kept candidates' experts
    [T, k], -1 for those removed; domain: what the gate took each token for."""

    cost: np.ndarray
    mean_experts: dict[int, float]
    p_empty: dict[int, float]
    kept: dict[int, np.ndarray]
    domain: dict[int, np.ndarray]


class Study:
    """Texts and calibrated layers that variants are tried on.

    Parameters
    ----------
    layers : quantised, with the gate that :func:`sw_model.model_gate.calibrate_text` gave
    seen, held_out : texts by domain; the same domains
    total, length : bytes a domain of either, and of one piece
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        gate: GateFile,
        layers: Mapping[int, QuantisedLayer],
        seen: Mapping[str, Sequence[bytes]],
        held_out: Mapping[str, Sequence[bytes]],
        config: HardwareConfig,
        *,
        total: int,
        length: int = 512,
    ) -> None:
        self.layers, self.config, self.checkpoint = layers, config, checkpoint
        a, b = (Batch.of(t, checkpoint, total=total, length=length) for t in (seen, held_out))
        self.batch, self.held_out = Batch(ids=a.ids + b.ids, domains=a.domains + b.domains), b
        self.calibration_tokens = len(a.tokens)
        info = np.zeros(256, dtype=np.int64) if gate.information is None else gate.information
        self.info = info[self.batch.tokens]
        self.domains = len(gate.domains)
        #: domain of every held-out byte that is predicted, and of every held-out token
        self.domain = np.repeat(b.domains, [len(i) - 1 for i in b.ids])
        self.token_domain = b.domain

    def run(self, variant: Variant | None, target: float = 1.2) -> Outcome:
        """One variant; None: no gate."""
        cut = self.calibration_tokens
        mean, empty, kept, domain = {}, {}, {}, {}
        side = SideBand(info=self.info, tag=np.full(len(self.info), -1, dtype=np.int64))

        def moe(n: int, x: np.ndarray) -> np.ndarray:
            layer = self.layers[n]
            if variant is None or layer.gate is None:
                layer = replace(layer, gate=None)
            else:
                settings = Settings(target=target, level1=variant.level1, level2=variant.level2)
                tokens = Tokens(
                    x=x[:cut], domain=self.batch.domain[:cut], info=self.info[:cut], domains=self.domains
                )
                layer = replace(layer, gate=variant.change(layer.gate))
                layer = set_thresholds(layer, tokens, settings, self.config)
                if layer.gate is not None:
                    layer = replace(layer, gate=variant.after(layer.gate))
            result = golden.run(layer, x, self.config, side)
            stays = np.ones(result.experts.shape, dtype=bool)
            if result.decisions is not None:
                stays = result.decisions.kept
                domain[n] = result.decisions.domain[cut:]
            kept[n] = np.where(stays, result.experts, -1)[cut:]
            mean[n] = float(stays[cut:].sum(axis=1).mean())
            empty[n] = float((~stays[cut:].any(axis=1)).mean())
            return result.y

        logits = Lockstep(self.checkpoint, moe).forward_all(self.batch.ids)[-len(self.held_out.ids) :]
        cost = np.concatenate([bits(row, ids) for row, ids in zip(logits, self.held_out.ids, strict=True)])
        return Outcome(cost=cost, mean_experts=mean, p_empty=empty, kept=kept, domain=domain)

    def first(self) -> Outcome:
        """The router's first choice alone, with its own weight."""
        return self.run(Variant(name="first choice", after=lambda g: _open(g, 1)))

    def bits_per_byte(self, cost: np.ndarray) -> float:
        """Mean over the domains."""
        return float(np.mean([cost[self.domain == g].mean() for g in range(self.domains)]))

    def difference(self, outcome: Outcome, base: Outcome) -> tuple[float, float]:
        """By how much bits per byte differ, and the standard error of that (bytes taken as independent)."""
        delta = outcome.cost - base.cost
        parts = [delta[self.domain == g] for g in range(self.domains)]
        error = np.sqrt(sum(p.var() / len(p) for p in parts)) / len(parts)
        return float(np.mean([p.mean() for p in parts])), float(error)


def mutual_information(kept: np.ndarray, domain: np.ndarray, experts: int) -> float:
    """Bits that a kept expert tells about its token's domain, domains weighted alike.

    kept [T, k], -1 where nothing; domain [T]. The bias of the plug-in estimate is taken off (Miller, Madow).
    """
    at = kept >= 0
    of = np.broadcast_to(domain[:, None], kept.shape)
    table = np.zeros((int(domain.max()) + 1, experts))
    np.add.at(table, (of[at], kept[at]), 1)
    samples = table.sum()
    p = table / np.maximum(table.sum(axis=1, keepdims=True), 1) / len(table)
    independent = p.sum(axis=1, keepdims=True) * p.sum(axis=0, keepdims=True)
    some = p > 0
    plain = float((p[some] * np.log2(p[some] / independent[some])).sum())
    freedom = (some.any(axis=1).sum() - 1) * (some.any(axis=0).sum() - 1)
    return max(0.0, plain - float(freedom) / (2 * samples * np.log(2)))
