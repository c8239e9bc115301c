"""The likeliest continuations of many prompts at once, with kept keys and values."""

import torch
from torch import Tensor

from sw_model.training.model import Model, Past

__all__ = ["continuations"]


@torch.no_grad()
def continuations(model: Model, prompts: Tensor, length: int) -> Tensor:
    """The `length` likeliest bytes, one by one, after each of prompts [B, T]: int64 [B, length].

    T + length may not exceed the model's context.
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
        tokens = model.head(model.norm(x[:, -1])).argmax(dim=-1, keepdim=True)
        result.append(tokens)
    model.train(training)
    return torch.cat(result, dim=1)
