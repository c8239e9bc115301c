"""Three Triton kernels that compute an MoE layer: route; gate, up and their product; down and the sum.

A program of the second kernel takes some rows of one chosen expert of one token, one of the third some rows
of y. Weights are read once for each token that uses them, which is what a batch of one needs. The shared
expert is cut into experts of the routed ones' width, which are always chosen.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from sw_model.training.gpu_layer import Layer

__all__ = ["Fused"]


@triton.jit
def _route(x, router, gate, experts, weights, H, E: tl.constexpr, K: tl.constexpr, RENORM: tl.constexpr,
           SHARED: tl.constexpr, BH: tl.constexpr):  # fmt: skip
    t = tl.program_id(0)
    e = tl.arange(0, E)
    logits = tl.zeros([E], tl.float32)
    g = tl.zeros([BH], tl.float32)
    for at in range(0, H, BH):
        h = at + tl.arange(0, BH)
        v = tl.load(x + t * H + h, mask=h < H, other=0).to(tl.float32)
        w = tl.load(router + e[:, None] * H + h[None], mask=(h < H)[None], other=0).to(tl.float32)
        logits += tl.sum(w * v[None], axis=1)
        if SHARED > 0:
            g += tl.load(gate + h, mask=h < H, other=0).to(tl.float32) * v
    p = tl.exp(logits - tl.max(logits))
    p = p / tl.sum(p)
    chosen = p < 0
    left = p
    for k in tl.static_range(K):
        best = tl.argmax(left, axis=0)
        tl.store(experts + t * (K + SHARED) + k, best)
        chosen = chosen | (e == best)
        left = tl.where(e == best, -1.0, left)
    if RENORM:
        p = p / tl.sum(tl.where(chosen, p, 0.0))
    left = tl.where(chosen, p, -1.0)
    for k in tl.static_range(K):
        tl.store(weights + t * (K + SHARED) + k, tl.max(left))
        left = tl.where(e == tl.argmax(left, axis=0), -1.0, left)
    for s in tl.static_range(SHARED):
        tl.store(experts + t * (K + SHARED) + K + s, E + s)
        tl.store(weights + t * (K + SHARED) + K + s, 1 / (1 + tl.exp(-tl.sum(g))))


@triton.jit
def _up(x, gate_up, experts, h, H, I, SLOTS: tl.constexpr, BI: tl.constexpr, BH: tl.constexpr):
    slot = tl.program_id(0)
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    c = tl.arange(0, BH)
    inside = (i < I)[:, None] & (c < H)[None]
    v = tl.load(x + slot // SLOTS * H + c, mask=c < H, other=0).to(tl.float32)
    where = gate_up + tl.load(experts + slot).to(tl.int64) * 2 * I * H + i[:, None] * H + c[None]
    a = tl.load(where, mask=inside, other=0).to(tl.float32)
    b = tl.load(where + I * H, mask=inside, other=0).to(tl.float32)
    gate, up = tl.sum(a * v[None], axis=1), tl.sum(b * v[None], axis=1)
    tl.store(h + slot * I + i, gate / (1 + tl.exp(-gate)) * up, mask=i < I)


@triton.jit
def _down(h, down, experts, weights, y, H, I, SLOTS: tl.constexpr, BR: tl.constexpr, BI: tl.constexpr):
    t = tl.program_id(0)
    r = tl.program_id(1) * BR + tl.arange(0, BR)
    i = tl.arange(0, BI)
    inside = (r < H)[:, None] & (i < I)[None]
    total = tl.zeros([BR], tl.float32)
    for k in tl.static_range(SLOTS):
        slot = t * SLOTS + k
        v = tl.load(h + slot * I + i, mask=i < I, other=0) * tl.load(weights + slot)
        where = down + tl.load(experts + slot).to(tl.int64) * H * I + r[:, None] * I + i[None]
        total += tl.sum(tl.load(where, mask=inside, other=0).to(tl.float32) * v[None], axis=1)
    tl.store(y + t * H + r, total.to(tl.bfloat16), mask=r < H)


class Fused:
    """The layer as three kernels: call it with x bfloat16 [T, H]."""

    def __init__(self, layer: "Layer") -> None:
        self._layer, self._parts = layer, 0
        self._gate_up, self._down = layer.gate_up, layer.down
        s = layer.shape
        if layer.shared_gate_up is not None:
            self._parts = s.shared // s.width
            gate, up = (w.reshape(self._parts, s.width, s.hidden) for w in layer.shared_gate_up.chunk(2))
            down = layer.shared_down.reshape(s.hidden, self._parts, s.width).transpose(0, 1)
            self._gate_up = torch.cat([self._gate_up, torch.cat([gate, up], dim=1)]).contiguous()
            self._down = torch.cat([self._down, down]).contiguous()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        layer, s = self._layer, self._layer.shape
        tokens, slots = len(x), s.top_k + self._parts
        experts = torch.empty(tokens, slots, dtype=torch.int32, device=x.device)
        weights = torch.empty(tokens, slots, dtype=torch.float32, device=x.device)
        h = torch.empty(tokens, slots, s.width, dtype=torch.float32, device=x.device)
        y = torch.empty_like(x)
        gate = x if layer.shared_gate is None else layer.shared_gate  # x: a pointer that is not read
        _route[(tokens,)](
            x, layer.router, gate, experts, weights, s.hidden,
            E=s.experts, K=s.top_k, RENORM=s.renormalise, SHARED=self._parts, BH=256, num_warps=8,
        )  # fmt: skip
        rows = 4
        _up[(tokens * slots, triton.cdiv(s.width, rows))](
            x, self._gate_up, experts, h, s.hidden, s.width,
            SLOTS=slots, BI=rows, BH=triton.next_power_of_2(s.hidden), num_warps=4,
        )  # fmt: skip
        _down[(tokens, triton.cdiv(s.hidden, rows))](
            h, self._down, experts, weights, y, s.hidden, s.width,
            SLOTS=slots, BR=rows, BI=triton.next_power_of_2(s.width), num_warps=4,
        )  # fmt: skip
        return y
