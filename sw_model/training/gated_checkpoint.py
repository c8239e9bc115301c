"""A checkpoint with the whole gate of its `gate.json`, in torch and float32, for measuring on much text.

The rule is that of `sw_model/reference_gate.py` (its docstring and `docs/gate.md` have the formulas), on all
tokens at once; the domain is found by the gate's own rows.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sw_model import gate_file
from sw_model.gate import INFO_FRACTION, Q_MIN, Gate
from sw_model.training.model import Model, ModelConfig, MoE, load_checkpoint

__all__ = ["GateFileMoE", "GateFileModel"]

_UNIT = 256.0


class GateFileMoE(MoE):
    """A block that keeps only the candidates that the gate admits.

    Attributes: `information` [N] of the tokens that come next; `kept` and `tokens`, counted so far.
    """

    def __init__(self, config: ModelConfig, gate: Gate) -> None:
        super().__init__(config)
        self.gate_file = gate
        self.information = torch.empty(0)
        self.kept = self.tokens = 0

        def keep(name: str, value: np.ndarray | None) -> None:
            self.register_buffer(name, None if value is None else torch.from_numpy(np.float32(value)), False)

        keep("density_row", gate.density_row)
        keep("domain_rows", gate.domain_rows)
        keep("bias", gate.domain_bias / _UNIT)
        keep("cost", gate.cost / _UNIT)
        keep("tau", np.array([-np.inf if t <= Q_MIN else t / _UNIT for t in gate.tau]))

    def admit(self, x: Tensor, probability: Tensor, weight: Tensor) -> Tensor:
        """Which experts stay (0 or 1) [N, E], for x [N, H] and what `route` gave."""
        g = self.gate_file
        chosen = probability.topk(self.top_k, dim=-1).indices
        entropy = -(probability * probability.clamp(min=1e-30).log2()).sum(-1) / np.log2(len(self.gate))
        density = g.info / _UNIT * self.information + g.entropy / _UNIT * entropy
        if self.density_row is not None:
            density = density + x.float() @ self.density_row
        domain = torch.zeros(len(x), dtype=torch.long, device=x.device)
        if self.domain_rows is not None:
            domain = (x.float() @ self.domain_rows.T).argmax(dim=-1)
        u = weight.gather(1, chosen).clamp(min=2.0**-126).log2() + self.bias[domain].gather(1, chosen)
        rank = (-u).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
        allowed = (density[:, None] >= self.tau).sum(dim=1)
        worth = u + g.density / _UNIT * density[:, None] - g.lam / _UNIT * self.cost[chosen]
        stays = (rank < allowed[:, None]) & (rank < g.cap)
        for value, threshold in ((u, g.phi), (worth, g.psi)):
            if threshold > Q_MIN:
                stays &= value >= threshold / _UNIT
        return torch.zeros_like(probability).scatter(1, chosen, stays.float())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            probability, _, weight = self.route(x)
            stays = self.admit(x, probability, weight)
        self.kept, self.tokens = self.kept + stays.sum(), self.tokens + len(x)
        return self.combine(x, weight * stays), x.new_zeros(())


class GateFileModel(Model):
    """A checkpoint's model with :class:`GateFileMoE` blocks."""

    def __init__(self, folder: Path) -> None:
        source = load_checkpoint(folder)
        super().__init__(source.config)
        file = gate_file.load(folder / "gate.json")
        for n, layer in enumerate(self.layers):
            layer.moe = GateFileMoE(source.config, file.gate(n))
        self.load_state_dict(source.state_dict())
        table = np.zeros(256) if file.information is None else file.information / 2**INFO_FRACTION
        self.register_buffer("information", torch.from_numpy(np.float32(table)), persistent=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        information = F.embedding(tokens, self.information[:, None]).flatten()
        for layer in self.layers:
            layer.moe.information = information
        return super().forward(tokens)

    @property
    def mean_experts(self) -> list[float]:
        """By layer, of all tokens since the model was made."""
        return [float(layer.moe.kept / max(layer.moe.tokens, 1)) for layer in self.layers]


def moes(model: nn.Module) -> list[MoE]:
    """The MoE blocks of a model."""
    return [module for module in model.modules() if isinstance(module, MoE)]
