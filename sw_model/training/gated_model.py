"""The reference model with level 3 of the gate in every MoE block, to be trained with it on.

A block's candidates are the top k of its router, with weights w. A token of domain g keeps expert e if

    s_e = log2 w_e + B[g][e] + v . x  >=  psi,      B[g][e] = log2 of the mean norm of E_e(x) in domain g

The row v (``density``) is trained, B and psi are followed. Three things make that differentiable:

- **Straight through.** Forward the mask is 0 or 1; backward it is sigmoid((s - psi) / SOFT).
- **Price.** psi is the dual variable of the budget: the price of an expert in octaves, which rises while the
  block uses more than its target and falls while it uses less (:meth:`GatedMoE.pay`).
- **Constraint.** In the gradient psi moves with the scores so that the mean number of experts stays:
  d psi = sum slope_i d s_i / sum slope_i. Without it the scores would all drift upwards, for nothing.
"""

import math

import torch
from torch import Tensor, nn

from sw_model.training.model import Model, ModelConfig, MoE

__all__ = ["GatedMoE", "GatedModel"]

SOFT = 0.5  # octaves
FLOOR = 2.0**-16  # least weight that the score tells apart


class GatedMoE(MoE):
    """A block of ``moe``'s weights whose candidates may be dropped.

    Attributes: `density` v; `psi`, `loudness` B [domains, E]: buffers that :class:`GatedModel` keeps.
    """

    def __init__(self, config: ModelConfig, domains: int) -> None:
        super().__init__(config)
        self.density = nn.Linear(config.hidden, 1, bias=False)
        self.register_buffer("psi", torch.tensor(-math.inf))
        self.register_buffer("loudness", torch.zeros(domains, config.experts))

    def scores(self, x: Tensor, weight: Tensor, domain: Tensor) -> Tensor:
        """s [N, E]; of candidates it means something."""
        with torch.autocast(x.device.type, enabled=False):
            return weight.clamp(min=FLOOR).log2() + self.loudness[domain] + self.density(x.float())

    def gated(self, x: Tensor, domain: Tensor, on: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(y [N, H], load-balancing loss, mean experts of the tokens that are ``on`` [N], 0 or 1)."""
        probability, mask, weight = self.route(x)
        score = self.scores(x, weight, domain)
        live = mask * on[:, None]
        with torch.no_grad():
            slope = torch.sigmoid((score - self.psi) / SOFT)
            slope = slope * (1 - slope) * live
            slope = slope / slope.sum().clamp(min=1e-9)
        moved = (slope * score).sum()
        soft = torch.sigmoid((score - self.psi - (moved - moved.detach())) / SOFT)
        hard = (score >= self.psi).to(soft.dtype)
        keep = hard + soft - soft.detach()
        used = (hard * live).sum().detach() / on.sum().clamp(min=1)
        weight = weight * (keep * on[:, None] + 1 - on[:, None])
        share = mask.mean(dim=0) / self.top_k
        balance = len(self.gate) * (share * probability.mean(dim=0)).sum()
        return self.combine(x, weight), balance, used

    @torch.no_grad()
    def pay(self, excess: Tensor, rate: float) -> None:
        """Move the price by what the last batch used over the target."""
        self.psi += rate * excess

    @torch.no_grad()
    def settle(self, x: Tensor, domain: Tensor, target: float) -> None:
        """B from the norms of the experts' outputs on x [N, H], and psi as the order statistic for target."""
        _, mask, weight = self.route(x)
        mean = torch.zeros_like(self.loudness)
        for e in range(len(self.gate)):
            inside = torch.nn.functional.silu(x @ self.gate[e].T) * (x @ self.up[e].T)
            norm = (inside @ self.down[e]).norm(dim=-1)
            everywhere = (norm * mask[:, e]).sum() / mask[:, e].sum().clamp(min=1)
            for g in range(len(mean)):
                chosen = mask[:, e] * (domain == g)
                mean[g, e] = (norm * chosen).sum() / chosen.sum() if chosen.sum() >= 16 else everywhere
        self.loudness.copy_(mean.clamp(min=1e-9).log2())
        score = self.scores(x, weight, domain)[mask > 0]
        keep = min(round(target * len(x)), len(score))
        self.psi.copy_(score.sort(descending=True).values[keep - 1])


def _step(
    layer: nn.Module, x: Tensor, cos: Tensor, sin: Tensor, domain: Tensor, on: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    x = x + layer.dropout(layer.attention(layer.attention_norm(x), cos, sin))
    inner = layer.moe_norm(x).flatten(0, 1)
    if on is None:
        y, balance = layer.moe(inner)
        used = balance.new_full((), layer.moe.top_k)
    else:
        y, balance, used = layer.moe.gated(inner, domain, on)
    return x + layer.dropout(y.view_as(x)), balance, used


class GatedModel(Model):
    """:class:`Model` with :class:`GatedMoE` blocks.

    Called with tokens alone it answers as `mode` says ("top": all candidates, "first": the best candidate
    with its weight, "gated": in domain `domain`), so that it can be measured like any model.
    """

    def __init__(self, config: ModelConfig, *, domains: int, dropout: float = 0.0) -> None:
        super().__init__(config, dropout=dropout)
        for layer in self.layers:
            layer.moe = GatedMoE(config, domains)
        self._initialise()
        for layer in self.layers:
            nn.init.zeros_(layer.moe.density.weight)
        self.mode, self.domain = "top", 0

    @classmethod
    def of(cls, model: Model, *, domains: int) -> "GatedModel":
        """With the weights of ``model``; its gate is open."""
        gated = cls(model.config, domains=domains)
        missing, _ = gated.load_state_dict(model.state_dict(), strict=False)
        assert all(name.rsplit(".", 1)[-1] in ("psi", "loudness") or "density" in name for name in missing)
        return gated

    def checkpoint_state(self) -> dict[str, Tensor]:
        """The state without the gate's part: what a checkpoint of the family holds."""
        gate = ("moe.psi", "moe.loudness", "moe.density.weight")
        return {name: value for name, value in self.state_dict().items() if not name.endswith(gate)}

    def act8(self, on: bool) -> None:
        """Round what the experts take in, or not."""
        for layer in self.layers:
            layer.moe.act8 = on

    def gated(self, tokens: Tensor, domain: Tensor, on: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Of tokens [B, T], rows' domains [B] and whether each row is gated [B] (0.0 or 1.0; None: no gate):
        logits, mean load-balancing loss, and mean experts of the gated tokens by layer."""
        length = tokens.shape[1]
        domain = domain.repeat_interleave(length)
        on = None if on is None else on.repeat_interleave(length)
        x, balances, used = self.dropout(self.embedding(tokens)), [], []
        for layer in self.layers:
            x, balance, mean = _step(layer, x, self.cos[:length], self.sin[:length], domain, on)
            balances.append(balance)
            used.append(mean)
        return self.head(self.norm(x)), torch.stack(balances).mean(), torch.stack(used)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        if self.mode == "gated":
            rows = torch.full((len(tokens),), self.domain, device=tokens.device)
            logits, balance, _ = self.gated(tokens, rows, torch.ones(len(tokens), device=tokens.device))
            return logits, balance
        if self.mode == "first":
            return self._first(tokens)
        return super().forward(tokens)

    def _first(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embedding(tokens)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        for layer in self.layers:
            x = x + layer.attention(layer.attention_norm(x), cos, sin)
            inner = layer.moe_norm(x).flatten(0, 1)
            weight = layer.moe.route(inner)[2]
            best = weight == weight.amax(dim=-1, keepdim=True)
            x = x + layer.moe.combine(inner, weight * best).view_as(x)
        return self.head(self.norm(x)), x.new_zeros(())

    @torch.no_grad()
    def settle(self, tokens: Tensor, domain: Tensor, target: float) -> None:
        """Settle every block in turn, each on what the gated blocks before it give."""
        training = self.training
        self.eval()
        length = tokens.shape[1]
        x, on = self.embedding(tokens), torch.ones(tokens.numel(), device=tokens.device)
        rows, cos, sin = domain.repeat_interleave(length), self.cos[:length], self.sin[:length]
        for layer in self.layers:
            inner = layer.moe_norm(x + layer.attention(layer.attention_norm(x), cos, sin))
            layer.moe.settle(inner.flatten(0, 1), rows, target)
            x, _, _ = _step(layer, x, cos, sin, rows, on)
        self.train(training)
