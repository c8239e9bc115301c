"""The adversary: a small network that tells the teacher's continuations from the student's.

At every place of a text it sees the bytes so far through a causal window of 13 places, each with the
distribution that one of the two gives for the byte to come, and answers with a logit: teacher or student. A
continuation is thus a run of distributions, not of drawn bytes, so that its verdict has a gradient in the
student:

    adversary   minimise   BCE(D(teacher), 1) + BCE(D(student), 0)
    student     minimise   ... + weight * BCE(D(student), 1)
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Adversary"]


class Adversary(nn.Module):
    """Forward: tokens [B, T] and distributions [B, T, vocabulary] to logits [B, T].

    `learn` takes a step of its own optimiser.
    """

    def __init__(self, vocabulary: int, *, width: int = 64, rate: float = 1e-3) -> None:
        super().__init__()
        self.byte = nn.Embedding(vocabulary, width)
        self.distribution = nn.Linear(vocabulary, width)
        self.windows = nn.ModuleList(nn.Conv1d(width, width, 5) for _ in range(3))
        self.verdict = nn.Linear(width, 1)
        self.optimiser = torch.optim.AdamW(self.parameters(), lr=rate, betas=(0.5, 0.98))

    def forward(self, tokens: Tensor, distributions: Tensor) -> Tensor:
        # The square root lifts what is unlikely, where the two differ most.
        x = self.byte(tokens) + self.distribution((distributions + 1e-6).sqrt())
        x = x.transpose(1, 2)
        for window in self.windows:
            x = x + F.gelu(window(F.pad(x, (4, 0))))
        return self.verdict(x.transpose(1, 2)).squeeze(-1).float()

    def learn(self, tokens: Tensor, teacher: Tensor, student: Tensor) -> Tensor:
        """One step; the share of places that it told right before it."""
        real, made = self(tokens, teacher), self(tokens, student.detach())
        loss = F.softplus(-real).mean() + F.softplus(made).mean()
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return ((real > 0).float().mean() + (made < 0).float().mean()).detach() / 2

    def fooled(self, tokens: Tensor, student: Tensor) -> Tensor:
        """The student's loss; its gradient does not reach the adversary."""
        self.requires_grad_(False)
        loss = F.softplus(-self(tokens, student)).mean()
        self.requires_grad_(True)
        return loss
