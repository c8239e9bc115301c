"""The gate over all MoE layers of a checkpoint: calibrated layer after layer, and measured, on real text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sw_model import golden
from sw_model.calibration import Settings, Tokens, calibrate
from sw_model.checkpoint import Checkpoint
from sw_model.config import HardwareConfig
from sw_model.energy.meter import Governor
from sw_model.errors import ExpertileError
from sw_model.gate import Decisions, SideBand
from sw_model.gate_file import GateFile, unigram_information
from sw_model.lockstep import Lockstep, bits, pieces
from sw_model.quantised import QuantisedLayer, quantise

__all__ = [
    "LEVELS",
    "Batch",
    "Blocks",
    "Figures",
    "by_domain",
    "calibrate_activations",
    "calibrate_text",
    "decibels",
    "load_layers",
    "measure",
    "measure_activations",
    "run_text",
    "ungated",
]

LEVELS = ("density", "domain", "cost", "cap")
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Texts for a byte-level model: ids of each, and which domain it is of."""

    ids: list[np.ndarray]
    domains: list[int]

    @classmethod
    def of(
        cls, texts: Mapping[str, Sequence[bytes]], checkpoint: Checkpoint, *, total: int, length: int
    ) -> Batch:
        """About ``total`` bytes a domain, in pieces of at most ``length``.

        Raises
        ------
        ExpertileError : the model is not byte-level, or a domain has no text
        """
        shape = checkpoint.shape
        if shape.vocabulary != 256:
            raise ExpertileError(
                f"{checkpoint.folder}: its vocabulary is {shape.vocabulary}: text needs a byte-level model "
                "(256); calibrate on --activations"
            )
        ids, domains = [], []
        for g, (name, parts) in enumerate(texts.items()):
            cut = pieces(parts, total, min(length, shape.positions), shape.bos)
            if not cut:
                raise ExpertileError(f"domain {name!r}: no text of two bytes or more")
            ids += cut
            domains += [g] * len(cut)
        return cls(ids=ids, domains=domains)

    @property
    def tokens(self) -> np.ndarray:
        """Ids of all texts, end to end."""
        return np.concatenate(self.ids)

    @property
    def domain(self) -> np.ndarray:
        """The domain of every token."""
        return np.repeat(self.domains, [len(i) for i in self.ids])


@dataclass
class Blocks:
    """Quantised MoE layers as the callable of a decoder, which keep what they decided.

    layers : by number; config; side : of the tokens that come next, all of them
    governors : of layers that have one
    seen : the last result by layer
    """

    layers: Mapping[int, QuantisedLayer]
    config: HardwareConfig
    side: SideBand | None = None
    governors: Mapping[int, Governor] = field(default_factory=dict)
    seen: dict[int, golden.Result] = field(default_factory=dict)
    inputs: dict[int, np.ndarray] = field(default_factory=dict)

    def __call__(self, n: int, x: np.ndarray) -> np.ndarray:
        self.inputs[n] = x
        self.seen[n] = golden.run(self.layers[n], x, self.config, self.side, governor=self.governors.get(n))
        return self.seen[n].y


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a gate does on some tokens. By layer: mean experts, share of tokens with none, candidates that
    each level removed, and SQNR in dB of the layer against all candidates on the same input. Bits per byte by
    domain, with the gate and with all candidates; empty without text."""

    mean_experts: dict[int, float]
    p_empty: dict[int, float]
    removed: dict[int, dict[str, int]]
    sqnr_db: dict[int, float]
    gated: dict[str, float] = field(default_factory=dict)
    top_k: dict[str, float] = field(default_factory=dict)
    tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        means = {
            name: sum(by.values()) / len(by) if by else None
            for name, by in (("gated", self.gated), ("top_k", self.top_k))
        }
        return {
            "tokens": self.tokens,
            "mean_experts": float(np.mean(list(self.mean_experts.values()))),
            "p_empty": float(np.mean(list(self.p_empty.values()))),
            "layers": {
                str(n): {
                    "mean_experts": self.mean_experts[n],
                    "p_empty": self.p_empty[n],
                    "removed_by_level": self.removed[n],
                    "sqnr_db": self.sqnr_db[n],
                }
                for n in self.mean_experts
            },
            "bits_per_byte": {"gated": self.gated, "top_k": self.top_k, "mean": means},
        }


def removed_by_level(d: Decisions) -> dict[str, int]:
    """Candidates that each level removed, by its name."""
    counts = np.bincount(d.removed.ravel(), minlength=len(LEVELS) + 1)
    return {name: int(n) for name, n in zip(LEVELS, counts[1:], strict=True)}


def calibrate_text(
    checkpoint: Checkpoint,
    texts: Mapping[str, Sequence[bytes]],
    settings: Settings,
    config: HardwareConfig,
    fmt: str = "int8",
    *,
    total: int = 4096,
    length: int = 512,
    density_rows: np.ndarray | None = None,
    progress: Progress = lambda what: None,
) -> tuple[GateFile, dict[int, QuantisedLayer]]:
    """The gate of every MoE layer, each calibrated on what the gated layers before it give.

    Parameters
    ----------
    texts : by domain, whose names the gate takes over
    total, length : bytes a domain, and of one piece
    density_rows : trained rows v, float32 [MoE layers, H]; None: fitted
    """
    batch = Batch.of(texts, checkpoint, total=total, length=length)
    information = unigram_information([p for parts in texts.values() for p in parts])
    info, layers = information[batch.tokens], {}
    rows = dict(zip(checkpoint.moe_layers, density_rows, strict=True)) if density_rows is not None else {}

    def moe(n: int, x: np.ndarray) -> np.ndarray:
        progress(f"layer {n}")
        tokens = Tokens(x=x, domain=batch.domain, info=info, domains=len(texts))
        layers[n] = calibrate(checkpoint.moe_layer(n), tokens, settings, config, fmt, rows.get(n))
        return golden.run(layers[n], x, config, tokens.side).y

    Lockstep(checkpoint, moe).forward_all(batch.ids)
    return _file(tuple(texts), settings, information, layers), layers


def calibrate_activations(
    checkpoint: Checkpoint,
    n: int,
    x: np.ndarray,
    settings: Settings,
    config: HardwareConfig,
    fmt: str = "int8",
) -> tuple[GateFile, dict[int, QuantisedLayer]]:
    """The gate of layer ``n`` alone, from its input x float32 [T, H]; there is one domain."""
    zeros = np.zeros(len(x), dtype=np.int64)
    tokens = Tokens(x=x, domain=zeros, info=zeros, domains=1)
    layers = {n: calibrate(checkpoint.moe_layer(n), tokens, settings, config, fmt)}
    return _file(("all",), settings, None, layers), layers


def _file(
    domains: tuple[str, ...],
    settings: Settings,
    information: np.ndarray | None,
    layers: Mapping[int, QuantisedLayer],
) -> GateFile:
    gates = {n: layer.gate for n, layer in layers.items() if layer.gate is not None}
    return GateFile(domains=domains, target=settings.target, information=information, layers=gates)


def load_layers(
    checkpoint: Checkpoint, gate: GateFile | None, config: HardwareConfig, fmt: str
) -> dict[int, QuantisedLayer]:
    """Every MoE layer quantised, with its gate."""
    return {
        n: quantise(checkpoint.moe_layer(n), fmt, config, gate=None if gate is None else gate.gate(n))
        for n in checkpoint.moe_layers
    }


def run_text(
    checkpoint: Checkpoint,
    layers: Mapping[int, QuantisedLayer],
    batch: Batch,
    information: np.ndarray | None,
    config: HardwareConfig,
    governors: Mapping[int, Governor] | None = None,
) -> tuple[Blocks, list[np.ndarray]]:
    """The batch through the model: what the layers decided, and -log2 p of each text's bytes.

    ``governors``: of layers under an energy budget; they go on from text to text.
    """
    tokens = batch.tokens
    side = SideBand.empty(len(tokens))
    if information is not None:
        side = replace(side, info=information[tokens])
    blocks = Blocks(layers=layers, config=config, side=side, governors=governors or {})
    logits = Lockstep(checkpoint, blocks).forward_all(batch.ids)
    return blocks, [bits(row, ids) for row, ids in zip(logits, batch.ids, strict=True)]


def by_domain(names: Sequence[str], batch: Batch, cost: Sequence[np.ndarray]) -> dict[str, float]:
    """Bits per byte of each domain."""
    of = np.array(batch.domains)
    return {
        name: float(np.mean(np.concatenate([cost[i] for i in np.flatnonzero(of == g).tolist()])))
        for g, name in enumerate(names)
    }


def ungated(layers: Mapping[int, QuantisedLayer]) -> dict[int, QuantisedLayer]:
    """The same layers with the gate off."""
    return {n: replace(layer, gate=None) for n, layer in layers.items()}


def measure(
    checkpoint: Checkpoint,
    gate: GateFile,
    layers: Mapping[int, QuantisedLayer],
    texts: Mapping[str, Sequence[bytes]],
    config: HardwareConfig,
    *,
    total: int = 2048,
    length: int = 512,
    sqnr_tokens: int = 1024,
) -> Figures:
    """What ``gate`` does on ``texts``, by the golden model; SQNR on ``sqnr_tokens`` spread over them."""
    batch = Batch.of(texts, checkpoint, total=total, length=length)
    blocks, cost = run_text(checkpoint, layers, batch, gate.information, config)
    open_layers = ungated(layers)
    _, open_cost = run_text(checkpoint, open_layers, batch, None, config)
    sqnr = {}
    for n, result in blocks.seen.items():
        some = np.linspace(0, len(result.y) - 1, min(sqnr_tokens, len(result.y))).astype(int)
        want = golden.run(open_layers[n], blocks.inputs[n][some], config).y
        sqnr[n] = decibels(want, result.y[some])
    decided = {n: _decisions(result) for n, result in blocks.seen.items()}
    return Figures(
        mean_experts={n: float(d.kept.sum(axis=1).mean()) for n, d in decided.items()},
        p_empty={n: float((~d.kept.any(axis=1)).mean()) for n, d in decided.items()},
        removed={n: removed_by_level(d) for n, d in decided.items()},
        sqnr_db=sqnr,
        gated=by_domain(list(texts), batch, cost),
        top_k=by_domain(list(texts), batch, open_cost),
        tokens=len(batch.tokens),
    )


def measure_activations(layer: QuantisedLayer, n: int, x: np.ndarray, config: HardwareConfig) -> Figures:
    """The same of one layer on its input x [T, H]."""
    result = golden.run(layer, x, config)
    d = _decisions(result)
    want = golden.run(replace(layer, gate=None), x, config).y
    return Figures(
        mean_experts={n: float(d.kept.sum(axis=1).mean())},
        p_empty={n: float((~d.kept.any(axis=1)).mean())},
        removed={n: removed_by_level(d)},
        sqnr_db={n: decibels(want, result.y)},
        tokens=len(x),
    )


def _decisions(result: golden.Result) -> Decisions:
    assert result.decisions is not None
    return result.decisions


def decibels(want: np.ndarray, got: np.ndarray) -> float:
    """10 log10 of signal over error; 200 where they are equal."""
    noise = float(np.sum((want.astype(np.float64) - got) ** 2))
    signal = float(np.sum(want.astype(np.float64) ** 2))
    return 10 * float(np.log10(signal / noise)) if noise and signal else 200.0
