"""Distillation: the student learns from the teacher's distribution over the next byte.

    loss = (1 - a) * CE(text, student) + a * sum_x P_teacher(x) (-log P_student(x)),      a = recipe.distil

The second term is the KL divergence but for the teacher's own entropy, which has no gradient.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sw_model.training.model import Layer, Model, load_checkpoint

__all__ = ["Teacher", "losses"]


class Teacher(nn.Module):
    """A trained model that only answers."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        super().__init__()
        self.model: Model = load_checkpoint(folder).to(device).eval().requires_grad_(False)
        self.step = torch.compile(Layer.forward, dynamic=False) if device.type == "cuda" else Layer.forward

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        """Probabilities of the next byte, float32 [B, T, vocabulary]."""
        x, length = self.model.embedding(tokens), tokens.shape[1]
        for layer in self.model.layers:
            x, _ = self.step(layer, x, self.model.cos[:length], self.model.sin[:length])
        return F.softmax(self.model.head(self.model.norm(x)).float(), dim=-1)


def losses(logits: Tensor, targets: Tensor, teacher: Tensor | None, weight: float) -> tuple[Tensor, Tensor]:
    """(the loss above, the text's nats a byte); `teacher` are probabilities, None: the text alone."""
    log_p = F.log_softmax(logits.float(), dim=-1)
    nats = F.nll_loss(log_p.flatten(0, 1), targets.flatten())
    if teacher is None:
        return nats, nats
    soft = -(teacher * log_p).sum(dim=-1).mean()
    return (1 - weight) * nats + weight * soft, nats
