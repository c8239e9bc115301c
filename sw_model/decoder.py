"""The decoder around the MoE blocks, in NumPy float32, so that text comes out of any MoE engine.

For each layer, with r the residual stream of T tokens,

    r = r + o (softmax(q k^T / sqrt(d) + mask) v)       q, k, v from RMSNorm(r), rotated by position
    r = r + block(RMSNorm(r))                           block: the MoE callable, or a dense SwiGLU

and logits = head RMSNorm(r). Keys and values of earlier tokens are kept, so a text may be fed in pieces.
"""

from collections.abc import Callable, Iterator

import numpy as np

from sw_model import reference
from sw_model.attention import visible
from sw_model.checkpoint import Checkpoint
from sw_model.errors import ExpertileError

__all__ = ["Decoder", "MoEBlock", "generate", "layer_inputs", "sample"]

MoEBlock = Callable[[int, np.ndarray], np.ndarray]
"""``moe(layer, x float32 [T, H]) -> y [T, H]``"""


class Decoder:
    """One sequence through the model, some tokens at a time.

    Parameters
    ----------
    checkpoint : Checkpoint
        Everything but the MoE blocks is read from it now, about ``4 * parameters`` bytes.
    moe : callable (layer, x [T, H]) -> y [T, H]
        The MoE blocks.

    Attributes
    ----------
    shape : DecoderShape
    position : int
        Tokens seen since the last :meth:`reset`.
    sparse_attention : int
        Level of :mod:`sw_model.attention` for the next tokens; 0, all keys, until it is set.
    attention_reads : int64 [T]
        Vectors of ``head_dim`` numbers read from keys and values for each of the last tokens, all layers.
    """

    def __init__(self, checkpoint: Checkpoint, moe: MoEBlock) -> None:
        self.shape = s = checkpoint.shape
        self.sparse_attention = 0
        self.attention_reads = np.zeros(0, dtype=np.int64)
        self._moe = moe
        if s.heads % s.kv_heads:
            raise ExpertileError(f"{checkpoint.folder}: {s.heads} heads cannot share {s.kv_heads} of keys")
        if s.head_dim % 2:
            raise ExpertileError(f"{checkpoint.folder}: head_dim is {s.head_dim}: rotation needs pairs")
        tensor = checkpoint.tensor
        self._embedding = tensor("model.embed_tokens.weight", (s.vocabulary, s.hidden))
        self._head = self._embedding if s.tied else tensor("lm_head.weight", (s.vocabulary, s.hidden))
        self._norm = tensor("model.norm.weight", (s.hidden,))
        moe_layers = set(checkpoint.moe_layers)
        self._layers = [_Layer(checkpoint, n, is_moe=n in moe_layers) for n in range(s.layers)]
        half = np.arange(0, s.head_dim, 2, dtype=np.float64)
        self._frequencies = s.rope_theta ** (-half / s.head_dim)
        self.reset()

    def reset(self) -> None:
        """Forget the sequence."""
        self.position = 0
        for layer in self._layers:
            layer.keys = layer.values = np.zeros((self.shape.kv_heads, 0, self.shape.head_dim), np.float32)

    def forward(self, token_ids: np.ndarray | list[int] | bytes) -> np.ndarray:
        """Append T tokens to the sequence.

        Parameters
        ----------
        token_ids : T integers in 0..vocabulary-1; bytes count as integers

        Returns
        -------
        ndarray float32 [T, vocabulary]
            Row t: logits of the token after ``token_ids[t]``.

        Raises
        ------
        ExpertileError
            An id out of range, no token at all, or more tokens than the model has positions.
        """
        ids = np.frombuffer(token_ids, np.uint8) if isinstance(token_ids, bytes) else np.asarray(token_ids)
        if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
            raise ExpertileError("tokens are a list of one or more integers")
        if ids.min() < 0 or ids.max() >= self.shape.vocabulary:
            raise ExpertileError(f"token {ids.max()}: the vocabulary is 0 to {self.shape.vocabulary - 1}")
        if self.position + ids.size > self.shape.positions:
            raise ExpertileError(
                f"{self.position + ids.size} tokens: the model has {self.shape.positions} positions: shorten"
            )
        angles = np.arange(self.position, self.position + ids.size)[:, None] * self._frequencies
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        r = self._embedding[ids]
        self.attention_reads = np.zeros(ids.size, dtype=np.int64)
        for n, layer in enumerate(self._layers):
            r = r + self._attention(layer, _rms(r, layer.input_norm, self.shape.norm_eps), cos, sin)
            x = _rms(r, layer.block_norm, self.shape.norm_eps)
            r = r + (self._moe(n, x) if layer.dense is None else _swiglu(*layer.dense, x))
        self.position += ids.size
        return _rms(r, self._norm, self.shape.norm_eps) @ self._head.T

    def _attention(self, layer: "_Layer", x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        s, t = self.shape, len(x)
        q = _rotate(_heads(x @ layer.q.T + layer.q_bias, s.heads), cos, sin)
        k = _rotate(_heads(x @ layer.k.T + layer.k_bias, s.kv_heads), cos, sin)
        v = _heads(x @ layer.v.T + layer.v_bias, s.kv_heads)
        layer.keys = np.concatenate([layer.keys, k], axis=1)
        layer.values = np.concatenate([layer.values, v], axis=1)
        # Query heads are grouped by the key/value head they share: [kv_heads, group, T, d].
        q = q.reshape(s.kv_heads, s.heads // s.kv_heads, t, s.head_dim)
        scores = q @ layer.keys[:, None].swapaxes(-1, -2) * np.float32(s.head_dim**-0.5)
        mask, reads = visible(q, layer.keys, self.sparse_attention)
        self.attention_reads = self.attention_reads + reads
        scores = np.where(mask, scores, np.float32(-np.inf))
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        mixed = (p @ layer.values[:, None]).reshape(s.heads, t, s.head_dim)
        return mixed.swapaxes(0, 1).reshape(t, -1) @ layer.o.T


class _Layer:
    """Weights and cache of one layer."""

    def __init__(self, checkpoint: Checkpoint, n: int, *, is_moe: bool) -> None:
        s, prefix, tensor = checkpoint.shape, f"model.layers.{n}.", checkpoint.tensor
        wide, narrow = s.heads * s.head_dim, s.kv_heads * s.head_dim

        def projection(name: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
            weight = tensor(f"{prefix}self_attn.{name}_proj.weight", (rows, s.hidden))
            if not s.qkv_bias:
                return weight, np.zeros(rows, np.float32)
            return weight, tensor(f"{prefix}self_attn.{name}_proj.bias", (rows,))

        self.q, self.q_bias = projection("q", wide)
        self.k, self.k_bias = projection("k", narrow)
        self.v, self.v_bias = projection("v", narrow)
        self.o = tensor(f"{prefix}self_attn.o_proj.weight", (s.hidden, wide))
        self.input_norm = tensor(f"{prefix}input_layernorm.weight", (s.hidden,))
        self.block_norm = tensor(f"{prefix}post_attention_layernorm.weight", (s.hidden,))
        self.dense: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        if not is_moe:
            inner = s.dense_intermediate
            self.dense = (
                tensor(f"{prefix}mlp.gate_proj.weight", (inner, s.hidden)),
                tensor(f"{prefix}mlp.up_proj.weight", (inner, s.hidden)),
                tensor(f"{prefix}mlp.down_proj.weight", (s.hidden, inner)),
            )
        self.keys = self.values = np.zeros((s.kv_heads, 0, s.head_dim), np.float32)


def _rms(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return weight * (x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)))


def _swiglu(gate: np.ndarray, up: np.ndarray, down: np.ndarray, x: np.ndarray) -> np.ndarray:
    g = x @ gate.T
    # exp overflows to infinity for very negative g, and g / inf is the right answer: 0.
    with np.errstate(over="ignore"):
        return (g / (1 + np.exp(-g)) * (x @ up.T)) @ down.T


def _heads(x: np.ndarray, heads: int) -> np.ndarray:
    """[T, heads * d] -> [heads, T, d]"""
    return x.reshape(len(x), heads, -1).swapaxes(0, 1)


def _rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotary positions; the pairs are (i, i + d/2), as Hugging Face stores them."""
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def sample(logits: np.ndarray, temperature: float, rng: np.random.Generator) -> int:
    """One token from logits [V]: the largest (ties to the lowest) at temperature 0, else softmax(l / T)."""
    if temperature <= 0:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    return int(rng.choice(len(p), p=p / p.sum()))


def generate(
    decoder: Decoder, prompt: bytes | list[int], tokens: int, *, temperature: float = 0.0, seed: int = 0
) -> Iterator[int]:
    """Yield ``tokens`` tokens that follow ``prompt``, each as soon as it is known.

    The prompt begins a document: where the model has a beginning-of-text token, it goes first.
    When the context is full, the older half of it is forgotten and the newer half is read again.
    """
    rng = np.random.default_rng(seed)
    longest = decoder.shape.positions
    text = ([] if decoder.shape.bos is None else [decoder.shape.bos]) + list(prompt)
    text = text[-longest:]
    decoder.reset()
    pending = text
    for n in range(tokens):
        if decoder.position + len(pending) > longest:
            decoder.reset()
            pending = text[-max(1, longest // 2) :]
        token = sample(decoder.forward(pending)[-1], temperature, rng)
        yield token
        if n == tokens - 1:
            return
        text.append(token)
        pending = [token]


def layer_inputs(checkpoint: Checkpoint, texts: list[bytes]) -> dict[int, np.ndarray]:
    """What each MoE layer sees of ``texts`` in the float model: x float32 [T, H] by layer, texts end to end.

    Each text begins at position 0, after the beginning-of-text token (which gives a row too) if there is one.
    """
    layers = {n: checkpoint.moe_layer(n) for n in checkpoint.moe_layers}
    seen: dict[int, list[np.ndarray]] = {n: [] for n in layers}

    def moe(n: int, x: np.ndarray) -> np.ndarray:
        seen[n].append(x)
        return reference.run(layers[n], x).y.astype(np.float32)

    decoder = Decoder(checkpoint, moe)
    for text in texts:
        decoder.reset()
        decoder.forward(([] if decoder.shape.bos is None else [decoder.shape.bos]) + list(text))
    return {n: np.concatenate(parts) for n, parts in seen.items()}
