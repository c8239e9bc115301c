"""Text through a byte-level checkpoint: the model on an engine, and its bytes on the screen as they come."""

import codecs
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from expertile.engines import ModelEngine
from expertile.governed import GatedDecoder, GovernedDecoder
from expertile.options import EngineName, FormatName
from expertile.output import console
from sw_model.checkpoint import Checkpoint
from sw_model.config import Feature, HardwareConfig
from sw_model.decoder import Decoder, generate
from sw_model.energy.counts import Counts
from sw_model.energy.estimate import Estimate
from sw_model.errors import ExpertileError
from sw_model.gate_file import GateFile

__all__ = ["layer_work", "model_on", "stream"]


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
    token it begins with). ``ports``: devices that run a layer each, or several, as the command line names
    them.

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
    devices = _assign(ports, checkpoint.moe_layers, config.max_layers)
    if budget is not None and len(set(devices.values())) < len(devices):
        raise ExpertileError(
            "a device has one governor: for an energy budget give every layer a port of its own, or none"
        )
    share = None if budget is None else budget[0](len(checkpoint.moe_layers))
    with ModelEngine(
        checkpoint, engine, fmt, config, gate=gate, ports=devices, energy=share, **options
    ) as moe:
        if gate is None:
            yield Decoder(checkpoint, moe), moe
        elif budget is None or share is None:
            yield GatedDecoder(checkpoint, moe, gate), moe
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


def _assign(ports: Sequence[str], layers: Sequence[int], room: int) -> dict[int, str]:
    """Layer -> port, from PORT or LAYER=PORT; those without a number take, in order, as many of the layers
    left as a device has ``room`` for."""
    devices: dict[int, str] = {}
    parts = [(number, port) for number, _, port in (p.rpartition("=") for p in ports)]
    for number, port in sorted(parts, key=lambda part: not part[0]):
        free = [n for n in layers if n not in devices]
        left = room - list(devices.values()).count(port)
        mine = [n for n in free if not number or number == str(n)][:left]
        if not mine:
            raise ExpertileError(
                f"--port {f'{number}=' if number else ''}{port}: no MoE layer is left for it; a device runs "
                f"{room} (max_layers), and the model has {', '.join(map(str, layers))}: give PORT or "
                "LAYER=PORT"
            )
        devices |= dict.fromkeys(mine, port)
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
