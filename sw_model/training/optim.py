"""Muon for stacks of matrices: momentum whose update is orthogonalised by Newton-Schulz steps.

torch's own Muon takes one two-dimensional parameter at a time; here a layer's experts are one stacked
parameter, and all matrices of one shape go through a single batched product.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sw_model.training.recipe import Recipe

__all__ = ["Muon", "optimisers", "orthogonalise"]


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest orthogonal matrices, roughly: [N, m, n] with m <= n, singular values to about 0.7 ... 1.2.

    Iterates X <- a X + (b A + c A A) X with A = X X^T. The quintic's coefficients trade accuracy for speed.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Parameters: tensors whose last two axes are matrices. Decoupled weight decay, Nesterov momentum.

    The update of an [m, n] matrix is scaled by sqrt(max(1, m / n)): one learning rate then fits all shapes.
    `compiled` runs the orthogonalisation through torch.compile.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        compiled: bool = False,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._orthogonalise = torch.compile(orthogonalise) if compiled else orthogonalise

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])
                wide = update if update.shape[-2] <= update.shape[-1] else update.mT
                stack = wide.reshape(-1, *wide.shape[-2:])
                by_shape.setdefault(tuple(stack.shape[-2:]), []).append((parameter, stack))
            for members in by_shape.values():
                done = self._orthogonalise(torch.cat([stack for _, stack in members]))
                for (parameter, _), part in zip(
                    members, done.split([len(s) for _, s in members]), strict=True
                ):
                    rows, columns = parameter.shape[-2:]
                    oriented = part if rows <= columns else part.mT
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(
                        oriented.reshape(parameter.shape),
                        alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5,
                    )


def optimisers(model: nn.Module, recipe: Recipe, *, compiled: bool) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices between layers; embedding, head, router and vectors are not of that kind, and the
    gate's rows have a rate of their own. Each group's rate at its largest is its `base`."""
    matrices, others, rows = [], [], []
    for name, parameter in model.named_parameters():
        inner = parameter.dim() > 1 and name.startswith("layers.") and "router" not in name
        if "density" in name:
            rows.append(parameter)
        else:
            (matrices if inner and min(parameter.shape[-2:]) > 1 else others).append(parameter)
    muon = Muon(
        matrices,
        lr=recipe.matrix_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        compiled=compiled,
    )
    for group in muon.param_groups:
        group["base"] = recipe.matrix_rate
    groups = [{"params": others, "base": recipe.other_rate}, {"params": rows, "base": recipe.density_rate}]
    return muon, torch.optim.AdamW(groups, lr=recipe.other_rate, betas=(0.9, 0.98), weight_decay=0.0)
