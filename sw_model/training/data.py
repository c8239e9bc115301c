"""Training text on the device."""

from pathlib import Path

import torch
from torch import Tensor

from sw_model.training.corpus import load
from sw_model.training.model import BOS
from sw_model.training.sources import DOMAINS

__all__ = ["Text"]


class Text:
    """The training split of a built corpus.

    A batch depends on the seed and the step alone, so a resumed run sees what an unbroken one would.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        texts = [bytes([BOS]) + bytes([BOS]).join(load(folder, "train", domain)) for domain in DOMAINS]
        self.data = torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8).to(device)
        self.lengths = torch.tensor([len(text) for text in texts], device=device)
        self.starts = self.lengths.cumsum(0) - self.lengths

    def batch(
        self, rows: int, context: int, weights: list[float], *, seed: int, step: int
    ) -> tuple[Tensor, Tensor]:
        """Tokens int64 [rows, context + 1] and each row's domain; domains have their exact shares of the rows
        (`weights`, adding up to 1), the remainder drawn."""
        device = self.data.device
        generator = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
        draw = torch.rand(rows + 1, generator=generator, device=device, dtype=torch.float64)
        share = torch.tensor(weights, device=device, dtype=torch.float64).cumsum(0)[:-1]
        even = (torch.arange(rows, device=device, dtype=torch.float64) + draw[0]) / rows
        domain = torch.searchsorted(share, even, right=True)
        at = self.starts[domain] + (draw[1:] * (self.lengths[domain] - context)).long()
        return self.data[at[:, None] + torch.arange(context + 1, device=device)].long(), domain
