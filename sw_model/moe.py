"""One Mixture-of-Experts layer in plain float32: what a checkpoint reader gives and a quantiser takes.

The layer computes, for a token ``x`` of ``H`` numbers,

    E_e(x) = down_e (silu(gate_e x) * (up_e x))
    p      = softmax(router x);  S = the top_k largest, ties to the lowest index
    w_e    = p_e / sum_{S} p  if renormalise else p_e
    y      = sum_{e in S} w_e E_e(x) + sigmoid(shared_gate . x) * E_shared(x)

where the last term is absent without a shared expert and its sigmoid is 1 without a ``shared_gate``.
"""

from dataclasses import dataclass

import numpy as np

from sw_model.errors import ExpertileError

__all__ = ["Expert", "MoELayer"]


def _check(name: str, array: object, shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        kind = getattr(array, "dtype", type(array).__name__)
        raise ExpertileError(f"{name} is {kind}: a MoE layer holds float32 arrays")
    if array.shape != shape:
        raise ExpertileError(f"{name} has shape {list(array.shape)}: {list(shape)} is needed here")


@dataclass(frozen=True, kw_only=True, eq=False)
class Expert:
    """One SwiGLU expert of width ``I``.

    Attributes
    ----------
    gate, up : ndarray float32 [I, H]
    down : ndarray float32 [H, I]
    """

    gate: np.ndarray
    up: np.ndarray
    down: np.ndarray

    def __post_init__(self) -> None:
        if not isinstance(self.gate, np.ndarray) or self.gate.ndim != 2:
            raise ExpertileError("expert gate is not a matrix: [intermediate, hidden] is needed")
        wide, hidden = self.gate.shape
        _check("expert gate", self.gate, (wide, hidden))
        _check("expert up", self.up, (wide, hidden))
        _check("expert down", self.down, (hidden, wide))

    @property
    def hidden(self) -> int:
        """H, numbers in a token."""
        return int(self.gate.shape[1])

    @property
    def intermediate(self) -> int:
        """I, width between the two projections."""
        return int(self.gate.shape[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class MoELayer:
    """A router, its experts and at most one shared expert that every token visits.

    Attributes
    ----------
    router : ndarray float32 [E, H]
    experts : tuple of E :class:`Expert`, all of one width
    shared : Expert or None
    shared_gate : ndarray float32 [H] or None
        None: the shared expert is added ungated.
    top_k : int
        Experts a token visits, 1..E.
    renormalise : bool
        Divide the chosen weights by their sum.

    Raises
    ------
    ExpertileError
        Shapes that do not fit each other, dtypes other than float32, or ``top_k`` out of range.
    """

    router: np.ndarray
    experts: tuple[Expert, ...]
    shared: Expert | None = None
    shared_gate: np.ndarray | None = None
    top_k: int
    renormalise: bool

    def __post_init__(self) -> None:
        if not self.experts:
            raise ExpertileError("a MoE layer needs at least one expert")
        _check("router", self.router, (len(self.experts), self.hidden))
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
        if not 1 <= self.top_k <= self.n_experts:
            raise ExpertileError(f"top_k is {self.top_k}: 1 to {self.n_experts} experts can be chosen")

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
