"""Training at the accelerator's precision: fake quantisation, and the rule that decides when.

Weights of the MoE blocks are rounded as the quantiser does it: blocks of 32 along the reduction axis, each
with a bfloat16 scale from the same search (`sw_model/scale_search.py`). Forward and backward run with rounded
weights, the update goes to the float32 ones (straight through): `rounded` swaps them in for a while.
Activations are MXINT8 blocks, as the array multiplies them (`fake_act8`).

**Rule.** Rounding disturbs a step by the error that it puts into the gradient, times the learning rate. The
next format is entered when that is small beside what two batches differ by anyway:

    rate * |g_q(A) - g(A)| / |g(B) - g(A)|  <=  tolerance

with A, B batches, g_q the gradient with weights in the next format, the norms over the
weights that are rounded, and `rate` the learning rate as a share of its largest; `patience` measurements in a
row. What it did in the runs that are recorded: docs/training.md.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sw_model.config import load_config
from sw_model.formats import BLOCK, WEIGHT_FORMATS, WeightFormat
from sw_model.scale_search import FRACTIONS

__all__ = ["Precision", "fake_act8", "fake_weights", "gradient_ratio", "macro_weights", "rounded"]

_CONFIG = load_config("base")
_ONE = 1 << 23  # of a float32's exponent field
_FIELD = 0x7F800000


def fake_act8(x: Tensor) -> Tensor:
    """x [..., n], n a multiple of 32, as MXINT8 holds it; the gradient passes straight through.

    Block exponent X = max(floor log2 of the block's largest, the vector's largest less the spread); elements
    are rounded to multiples of 2**(X - 6), ties to even, at most 127.
    """
    x32 = x.float()
    blocks = x32.detach().unflatten(-1, (-1, BLOCK))
    field = blocks.abs().amax(dim=-1, keepdim=True).view(torch.int32) & _FIELD
    least = (field.amax(dim=-2, keepdim=True) - _CONFIG.activation_spread * _ONE).clamp(min=7 * _ONE)
    unit = (torch.maximum(field, least) - 6 * _ONE).view(torch.float32)
    value = ((blocks / unit).round().clamp(-127, 127) * unit).flatten(-2)
    return (x32 + (value - x32.detach())).to(x.dtype)


def _round(x: Tensor, fmt: WeightFormat) -> Tensor:
    """Nearest magnitudes of the format, in its units, ties to even, saturated."""
    most = float(fmt.max_magnitude)
    if fmt.mantissa_bits is None:
        return x.round().clamp(-most, most)
    exponent = (x.view(torch.int32) & _FIELD) - fmt.mantissa_bits * _ONE
    step = exponent.clamp(min=127 * _ONE).view(torch.float32)
    return ((x / step).round() * step).clamp(-most, most)


def fake_weights(w: Tensor, name: str) -> Tensor:
    """float32 weights [..., columns] as the macros will hold them in the format `name`."""
    fmt = WEIGHT_FORMATS[name]
    blocks = w.float().unflatten(-1, (-1, BLOCK))
    largest = blocks.abs().amax(dim=-1, keepdim=True) / fmt.max_magnitude
    best, least = largest, torch.full_like(largest, torch.inf)
    for fraction in FRACTIONS.tolist():
        scale = torch.where(largest > 0, largest * fraction, 1.0)
        error = (blocks - scale * _round(blocks / scale, fmt)).square().sum(dim=-1, keepdim=True)
        better = error < least
        least, best = torch.where(better, error, least), torch.where(better, largest * fraction, best)
    # Upwards to a bfloat16; not more than `spread` octaves under the row's largest.
    up = (best.view(torch.int32) + 0xFFFF) & -0x10000
    field = up & _FIELD
    floor = (field.amax(dim=-2, keepdim=True) - _CONFIG.spread(fmt) * _ONE).clamp(min=_ONE)
    scale = torch.where(field < floor, floor, up).view(torch.float32)
    return (_round(blocks / scale, fmt) * scale).flatten(-2)


def macro_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that live in macros, by name: all matrices of the experts, shared ones too."""
    ends = (".gate", ".up", ".down", ".shared_gate.weight", ".shared_up.weight", ".shared_down.weight")
    return {n: p for n, p in model.named_parameters() if ".moe." in n and n.endswith(ends)}


@torch.no_grad()
def _round_all(parameters: dict[str, nn.Parameter], name: str, fake: Callable) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    by_width: dict[int, list[tuple[str, Tensor]]] = {}
    for key, parameter in parameters.items():
        # Routed down matrices are kept transposed, [E, I, H]; their reduction axis is I.
        w = parameter.mT if key.endswith(".down") else parameter
        by_width.setdefault(w.shape[-1], []).append((key, w))
    for width, members in by_width.items():
        done = fake(torch.cat([w.reshape(-1, width) for _, w in members]), name)
        parts = done.split([w.numel() // width for _, w in members])
        for (key, w), part in zip(members, parts, strict=True):
            value = part.view(w.shape)
            result[key] = (value.mT if key.endswith(".down") else value).contiguous()
    return result


@contextmanager
def rounded(model: nn.Module, name: str | None, fake: Callable = fake_weights) -> Iterator[None]:
    """Within, the model's macro weights are in the format `name`; None: nothing happens.

    Gradients that arise within belong to the rounded weights and are left for the float32 ones.
    """
    if name is None:
        yield
        return
    parameters = macro_weights(model)
    values = _round_all(parameters, name, fake)
    masters = {key: parameter.data for key, parameter in parameters.items()}
    for key, parameter in parameters.items():
        parameter.data = values[key]
    try:
        yield
    finally:
        for key, parameter in parameters.items():
            parameter.data = masters[key]


class Precision:
    """Where a run stands in its formats, and the record of the rule.

    Attributes: `format`, of the weights now (None: float32); `log`, a row a measurement.
    """

    def __init__(self, formats: tuple[str, ...], *, patience: int, tolerance: float, latest: float) -> None:
        self.formats, self.patience, self.tolerance, self.latest = formats, patience, tolerance, latest
        self.at = self.allowed = 0
        self.log: list[dict] = []

    @property
    def format(self) -> str | None:
        return self.formats[self.at - 1] if self.at else None

    @property
    def next(self) -> str | None:
        """The format to come; None when there is none."""
        return self.formats[self.at] if self.at < len(self.formats) else None

    def force(self, step: int, progress: float) -> None:
        """Enter the last format once `latest` is reached."""
        if self.next is not None and progress >= self.latest:
            self.at, self.allowed = len(self.formats), 0
            self.log.append({"step": step, "next": self.format, "ratio": None, "rate": None, "entered": True})

    def decide(self, step: int, ratio: float, rate: float) -> None:
        """Take in one measurement of the rule's ratio, at this share of the largest learning rate."""
        assert self.next is not None
        self.allowed = self.allowed + 1 if rate * ratio <= self.tolerance else 0
        row = {"step": step, "next": self.next, "ratio": round(ratio, 4), "rate": round(rate, 4)}
        if self.allowed >= self.patience:
            self.at, self.allowed = self.at + 1, 0
        self.log.append({**row, "entered": self.format == row["next"]})


def gradient_ratio(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    now: str | None,
    then: str,
    fake: Callable = fake_weights,
) -> float:
    """The rule's ratio r; `loss(n)` is the loss on batch n (0: A, 1: B). Leaves no gradients."""

    def gradient(batch: int, name: str | None) -> list[Tensor]:
        with rounded(model, name, fake):
            loss(batch).backward()
        kept = [p.grad.detach().clone() for p in macro_weights(model).values() if p.grad is not None]
        model.zero_grad(set_to_none=True)
        return kept

    def distance(a: list[Tensor], b: list[Tensor]) -> float:
        return float(sum((x - y).square().sum() for x, y in zip(a, b, strict=True)).sqrt())

    first, other, coarse = gradient(0, now), gradient(1, now), gradient(0, then)
    return distance(coarse, first) / max(distance(other, first), 1e-30)
