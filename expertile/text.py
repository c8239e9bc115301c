"""Text through a byte-level checkpoint: the model on an engine, and its bytes on the screen as they come."""

import codecs
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from expertile.engines import ModelEngine
from expertile.options import EngineName, FormatName
from expertile.output import console
from sw_model.checkpoint import Checkpoint
from sw_model.config import Feature, HardwareConfig
from sw_model.decoder import Decoder, generate
from sw_model.energy.counts import Counts
from sw_model.energy.estimate import KEY_BITS, Estimate
from sw_model.energy.meter import Governor
from sw_model.errors import ExpertileError
from sw_model.gate_file import GateFile

__all__ = ["GovernedDecoder", "layer_work", "model_on", "stream"]

SETTLED = 32  # tokens over which the governor keeps the mean


class _GatedDecoder(Decoder):
    """Tells the engine about its tokens before they come."""

    def __init__(self, checkpoint: Checkpoint, moe: ModelEngine, gate: GateFile) -> None:
        super().__init__(checkpoint, moe)
        self._engine, self._gate = moe, gate

    def forward(self, token_ids: Any) -> Any:
        self._engine.side = self._gate.side_band(token_ids)
        return super().forward(token_ids)


class GovernedDecoder(_GatedDecoder):
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
        super().__init__(checkpoint, moe, gate)
        self._moe = self._charged
        self._energy, self._begin = energy, begin
        self._governors: dict[int, Governor] = {}
        layers = checkpoint.moe_layers
        self._owner = [next((m for m in layers if m >= n), layers[0]) for n in range(self.shape.layers)]
        self._reads = dict.fromkeys(layers, 0)  # of keys and values, not charged yet
        self.trace: list[dict[str, Any]] = []

    def forward(self, token_ids: Any) -> Any:
        alone, engine = len(token_ids) == 1, self._engine
        if alone and len(self.trace) == self._begin and not self._governors:
            self._governors = engine.govern()
        states = [g.state for g in self._governors.values()]
        engine.work = None
        logits = super().forward(token_ids)
        if alone and engine.work is not None:
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


@contextmanager
def model_on(
    folder: Path,
    engine: EngineName,
    fmt: FormatName,
    config: HardwareConfig,
    *,
    gate: GateFile | None = None,
    budget: tuple[Callable[[int], Estimate], int] | None = None,
    ports: Sequence[str] = (),
    **options: Any,
) -> Iterator[tuple[Decoder, ModelEngine]]:
    """The byte-level model in ``folder`` with its MoE layers on ``engine``, gated if there is a ``gate``, and
    under an energy ``budget`` if there is one (an estimate by the number of layers that share it, and the
    token it begins with). ``ports``: devices that run a
    layer each, as the command line names them.

    Raises
    ------
    ExpertileError
        A bad checkpoint, one with another vocabulary, or one over the maxima of ``config``; a budget that is
        too small, without a gate, or on an engine that has no governor.
    """
    if budget is not None and (gate is None or engine is EngineName.reference):
        raise ExpertileError(
            "an energy budget moves the gate's lambda: give --gate, and an engine that has one, as golden"
        )
    if budget is not None and engine is EngineName.icarus:
        raise ExpertileError("engine 'icarus' starts anew with every token: no energy budget; use verilator")
    if budget is not None:
        config.require(Feature.GOVERNOR, "an energy budget")
    checkpoint = Checkpoint.open(folder)
    if checkpoint.shape.vocabulary != 256:
        raise ExpertileError(
            f"{folder}: its vocabulary is {checkpoint.shape.vocabulary}: text needs a byte-level model (256)"
        )
    devices = _assign(ports, checkpoint.moe_layers)
    share = None if budget is None else budget[0](len(checkpoint.moe_layers))
    with ModelEngine(
        checkpoint, engine, fmt, config, gate=gate, ports=devices, energy=share, **options
    ) as moe:
        if gate is None:
            yield Decoder(checkpoint, moe), moe
        elif budget is None or share is None:
            yield _GatedDecoder(checkpoint, moe, gate), moe
        else:
            yield GovernedDecoder(checkpoint, moe, gate, share, budget[1]), moe


def layer_work(
    folder: Path,
    texts: Mapping[str, Sequence[bytes]],
    fmt: FormatName,
    config: HardwareConfig,
    gate: GateFile | None,
    max_bytes: int,
) -> tuple[Counts, float]:
    """Work of all MoE layers on ``texts``, by the golden model, summed, with the tokens of the text as its
    ``tokens``; and bits a byte.

    Raises
    ------
    ExpertileError
        As :func:`model_on`.
    """
    from sw_model.model_gate import Batch, load_layers, run_text

    checkpoint = Checkpoint.open(folder)
    if fmt in (FormatName.auto, FormatName.native):
        raise ExpertileError(f"format {fmt.value!r}: name a format here")
    layers = load_layers(checkpoint, gate, config, fmt.value)
    batch = Batch.of(texts, checkpoint, total=max_bytes, length=max_bytes + 1)
    blocks, cost = run_text(checkpoint, layers, batch, None if gate is None else gate.information, config)
    every = [result.work.total() for result in blocks.seen.values()]
    work = replace(sum(every[1:], start=every[0]), tokens=every[0].tokens)
    return work, float(np.mean(np.concatenate(cost)))


def _assign(ports: Sequence[str], layers: Sequence[int]) -> dict[int, str]:
    """Layer -> port, from PORT or LAYER=PORT; those without a number take the layers left, in order."""
    devices: dict[int, str] = {}
    parts = [(number, port) for number, _, port in (p.rpartition("=") for p in ports)]
    for number, port in sorted(parts, key=lambda part: not part[0]):
        free = [n for n in layers if n not in devices]
        layer = int(number) if number.isdecimal() else None if number or not free else free[0]
        if layer not in free:
            raise ExpertileError(
                f"--port {f'{number}=' if number else ''}{port}: no MoE layer is left for it; a device runs "
                f"one, and the model has {', '.join(map(str, layers))}: give PORT or LAYER=PORT"
            )
        devices[layer] = port
    return devices


def stream(
    decoder: Decoder, moe: ModelEngine, prompt: str, tokens: int, *, temperature: float, seed: int
) -> dict[str, Any]:
    """Print prompt and continuation byte by byte; returns the figures."""
    prompt_bytes = prompt.encode("utf-8", "surrogateescape")
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    text, started = [], time.perf_counter()
    console().print(
        _printable(prompt_bytes.decode("utf-8", "replace")), style="dim", markup=False, end="", soft_wrap=True
    )
    for token in generate(decoder, prompt_bytes, tokens, temperature=temperature, seed=seed):
        text.append(utf8.decode(bytes([token])))
        console().print(_printable(text[-1]), markup=False, end="", soft_wrap=True)
    text.append(utf8.decode(b"", final=True))
    console().print(_printable(text[-1]), markup=False, soft_wrap=True)
    seconds = time.perf_counter() - started
    return {
        "prompt": prompt,
        "text": "".join(text),
        "tokens": tokens,
        "seconds": seconds,
        "layer_calls": moe.tally.calls,
        **moe.tally.figures(),
    }


def _printable(text: str) -> str:
    """Text that cannot steer the terminal; the end of a document (NUL) shows as a line of its own."""
    return "".join(
        "\n\n"
        if c == "\0"
        else c
        if c.isprintable() or c == "\n"
        else "    "
        if c == "\t"
        else "\N{MIDDLE DOT}"
        for c in text
    )
