"""What a checkpoint family has to say: its layers, its MoE rule, and the shape of its decoder."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sw_model.errors import ExpertileError
from sw_model.moe import MoELayer

__all__ = ["DecoderShape", "Family", "Fields", "ReadTensor"]

ReadTensor = Callable[[str, tuple[int, ...]], np.ndarray]
"""``read(name, shape) -> float32 array``; ExpertileError if the tensor is absent or of another shape."""


class Fields:
    """Typed, bounded reading of ``config.json``: a bad value is one line, never a surprise further down.

    Parameters
    ----------
    config : the parsed JSON object
    where : name of the file, for messages
    """

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._config = config
        self._where = where

    def _bad(self, name: str, need: str) -> ExpertileError:
        shown = repr(self._config.get(name))
        shown = shown if len(shown) <= 40 else shown[:37] + "..."
        return ExpertileError(f"{self._where}: {name} is {shown}: {need} is needed")

    def has(self, name: str) -> bool:
        """Whether the key is there with a value other than null."""
        return self._config.get(name) is not None

    def integer(self, name: str, default: int | None = None, *, least: int = 1, most: int = 1 << 20) -> int:
        """An integer in [least, most]; without a default the key must be there."""
        if default is not None and not self.has(name):
            return default
        value = self._config.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self._bad(name, f"an integer from {least} to {most}")
        return value

    def number(self, name: str, default: float) -> float:
        """A positive finite number."""
        value = self._config.get(name) if self.has(name) else default
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self._bad(name, "a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self._config.get(name) if self.has(name) else default
        if not isinstance(value, bool):
            raise self._bad(name, "true or false")
        return value

    def integers(self, name: str) -> list[int]:
        """A list of integers, empty where the key is absent."""
        value = self._config.get(name) if self.has(name) else []
        if not isinstance(value, list) or not all(isinstance(v, int) for v in value):
            raise self._bad(name, "a list of integers")
        return value

    def only(self, name: str, supported: str | bool) -> None:
        """The key is absent or holds the one value that this reader supports."""
        if self.has(name) and self._config[name] != supported:
            raise self._bad(name, f"{supported!r} (the only value supported)")

    def section(self, name: str) -> "Fields":
        """A nested object, empty where absent."""
        value = self._config.get(name) if self.has(name) else {}
        if not isinstance(value, dict):
            raise self._bad(name, "an object")
        return Fields(value, f"{self._where}: {name}")


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Everything outside the MoE blocks, in the vocabulary of the decoder.

    Attributes
    ----------
    layers, hidden, vocabulary, heads, kv_heads, head_dim : int
    positions : int
        Longest context the model was made for.
    rope_theta, norm_eps : float
    qkv_bias : bool
        Whether q, k and v projections have biases.
    tied : bool
        The head is the embedding.
    bos : int or None
        Token that begins every text.
    dense_intermediate : int
        Width of the SwiGLU block in layers that are not MoE (0: every layer is MoE).
    """

    layers: int
    hidden: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    positions: int
    rope_theta: float
    norm_eps: float
    qkv_bias: bool
    tied: bool
    bos: int | None
    dense_intermediate: int


class Family(Protocol):
    """A module of this package, one a ``model_type``: it maps names and states rules, nothing else."""

    MODEL_TYPE: str

    def decoder_shape(self, fields: Fields) -> DecoderShape:
        """The decoder around the MoE blocks."""
        ...

    def moe_layers(self, fields: Fields) -> list[int]:
        """Numbers of the layers whose block is MoE, ascending."""
        ...

    def moe_layer(self, fields: Fields, layer: int, read: ReadTensor) -> MoELayer:
        """Layer ``layer``, which is one of :meth:`moe_layers`."""
        ...
