"""``expertile trace``: why each token went where, as a table and as pictures."""

import csv
import io
from collections.abc import Iterator
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Annotated, Any

import typer

from expertile import options
from expertile.options import MODEL, ROOT, FormatName
from expertile.output import console, write_file

__all__ = ["command"]

LEVELS = ("", "density", "domain", "cost", "cap")


def command(
    gate: Annotated[Path, typer.Option(help="Three-level gate, as `expertile calibrate` writes it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the table and the pictures.")],
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text files, one a domain.", show_default="built corpus, else the shipped excerpts"
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="This text instead.")] = None,
    checkpoint: options.Checkpoint = MODEL,
    format: options.Format = FormatName.int8,
    config: options.Config = "base",
    energy_budget: Annotated[
        float | None,
        typer.Option(min=0.001, help="nJ a token in all MoE layers, kept by each layer's governor."),
    ] = None,
    technology: Annotated[str, typer.Option(help="Set of the energy table for the budget.")] = "cacti22",
    max_bytes: Annotated[int, typer.Option(min=2, help="Bytes a text.")] = 512,
) -> None:
    """Trace the gate's decisions on a text, and the energy governor's, by the golden model: trace.csv,
    trace.html, PNGs."""
    import numpy as np

    from expertile import pictures
    from sw_model.checkpoint import Checkpoint
    from sw_model.config import load_config
    from sw_model.energy.estimate import estimate
    from sw_model.energy.model import Conditions
    from sw_model.energy.table import technology as named
    from sw_model.errors import ExpertileError
    from sw_model.evaluation import default_texts, read_texts
    from sw_model.gate_file import load
    from sw_model.model_gate import Batch, load_layers, run_text

    if prompt is not None and text:
        raise ExpertileError("--prompt and --text: give one of them")
    if prompt is not None and len(prompt.encode()) < 2:
        raise ExpertileError("--prompt: two bytes or more are needed")
    admission, hardware, model = load(gate), load_config(config), Checkpoint.open(checkpoint)
    max_bytes = min(max_bytes, model.shape.positions - 1)
    if prompt is not None:
        texts = {"prompt": [prompt.encode("utf-8", "surrogateescape")[:max_bytes]]}
    else:
        texts = read_texts(text, max_bytes) if text else default_texts(ROOT, max_bytes)
    texts = {name: [b"\n".join(parts)[:max_bytes]] for name, parts in texts.items()}
    output.mkdir(parents=True, exist_ok=True)
    with console(stderr=True).status("running the text"):
        layers = load_layers(model, admission, hardware, format.value)
        batch = Batch.of(texts, model, total=max_bytes, length=max_bytes + 1)
        governors, unit = {}, 0.0
        if energy_budget is not None:
            share = estimate(
                named(technology), Conditions(shared=hardware.tiles), energy_budget / len(layers)
            )
            governors = {n: share.governor(layer, f"layer {n}") for n, layer in layers.items()}
            unit = share.unit / 1000
        blocks, _ = run_text(model, layers, batch, admission.information, hardware, governors)
    names, experts = list(texts), next(iter(layers.values())).n_experts
    tokens = Tokens(batch, names, model.shape.bos is not None)
    rows = {n: _kept(result) for n, result in blocks.seen.items()}
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    header = _header(next(iter(blocks.seen.values())).experts.shape[1])
    writer.writerow([*header, *_GOVERNED] if governors else header)
    told: dict[int, Any] = {}
    for n, result in blocks.seen.items():
        u = _u(result, layers[n].gate)
        settings = [_governed(s, unit) for s in result.settings]
        rows_of = _rows(n, result, u, tokens, admission.domains)
        writer.writerows(row + more for row, more in zip_longest(rows_of, settings, fillvalue=[]))
        told[n] = [_told(result, u, t, admission.domains) for t in tokens.shown]
    write_file(output / "trace.csv", lambda file: file.write(table.getvalue().encode()))
    page = pictures.page(tokens.texts(), told, experts)
    write_file(output / "trace.html", lambda file: file.write(page.encode()))
    for name, at, written in tokens.parts():
        kept = {n: rows[n][at] for n in rows}
        path = output / f"text-{name}.png"
        write_file(path, lambda file, w=written, k=kept: pictures.coloured_text(w, k, experts, file))
    by, labels = tokens.domain, names
    shares = {}
    for n, result in blocks.seen.items():
        if len(names) == 1:  # one text: by what the gate takes each token for
            by, labels = result.decisions.domain, list(admission.domains)
        count = np.zeros((len(labels), experts))
        at, rank = np.nonzero(rows[n] >= 0)
        np.add.at(count, (by[at], rows[n][at, rank]), 1)
        shares[n] = count / np.maximum(count.sum(axis=1, keepdims=True), 1)
    write_file(output / "experts.png", lambda file: pictures.heat_map(shares, labels, file))
    console().print(", ".join(str(p) for p in sorted(output.iterdir())), soft_wrap=True)


class Tokens:
    """Where each text lies in the batch; the beginning-of-text token is traced, but not drawn.

    Attributes: batch, names; domain [T]; shown: positions of the texts' own bytes.
    """

    def __init__(self, batch: Any, names: list[str], bos: bool) -> None:
        import numpy as np

        self.batch, self.names, self._bos = batch, names, int(bos)
        self.ids, self.domain = batch.tokens, batch.domain
        starts = np.cumsum([0] + [len(i) for i in batch.ids])
        self._spans = [(int(a) + self._bos, int(b)) for a, b in pairwise(starts)]
        self.shown = [t for a, b in self._spans for t in range(a, b)]

    def parts(self) -> list[tuple[str, Any, bytes]]:
        """(name, where, bytes) of every text."""
        return [
            (self.names[g], slice(a, b), bytes(self.ids[a:b].astype("uint8")))
            for g, (a, b) in zip(self.batch.domains, self._spans, strict=True)
        ]

    def texts(self) -> dict[str, bytes]:
        """Bytes by name."""
        return {name: written for name, _, written in self.parts()}


def _kept(result: Any) -> Any:
    import numpy as np

    return np.where(result.decisions.kept, result.experts, -1)


def _u(result: Any, gate: Any) -> Any:
    from sw_model.gate import log2_weight, saturate

    return saturate(
        log2_weight(result.weights) + gate.domain_bias[result.decisions.domain[:, None], result.experts]
    )


def _header(k: int) -> list[str]:
    names = ["layer", "text", "token", "byte", "character", "domain", "density", "entropy"]
    for r in range(1, k + 1):
        names += [f"expert_{r}", f"weight_{r}", f"u_{r}", f"removed_{r}"]
    return names


def _rows(n: int, result: Any, u: Any, tokens: Tokens, domains: tuple[str, ...]) -> Iterator[list[Any]]:
    """Table rows of a layer; Q7.8 and weights as decimals, ``removed`` the first level that did it."""
    from expertile.pictures import printable

    d = result.decisions
    for t, byte in enumerate(tokens.ids.tolist()):
        row = [n, tokens.names[tokens.domain[t]], t, byte, printable(byte), domains[d.domain[t]]]
        row += [f"{d.density[t] / 256:.4f}", f"{d.entropy[t] / 256:.4f}"]
        for e, w, value, level in zip(result.experts[t], result.weights[t], u[t], d.removed[t], strict=True):
            row += [e, f"{w / 65536:.5f}", f"{value / 256:.4f}", LEVELS[level]]
        yield row


_GOVERNED = ("nj", "credit_nj", "lambda", "cap", "sparse_attention", "high_nibble")


def _governed(s: Any, unit: float) -> list[Any]:
    """What a token took, and what it ran under."""
    return [f"{s.energy * unit:.4f}", f"{s.credit * unit:.4f}", f"{s.lam / 256:.4f}", s.cap, s.mode, s.high]


def _told(result: Any, u: Any, t: int, domains: tuple[str, ...]) -> tuple[list[int], str]:
    """Kept experts of a token, and what the pointer shows."""
    d = result.decisions
    kept = result.experts[t][d.kept[t]].tolist()
    fates = (
        f"expert {e}: weight {w / 65536:.3f}, u {v / 256:.2f}, "
        + (f"removed by {LEVELS[level]}" if level else "kept")
        for e, w, v, level in zip(result.experts[t], result.weights[t], u[t], d.removed[t], strict=True)
    )
    return kept, f"{domains[d.domain[t]]}, density {d.density[t] / 256:.2f}; " + "; ".join(fates)
