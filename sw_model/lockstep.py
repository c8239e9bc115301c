"""Many texts through a decoder side by side: all of them pass a layer before any goes on to the next.

So a layer can be calibrated on what the layers before it really give, in one pass over the texts, and an MoE
engine sees long batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sw_model.decoder import Decoder, _rms, _swiglu
from sw_model.errors import ExpertileError

__all__ = ["Lockstep", "bits", "pieces"]


class Lockstep(Decoder):
    """A :class:`Decoder` for whole texts; its MoE callable gets the rows of all texts, end to end."""

    def forward_all(self, texts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Logits [T, vocabulary] of each of ``texts`` (token ids, [T] each); every text starts at position 0.

        Raises
        ------
        ExpertileError
            A text is longer than the model has positions.
        """
        longest = max(len(t) for t in texts)
        if longest > self.shape.positions:
            raise ExpertileError(f"{longest} tokens: the model has {self.shape.positions} positions: shorten")
        angles = np.arange(longest)[:, None] * self._frequencies
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        ends = np.cumsum([len(t) for t in texts])[:-1]
        streams = [self._embedding[t] for t in texts]
        eps = self.shape.norm_eps
        for n, layer in enumerate(self._layers):
            for i, r in enumerate(streams):
                self.reset()
                self.attention_reads = np.zeros(len(r), dtype=np.int64)
                x = _rms(r, layer.input_norm, eps)
                streams[i] = r + self._attention(layer, x, cos[: len(r)], sin[: len(r)])
            x = np.concatenate([_rms(r, layer.block_norm, eps) for r in streams])
            y = self._moe(n, x) if layer.dense is None else _swiglu(*layer.dense, x)
            streams = [r + part for r, part in zip(streams, np.split(y, ends), strict=True)]
        self.reset()
        return [_rms(r, self._norm, eps) @ self._head.T for r in streams]


def bits(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """-log2 p of tokens 1, 2, ... of a text, [T - 1], from the logits of all of it."""
    wide = logits[:-1].astype(np.float64)
    peak = wide.max(axis=1)
    nats = np.log(np.exp(wide - peak[:, None]).sum(axis=1)) + peak
    nats -= wide[np.arange(len(ids) - 1), ids[1:]]
    return np.asarray(nats / np.log(2))


def pieces(texts: Sequence[bytes], total: int, length: int, bos: int | None) -> list[np.ndarray]:
    """About ``total`` tokens of ``texts``: pieces of at most ``length``, evenly from all of them.

    Each piece begins with the beginning-of-text token if there is one.
    """
    room = length - (bos is not None)
    cut = [text[i : i + room] for text in texts for i in range(0, len(text), room)]
    cut = [piece for piece in cut if len(piece) > 1]
    mean = sum(map(len, cut)) / max(1, len(cut))
    count = max(1, min(len(cut), round(total / max(1.0, mean))))
    chosen = [cut[i * len(cut) // count] for i in range(count)] if cut else []
    head = b"" if bos is None else bytes([bos])
    return [np.frombuffer(head + piece, np.uint8).astype(np.int64) for piece in chosen]
