"""One Mixture-of-Experts layer in plain float32: what a checkpoint reader gives and a quantiser takes.

The layer computes, for a token ``x`` of ``H`` numbers,

    l      = router x + router_bias
    s      = softmax(l) or sigmoid(l)                                    rule.scoring
    c      = s + selection_bias                                          used for the choice alone
    S      = the top_k largest c within the top_groups best groups, ties to the lowest index
    w_e    = scale * s_e / (sum over S of s if renormalise else 1)
    E_e(x) = down_e h + down_bias,   h = act(gate_e x + gate_bias, up_e x + up_bias)
    y      = sum over S of w_e E_e(x)  +  sigmoid(shared_gate . x) * E_shared(x)

where the last term is absent without a shared expert and its sigmoid is 1 without a ``shared_gate``. The
score of a group is its largest c, or the sum of its two largest (``rule.group_score``).

    act(g, u) = silu(g) * u                                              Activation.SILU
    act(g, u) = (u + 1) * g * sigmoid(1.702 g), g <= limit, |u| <= limit  Activation.CLAMPED (gpt_oss)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

import numpy as np

from .coded import CodedMatrix
from .errors import ExpertileError

__all__ = ["CLAMPED_ALPHA", "Activation", "Expert", "MoELayer", "RouterRule"]

CLAMPED_ALPHA = 1.702


class Activation(Enum):
    """What an expert does between its projections."""

    SILU = "silu"
    CLAMPED = "clamped"


def _check(name: str, array: object, shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        kind = getattr(array, "dtype", type(array).__name__)
        raise ExpertileError(f"{name} is {kind}: a MoE layer holds float32 arrays")
    if array.shape != shape:
        raise ExpertileError(f"{name} has shape {list(array.shape)}: {list(shape)} is needed here")


@dataclass(frozen=True, kw_only=True)
class RouterRule:
    """How scores become a choice and weights; see the module's equations.

    Attributes
    ----------
    top_k : experts a token visits
    renormalise : divide the chosen weights by their sum
    scoring : "softmax" over all experts, or "sigmoid" of each
    scale : factor on every weight, below 64
    groups, top_groups, group_score : group-limited choice; 1 group means none
    """

    top_k: int
    renormalise: bool
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    group_score: Literal["max", "top2"] = "max"


@dataclass(frozen=True, kw_only=True, eq=False)
class Expert:
    """One expert of width ``I``.

    Attributes
    ----------
    gate, up : ndarray float32 [I, H]
    down : ndarray float32 [H, I]
    gate_bias, up_bias : ndarray float32 [I] or None
    down_bias : ndarray float32 [H] or None
    coded : for a checkpoint that is already quantised, the codes behind "gate", "up" and "down"
    """

    gate: np.ndarray
    up: np.ndarray
    down: np.ndarray
    gate_bias: np.ndarray | None = None
    up_bias: np.ndarray | None = None
    down_bias: np.ndarray | None = None
    coded: Mapping[str, CodedMatrix] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.gate, np.ndarray) or self.gate.ndim != 2:
            raise ExpertileError("expert gate is not a matrix: [intermediate, hidden] is needed")
        wide, hidden = self.gate.shape
        _check("expert gate", self.gate, (wide, hidden))
        _check("expert up", self.up, (wide, hidden))
        _check("expert down", self.down, (hidden, wide))
        biases = {"gate_bias": wide, "up_bias": wide, "down_bias": hidden}
        given = {name: getattr(self, name) is not None for name in biases}
        if any(given.values()) and not all(given.values()):
            raise ExpertileError("expert has some of gate_bias, up_bias, down_bias: give all or none")
        if self.biased:
            for name, size in biases.items():
                _check(f"expert {name}", getattr(self, name), (size,))

    @property
    def hidden(self) -> int:
        """H, numbers in a token."""
        return int(self.gate.shape[1])

    @property
    def intermediate(self) -> int:
        """I, width between the two projections."""
        return int(self.gate.shape[0])

    @property
    def biased(self) -> bool:
        """Whether its projections have biases."""
        return self.gate_bias is not None


@dataclass(frozen=True, kw_only=True, eq=False)
class MoELayer:
    """A router, its experts and at most one shared expert that every token visits.

    Attributes
    ----------
    router : ndarray float32 [E, H]
    rule : RouterRule
    experts : tuple of E :class:`Expert`, all of one width
    router_bias : ndarray float32 [E] or None, added to the logits
    selection_bias : ndarray float32 [E] or None, added to the scores for the choice alone
    activation, limit : of every expert; the limit is that of Activation.CLAMPED
    shared : Expert or None
    shared_gate : ndarray float32 [H] or None
        None: the shared expert is added ungated.

    Raises
    ------
    ExpertileError
        Shapes that do not fit each other, dtypes other than float32, or a rule out of range.
    """

    router: np.ndarray
    rule: RouterRule
    experts: tuple[Expert, ...]
    router_bias: np.ndarray | None = None
    selection_bias: np.ndarray | None = None
    activation: Activation = Activation.SILU
    limit: float = 7.0
    shared: Expert | None = None
    shared_gate: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not self.experts:
            raise ExpertileError("a MoE layer needs at least one expert")
        _check("router", self.router, (len(self.experts), self.hidden))
        for name in ("router_bias", "selection_bias"):
            if getattr(self, name) is not None:
                _check(name, getattr(self, name), (len(self.experts),))
        for e, expert in enumerate(self.experts):
            if expert.gate.shape != (self.intermediate, self.hidden):
                raise ExpertileError(
                    f"expert {e} is {list(expert.gate.shape)} where expert 0 is "
                    f"{[self.intermediate, self.hidden]}: all experts of a layer share one shape"
                )
        if self.shared is not None and self.shared.hidden != self.hidden:
            raise ExpertileError(f"shared expert takes {self.shared.hidden} numbers, the layer {self.hidden}")
        if self.shared_gate is not None:
            if self.shared is None:
                raise ExpertileError("shared_gate without a shared expert: give both or neither")
            _check("shared_gate", self.shared_gate, (self.hidden,))
        if len({e.biased for e in self.everyone}) > 1:
            raise ExpertileError("some experts have biases and others not: all or none are supported")
        if self.activation is Activation.CLAMPED and not 0 < self.limit < 64:
            raise ExpertileError(f"activation limit is {self.limit}: it must lie between 0 and 64")
        self._check_rule()

    def _check_rule(self) -> None:
        rule, experts = self.rule, self.n_experts
        if rule.scoring not in ("softmax", "sigmoid") or rule.group_score not in ("max", "top2"):
            raise ExpertileError(f"router rule {rule}: unknown scoring or group score")
        if rule.groups < 1 or experts % rule.groups:
            raise ExpertileError(f"{experts} experts cannot be split into {rule.groups} groups evenly")
        if not 1 <= rule.top_groups <= rule.groups:
            raise ExpertileError(f"top_groups is {rule.top_groups}: 1 to {rule.groups} groups can be chosen")
        most = experts // rule.groups * rule.top_groups
        if not 1 <= rule.top_k <= most:
            raise ExpertileError(f"top_k is {rule.top_k}: 1 to {most} experts can be chosen")
        if not 0 < rule.scale < 64:
            raise ExpertileError(f"router scale is {rule.scale}: it must lie between 0 and 64")
        if self.selection_bias is not None and rule.scoring != "sigmoid":
            raise ExpertileError("a selection bias is supported with sigmoid scoring alone")
        if rule.group_score == "top2" and (rule.scoring != "sigmoid" or experts // rule.groups < 2):
            raise ExpertileError("groups scored by their top 2 need sigmoid scores and two experts a group")

    @property
    def everyone(self) -> tuple[Expert, ...]:
        """The routed experts, then the shared one if there is one."""
        return self.experts if self.shared is None else (*self.experts, self.shared)

    @property
    def hidden(self) -> int:
        """H, numbers in a token."""
        return self.experts[0].hidden

    @property
    def intermediate(self) -> int:
        """I, width of a routed expert."""
        return self.experts[0].intermediate

    @property
    def shared_intermediate(self) -> int:
        """Width of the shared expert, 0 without one."""
        return self.shared.intermediate if self.shared is not None else 0

    @property
    def n_experts(self) -> int:
        """E, routed experts."""
        return len(self.experts)
