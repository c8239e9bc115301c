"""What a checkpoint family has to say: its layers, its MoE rule, and the shape of its decoder.

Beside the vocabulary (Fields, Tensors, DecoderShape) stand the shapes that several families share.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any, Protocol

import numpy as np

from sw_model.coded import CodedMatrix
from sw_model.errors import ExpertileError
from sw_model.moe import Expert, MoELayer

__all__ = [
    "DecoderShape",
    "Family",
    "Fields",
    "Matrix",
    "Tensors",
    "dense_then_moe",
    "every_layer",
    "expert",
    "expert_count",
    "llama_like",
    "named_expert",
    "named_experts",
    "no_decoder",
    "only_fp8",
    "shared_experts",
    "sparse_step",
    "top_k",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Matrix:
    """Weights float32 [out, in], and the codes behind them where they are stored quantised."""

    value: np.ndarray
    coded: CodedMatrix | None = None


class Tensors(Protocol):
    """The tensors of a checkpoint. Each method takes the shape that ``config.json`` promises.

    ExpertileError if a tensor is absent, of another shape or dtype, or not finite.
    """

    def has(self, name: str) -> bool:
        """Whether there is a tensor ``name``."""
        ...

    def floats(self, name: str, shape: tuple[int, ...], part: int | None = None) -> np.ndarray:
        """A tensor of floats as float32, or index ``part`` of its first axis; ``shape`` is that of it all."""
        ...

    def matrix(self, name: str, shape: tuple[int, int]) -> Matrix:
        """Weights [out, in]: floats, or FP8 with ``name_scale_inv``."""
        ...

    def mxfp4(self, stem: str, shape: tuple[int, int, int], part: int) -> Matrix:
        """Matrix ``part`` [out, in] of the MXFP4 stack ``shape`` = [n, out, in]."""
        ...


class Fields:
    """Typed, bounded reading of ``config.json``: a bad value is one line, never a surprise further down.

    Parameters
    ----------
    config : the parsed JSON object
    where : name of the file, for messages
    """

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._config = config
        self.where = where

    def _bad(self, name: str, need: str) -> ExpertileError:
        return ExpertileError(f"{self.where}: {name} is {short(self._config.get(name))}: {need} is needed")

    @property
    def layers(self) -> int:
        """Decoder layers, MoE or not."""
        return self.integer("num_hidden_layers", most=4096)

    def has(self, name: str) -> bool:
        """Whether the key is there with a value other than null."""
        return self._config.get(name) is not None

    def holds(self, name: str) -> bool:
        """Whether the key is there, be it with null."""
        return name in self._config

    def one_of(self, *names: str) -> str:
        """Which of several spellings of one thing is there; the first if none is.

        ExpertileError if two are there and do not agree.
        """
        there = [name for name in names if self.has(name)] or [names[0]]
        if any(self._config.get(name) != self._config.get(there[0]) for name in there):
            raise self._bad(there[0], f"the value of {there[1]}")
        return there[0]

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

    def only(self, name: str, supported: str | bool | float | list[int]) -> None:
        """The key is absent or holds the one value that this reader supports."""
        self.choice(name, supported)

    def choice(self, name: str, *supported: Any) -> Any:
        """One of the values that this reader supports; the first where the key is absent."""
        value = self._config.get(name) if self.has(name) else supported[0]
        if value not in supported:
            need = " or ".join(map(repr, supported))
            raise self._bad(name, f"{need} (nothing else is supported)")
        return value

    def section(self, name: str) -> "Fields":
        """A nested object, empty where absent."""
        value = self._config.get(name) if self.has(name) else {}
        if not isinstance(value, dict):
            raise self._bad(name, "an object")
        return Fields(value, f"{self.where}: {name}")


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
        """The decoder around the MoE blocks; ExpertileError if the NumPy decoder does not compute it."""
        ...

    def moe_layers(self, fields: Fields) -> list[int]:
        """Numbers of the layers whose block is MoE, ascending."""
        ...

    def moe_layer(self, fields: Fields, layer: int, tensors: Tensors) -> MoELayer:
        """Layer ``layer``, which is one of :meth:`moe_layers`."""
        ...


def expert_count(fields: Fields) -> int:
    """E under any of its three names."""
    return fields.integer(fields.one_of("num_experts", "num_local_experts", "n_routed_experts"), most=1 << 16)


def top_k(fields: Fields) -> int:
    """k under either of its names."""
    name = fields.one_of("num_experts_per_tok", "experts_per_token")
    return fields.integer(name, most=expert_count(fields))


def every_layer(fields: Fields) -> list[int]:
    """All layers are MoE."""
    return list(range(fields.layers))


def sparse_step(fields: Fields) -> list[int]:
    """Layer L is MoE unless it is listed in ``mlp_only_layers`` or off the ``decoder_sparse_step``."""
    dense = set(fields.integers("mlp_only_layers"))
    step = fields.integer("decoder_sparse_step", 1)
    return [n for n in range(fields.layers) if n not in dense and (n + 1) % step == 0]


def dense_then_moe(fields: Fields, first: int) -> list[int]:
    """Layer L is MoE from ``first_k_dense_replace`` on (``first`` where absent), every ``moe_layer_freq``."""
    first = fields.integer("first_k_dense_replace", first, least=0)
    step = fields.integer("moe_layer_freq", 1)
    return [n for n in range(fields.layers) if n >= first and n % step == 0]


def only_fp8(fields: Fields) -> None:
    """Refuse stored forms other than floats and FP8 in tiles of 128 x 128."""
    stored = fields.section("quantization_config")
    stored.only("quant_method", "fp8")
    stored.only("fmt", "e4m3")
    stored.only("weight_block_size", [128, 128])


def expert(gate: Matrix, up: Matrix, down: Matrix, **biases: np.ndarray) -> Expert:
    """An expert of three matrices, with their codes where there are any."""
    matrices = {"gate": gate, "up": up, "down": down}
    return Expert(
        **{name: m.value for name, m in matrices.items()},
        coded={name: m.coded for name, m in matrices.items() if m.coded is not None},
        **biases,
    )


def named_expert(
    tensors: Tensors,
    prefix: str,
    hidden: int,
    wide: int,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> Expert:
    """An expert whose matrices have tensors of their own, ``prefix + name + ".weight"``."""
    gate, up, down = (f"{prefix}{name}.weight" for name in names)
    return expert(
        tensors.matrix(gate, (wide, hidden)),
        tensors.matrix(up, (wide, hidden)),
        tensors.matrix(down, (hidden, wide)),
    )


def named_experts(tensors: Tensors, prefix: str, count: int, *shape: Any) -> tuple[Expert, ...]:
    """Experts 0 to ``count - 1`` below ``prefix``, each as :func:`named_expert` reads it."""
    return tuple(named_expert(tensors, f"{prefix}{e}.", *shape) for e in range(count))


def shared_experts(fields: Fields, tensors: Tensors, prefix: str, hidden: int, wide: int) -> Expert | None:
    """``n_shared_experts`` of width ``wide``, stored as one; null or 0 means none."""
    if fields.holds("n_shared_experts") and not fields.has("n_shared_experts"):
        return None
    count = fields.integer("n_shared_experts", least=0, most=1 << 10)
    return named_expert(tensors, prefix, hidden, count * wide) if count else None


def llama_like(
    fields: Fields, *, dense_layers: bool, qkv_bias: bool = False, theta: float = 10000.0, eps: float = 1e-6
) -> DecoderShape:
    """Rotary attention over all positions and RMSNorm; variants of its arithmetic are refused by name.

    ``qkv_bias``, ``theta`` and ``eps`` hold where ``config.json`` does not say.
    """
    fields.only("hidden_act", "silu")
    # New writers nest the rotary settings, old ones keep them at the top.
    rope = fields.section("rope_parameters") if fields.has("rope_parameters") else fields
    rope.only("rope_type", "default")
    fields.section("rope_scaling").only("rope_type", "default")
    fields.section("rope_scaling").only("type", "default")
    hidden = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    has_bos = fields.has("bos_token_id")
    vocabulary = fields.integer("vocab_size")
    return DecoderShape(
        layers=fields.layers,
        hidden=hidden,
        vocabulary=vocabulary,
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", heads),
        head_dim=fields.integer("head_dim", max(1, hidden // heads)),
        positions=fields.integer("max_position_embeddings", 32768, most=1 << 24),
        rope_theta=rope.number("rope_theta", theta),
        norm_eps=fields.number("rms_norm_eps", eps),
        qkv_bias=qkv_bias,
        tied=fields.flag("tie_word_embeddings", False),
        bos=fields.integer("bos_token_id", least=0, most=vocabulary - 1) if has_bos else None,
        dense_intermediate=fields.integer("intermediate_size") if dense_layers else 0,
    )


def no_decoder(fields: Fields, attention: str) -> ExpertileError:
    """The error of a family whose ``attention`` the NumPy decoder does not compute."""
    return ExpertileError(
        f"{fields.where}: {attention} is not supported: of this family, single layers can be run, not text"
    )
