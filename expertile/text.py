"""Text through a byte-level checkpoint: the model on an engine, and its bytes on the screen as they come."""

import codecs
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from expertile.engines import ModelEngine
from expertile.options import EngineName, FormatName
from expertile.output import console
from sw_model.checkpoint import Checkpoint
from sw_model.config import HardwareConfig
from sw_model.decoder import Decoder, generate
from sw_model.energy.counts import Counts
from sw_model.errors import ExpertileError
from sw_model.gate_file import GateFile

__all__ = ["layer_work", "model_on", "stream"]


class _GatedDecoder(Decoder):
    """Tells the engine about its tokens before they come."""

    def __init__(self, checkpoint: Checkpoint, moe: ModelEngine, gate: GateFile) -> None:
        super().__init__(checkpoint, moe)
        self._engine, self._gate = moe, gate

    def forward(self, token_ids: Any) -> Any:
        self._engine.side = self._gate.side_band(token_ids)
        return super().forward(token_ids)


@contextmanager
def model_on(
    folder: Path,
    engine: EngineName,
    fmt: FormatName,
    config: HardwareConfig,
    *,
    gate: GateFile | None = None,
    **stalls: Any,
) -> Iterator[tuple[Decoder, ModelEngine]]:
    """The byte-level model in ``folder`` with its MoE layers on ``engine``, gated if there is a ``gate``.

    Raises
    ------
    ExpertileError
        A bad checkpoint, one with another vocabulary, or one over the maxima of ``config``.
    """
    checkpoint = Checkpoint.open(folder)
    if checkpoint.shape.vocabulary != 256:
        raise ExpertileError(
            f"{folder}: its vocabulary is {checkpoint.shape.vocabulary}: text needs a byte-level model (256)"
        )
    with ModelEngine(checkpoint, engine, fmt, config, gate=gate, **stalls) as moe:
        yield Decoder(checkpoint, moe) if gate is None else _GatedDecoder(checkpoint, moe, gate), moe


def layer_work(
    folder: Path,
    texts: Mapping[str, Sequence[bytes]],
    fmt: FormatName,
    config: HardwareConfig,
    gate: GateFile | None,
    max_bytes: int,
) -> Counts:
    """Work of all MoE layers on ``texts``, by the golden model, summed; ``tokens`` are those of the text.

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
    blocks, _ = run_text(checkpoint, layers, batch, None if gate is None else gate.information, config)
    every = [result.work.total() for result in blocks.seen.values()]
    return replace(sum(every[1:], start=every[0]), tokens=every[0].tokens)


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
