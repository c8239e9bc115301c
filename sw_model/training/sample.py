"""Continuations of many prompts at once, with kept keys and values."""

import torch
from torch import Tensor

from sw_model.training.model import Model, Past

__all__ = ["continuations"]


@torch.no_grad()
def continuations(
    model: Model, prompts: Tensor, length: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """`length` bytes, one by one, after each of prompts [B, T]: int64 [B, length].

    Always the likeliest byte, or, with a `generator`, drawn as the model thinks likely. T + length may not
    exceed the model's context.
    """
    training = model.training
    model.eval()
    pasts = [Past(prompts.shape[1] + length) for _ in model.layers]
    result, tokens, start = [], prompts, 0
    for _ in range(length):
        here = slice(start, start + tokens.shape[1])
        x = model.embedding(tokens)
        for layer, past in zip(model.layers, pasts, strict=True):
            x, _ = layer(x, model.cos[here], model.sin[here], past)
        start = here.stop
        logits = model.head(model.norm(x[:, -1]))
        if generator is None:
            tokens = logits.argmax(dim=-1, keepdim=True)
        else:
            tokens = torch.multinomial(logits.float().softmax(dim=-1), 1, generator=generator)
        result.append(tokens)
    model.train(training)
    return torch.cat(result, dim=1)
