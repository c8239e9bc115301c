"""``gate.json``: the three-level gate of a whole model in one file.

format        1
domains       names, in the order of the rows of every layer's tables
target        experts a token that the gate was calibrated for
information   -log2 of the unigram probability of each byte, Q5.3, 256 numbers; or null
layers        by number: the fields of sw_model.gate.Gate, integers in Q7.8, rows as float32
achieved      what the calibration measured; nothing depends on it
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from sw_model.errors import ExpertileError
from sw_model.gate import INFO_FRACTION, MAX_TAU, Q_MAX, Q_MIN, Gate, SideBand

__all__ = ["GateFile", "dump", "load", "unigram_information"]

FORMAT = 1
MOST_DOMAINS = 128  # what a tag of the side band can say


@dataclass(frozen=True, kw_only=True)
class GateFile:
    """domains : names; target : experts a token; information : int64 [256] or None; layers : by number;
    achieved : figures."""

    domains: tuple[str, ...]
    target: float
    information: np.ndarray | None
    layers: dict[int, Gate]
    achieved: dict[str, Any] = field(default_factory=dict)

    def gate(self, n: int) -> Gate:
        """Of layer ``n``; :class:`ExpertileError` if it was not calibrated."""
        if n not in self.layers:
            known = ", ".join(map(str, sorted(self.layers)))
            raise ExpertileError(f"gate: no layer {n} in it (it has {known}); calibrate that layer first")
        return self.layers[n]

    def side_band(self, tokens: Sequence[int] | np.ndarray | bytes, domain: str | None = None) -> SideBand:
        """What goes with ``tokens``: the information of each, and ``domain`` as a tag on all.

        Raises
        ------
        ExpertileError : no such domain
        """
        ids = np.frombuffer(tokens, np.uint8) if isinstance(tokens, bytes) else np.asarray(tokens)
        info = np.zeros(len(ids), dtype=np.int64)
        if self.information is not None and len(ids):
            info = self.information[np.minimum(ids.astype(np.int64), 255)]
        tag = -1
        if domain is not None:
            if domain not in self.domains:
                raise ExpertileError(f"domain {domain!r}: the gate knows {', '.join(self.domains)}")
            tag = self.domains.index(domain)
        return SideBand(info=info, tag=np.full(len(ids), tag, dtype=np.int64))


def unigram_information(texts: Sequence[bytes]) -> np.ndarray:
    """Q5.3 bytes [256]: -log2 of each byte's share of ``texts``, one more counted of each, saturated."""
    counts = np.bincount(np.frombuffer(b"".join(texts), np.uint8), minlength=256) + 1
    information = -np.log2(counts / counts.sum())
    return np.minimum(np.rint(information * 2**INFO_FRACTION), 255).astype(np.int64)


def dump(gate: GateFile) -> str:
    """The file's text, one table a line."""
    head = {
        "format": FORMAT,
        "domains": list(gate.domains),
        "target": gate.target,
        "information": None if gate.information is None else gate.information.tolist(),
    }
    lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in head.items()]
    layers = []
    for n, layer in sorted(gate.layers.items()):
        rows = (f"      {json.dumps(f.name)}: {_encode(getattr(layer, f.name))}" for f in fields(Gate))
        layers.append(f'    "{n}": {{\n' + ",\n".join(rows) + "\n    }")
    lines.append('  "layers": {\n' + ",\n".join(layers) + "\n  }")
    achieved = json.dumps(gate.achieved, indent=2, allow_nan=False).replace("\n", "\n  ")
    lines.append(f'  "achieved": {achieved}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _encode(value: Any) -> str:
    if isinstance(value, np.ndarray):
        if value.dtype == np.float32:  # the shortest decimal that gives the same float32 back
            value = np.vectorize(lambda v: float(str(v)), otypes=[np.float64])(value)
        value = value.tolist()
    return json.dumps(value, allow_nan=False)


def load(path: Path) -> GateFile:
    """Read and check a gate file.

    Raises
    ------
    ExpertileError : missing, not JSON, another format, a field absent, unknown, misshapen or out of range
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as e:
        raise ExpertileError(f"gate {path}: cannot be read ({e.strerror}); check the path") from None
    except (ValueError, RecursionError) as e:
        raise ExpertileError(f"gate {path}: not valid JSON ({e})") from None
    try:
        return _parse(data)
    except ExpertileError as e:
        raise ExpertileError(f"gate {path}: {e}; write it with `expertile calibrate`") from None


def _parse(data: Any) -> GateFile:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ExpertileError(f"not a gate file of format {FORMAT}")
    names = data.get("domains")
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ExpertileError("domains must be a list of names")
    if not 1 <= len(names) <= MOST_DOMAINS or len(set(names)) < len(names):
        raise ExpertileError(f"domains must be 1 to {MOST_DOMAINS} different names")
    target = data.get("target")
    if isinstance(target, bool) or not isinstance(target, int | float) or not 0 <= target <= MAX_TAU:
        raise ExpertileError(f"target must be a number of experts from 0 to {MAX_TAU}")
    information = data.get("information")
    if information is not None:
        information = _integers("information", information, 0, 255)
        if information.shape != (256,):
            raise ExpertileError("information must hold 256 numbers")
    layers = data.get("layers")
    if not isinstance(layers, dict) or not layers or not all(n.isascii() and n.isdigit() for n in layers):
        raise ExpertileError("layers must map layer numbers to gates")
    achieved = data.get("achieved", {})
    if not isinstance(achieved, dict):
        raise ExpertileError("achieved must be an object")
    return GateFile(
        domains=tuple(names),
        target=float(target),
        information=information,
        layers={int(n): _layer(f"layer {n}", value, len(names)) for n, value in layers.items()},
        achieved=achieved,
    )


def _layer(where: str, value: Any, domains: int) -> Gate:
    names = {f.name for f in fields(Gate)}
    if not isinstance(value, dict) or set(value) != names:
        odd = sorted(names.symmetric_difference(value if isinstance(value, dict) else ()))
        raise ExpertileError(f"{where}: missing or unknown field {odd[0] if odd else ''!r}")

    def integer(name: str, least: int, most: int) -> int:
        return int(_integers(f"{where}: {name}", [value[name]], least, most)[0])

    def table(name: str, axes: int) -> np.ndarray:
        array = _integers(f"{where}: {name}", value[name], Q_MIN, Q_MAX)
        if array.ndim != axes or not array.size:
            raise ExpertileError(f"{where}: {name} must be a table of {axes} axes")
        return array

    def row(name: str, axes: int) -> np.ndarray | None:
        return None if value[name] is None else _floats(f"{where}: {name}", value[name], axes)

    tau, bias = table("tau", 1), table("domain_bias", 2)
    if len(tau) > MAX_TAU:
        raise ExpertileError(f"{where}: at most {MAX_TAU} thresholds tau")
    cost, miss = table("cost", 1), table("miss", 1)
    density_row, fallback, domain_rows = row("density_row", 1), row("fallback", 1), row("domain_rows", 2)
    experts = bias.shape[1]
    if len(bias) != domains or (domain_rows is not None and len(domain_rows) != domains):
        raise ExpertileError(f"{where}: its domain tables must have {domains} rows, one a domain")
    if len(cost) != experts or len(miss) != experts:
        raise ExpertileError(f"{where}: domain_bias, cost and miss must agree on the number of experts")
    if len({r.shape[-1] for r in (density_row, fallback, domain_rows) if r is not None}) > 1:
        raise ExpertileError(f"{where}: its rows must agree on the hidden size")
    return Gate(
        tau=tuple(tau.tolist()),
        cap=integer("cap", 0, 255),
        phi=integer("phi", Q_MIN, Q_MAX),
        psi=integer("psi", Q_MIN, Q_MAX),
        info=integer("info", Q_MIN, Q_MAX),
        entropy=integer("entropy", Q_MIN, Q_MAX),
        density=integer("density", Q_MIN, Q_MAX),
        lam=integer("lam", Q_MIN, Q_MAX),
        domain_bias=bias,
        cost=cost,
        miss=miss,
        density_row=density_row,
        domain_rows=domain_rows,
        fallback=fallback,
    )


def _integers(what: str, value: Any, least: int, most: int) -> np.ndarray:
    try:
        array = np.array(value)
    except ValueError:
        array = np.array(None)
    if array.dtype.kind != "i" or array.min(initial=0) < least or array.max(initial=least) > most:
        raise ExpertileError(f"{what} must be integers from {least} to {most}")
    return array.astype(np.int64)


def _floats(what: str, value: Any, axes: int) -> np.ndarray:
    try:
        array = np.array(value)
    except ValueError:
        array = np.array(None)
    if array.dtype.kind not in "if" or array.ndim != axes or not array.size:
        raise ExpertileError(f"{what} must be numbers, in {axes} axes")
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    if not np.isfinite(single).all():
        raise ExpertileError(f"{what} must be finite in float32")
    return single
