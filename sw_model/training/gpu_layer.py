"""The same MoE layer on an NVIDIA GPU: time and measured energy a token, as JSON.

    python -m sw_model.training.gpu_layer --json build/gpu_layer.json        # about a minute on one GPU

Shapes: a layer of the shipped model (hidden 192, 2 of 8 experts of 96, a shared one of 192) and one like
OLMoE's (hidden 2048, 8 of 64 experts of 1024), bfloat16 weights, random, with batches of 1 and 64 tokens:

    y = sum over the top-k of softmax(R x) of w_e down_e(silu(gate_e x) * up_e x) [+ sigmoid(g . x) shared]

Routines: ``eager`` gathers the chosen experts and multiplies in torch; ``graph`` is the same replayed as a
CUDA graph; ``grouped`` sorts tokens by expert for torch's grouped matrix product, as a graph; ``fused`` is
three Triton kernels (route, gate and up, down), as a graph. Each replays over many different tokens, so that
experts change. Every routine is first compared with float32.

Energy is NVML's own counter of the whole board over some seconds, idle power included; ``idle_w`` tells it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

CALLS = 64  # layer calls with tokens of their own, one after another


@dataclass(frozen=True, kw_only=True)
class Shape:
    """``shared``: width of the shared expert, 0 for none; ``renormalise``: weights divided by their sum."""

    name: str
    hidden: int
    width: int
    experts: int
    top_k: int
    shared: int = 0
    renormalise: bool = False


SHAPES = (
    Shape(name="shipped", hidden=192, width=96, experts=8, top_k=2, shared=192, renormalise=True),
    Shape(name="olmoe", hidden=2048, width=1024, experts=64, top_k=8),
)


class Layer:
    """Random weights: router [E, H], gate_up [E, 2 I, H] (gate first), down [E, H, I], the shared ones."""

    def __init__(self, shape: Shape, device: str, seed: int = 0) -> None:
        self.shape = s = shape
        generator = torch.Generator(device=device).manual_seed(seed)

        def weight(*size: int) -> torch.Tensor:
            w = torch.randn(size, generator=generator, device=device) / size[-1] ** 0.5
            return w.to(torch.bfloat16)

        self.router = weight(s.experts, s.hidden)
        self.gate_up = weight(s.experts, 2 * s.width, s.hidden)
        self.down = weight(s.experts, s.hidden, s.width)
        self.shared_gate_up = weight(2 * s.shared, s.hidden) if s.shared else None
        self.shared_down = weight(s.hidden, s.shared) if s.shared else None
        self.shared_gate = weight(1, s.hidden) if s.shared else None

    def route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Experts and weights [T, k]; logits in float32, so that every routine chooses the same."""
        p = F.softmax(x.float() @ self.router.float().T, dim=-1)
        w, e = p.topk(self.shape.top_k, dim=-1)
        return e, w / w.sum(-1, keepdim=True) if self.shape.renormalise else w

    def _shared(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.shared_gate_up is None:
            return y
        gate, up = (x @ self.shared_gate_up.T).chunk(2, dim=-1)
        return y + torch.sigmoid(x @ self.shared_gate.T) * ((F.silu(gate) * up) @ self.shared_down.T)

    def exact(self, x: torch.Tensor) -> torch.Tensor:
        """Expert by expert, in float32."""
        e, w = self.route(x)
        x32 = x.float()
        y = torch.zeros_like(x32)
        for t in range(len(x)):
            for expert, weight in zip(e[t].tolist(), w[t].tolist(), strict=True):
                gate, up = (self.gate_up[expert].float() @ x32[t]).chunk(2)
                y[t] += weight * (self.down[expert].float() @ (F.silu(gate) * up))
        if self.shared_gate_up is not None:
            gate, up = (x32 @ self.shared_gate_up.float().T).chunk(2, dim=-1)
            shared = (F.silu(gate) * up) @ self.shared_down.float().T
            y += torch.sigmoid(x32 @ self.shared_gate.float().T) * shared
        return y

    def eager(self, x: torch.Tensor) -> torch.Tensor:
        """Gather, then batched products: a read of every chosen expert for every token."""
        e, w = self.route(x)
        gate, up = (self.gate_up[e] @ x[:, None, :, None])[..., 0].chunk(2, dim=-1)
        y = (self.down[e] @ (F.silu(gate) * up)[..., None])[..., 0]
        return self._shared(x, (y * w[..., None].to(y.dtype)).sum(1))

    def grouped(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens sorted by expert, one grouped product each way: a read of every expert in use."""
        s = self.shape
        e, w = self.route(x)
        order = e.flatten().argsort(stable=True)
        ends = torch.searchsorted(
            e.flatten()[order], torch.arange(s.experts, device=x.device), right=True
        ).to(torch.int32)
        token = order // s.top_k
        gate, up = torch._grouped_mm(x[token], self.gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
        rows = torch._grouped_mm(F.silu(gate) * up, self.down.transpose(1, 2), offs=ends)
        rows = rows * w.flatten()[order, None].to(rows.dtype)
        return self._shared(x, torch.zeros_like(x).index_add_(0, token, rows))


def as_graph(call: Callable[[], Any]) -> Callable[[], None]:
    """``call`` captured once and replayed."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


class Board:
    """NVML's energy counter (mJ) and power (mW) of the first board."""

    def __init__(self) -> None:
        self._nvml = ctypes.CDLL("libnvidia-ml.so.1")
        self._handle = ctypes.c_void_p()
        self._check(self._nvml.nvmlInit_v2())
        self._check(self._nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self._handle)))

    @staticmethod
    def _check(code: int) -> None:
        if code:
            raise RuntimeError(f"NVML says {code}")

    def millijoules(self) -> int:
        """Since the driver was loaded."""
        value = ctypes.c_ulonglong()
        self._check(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(value)))
        return value.value


def measure(replay: Callable[[], None], board: Board, seconds: float) -> tuple[float, float, int]:
    """Seconds and joules of some replays, and how many."""
    replay()
    torch.cuda.synchronize()
    start, energy, n = time.perf_counter(), board.millijoules(), 0
    while time.perf_counter() - start < seconds:
        for _ in range(4):
            replay()
        torch.cuda.synchronize()
        n += 4
    return time.perf_counter() - start, (board.millijoules() - energy) / 1000, n


def main() -> None:
    """Measure every shape, batch and routine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=2.5, help="of each measurement")
    options = parser.parse_args()
    from sw_model.training.gpu_kernels import Fused

    board, rows = Board(), []
    torch.cuda.synchronize()
    before = board.millijoules()
    time.sleep(2)
    idle = (board.millijoules() - before) / 2000
    for shape in SHAPES:
        layer = Layer(shape, "cuda")
        fused = Fused(layer)
        for batch in (1, 64):
            x = torch.randn(CALLS, batch, shape.hidden, device="cuda").to(torch.bfloat16)
            routines = {"eager": layer.eager, "graph": layer.eager, "grouped": layer.grouped, "fused": fused}
            if batch > 1 and shape.hidden > 1024:  # one expert a token and slot: 6 GB a call
                del routines["eager"], routines["graph"]
            for name, routine in routines.items():
                row = {"shape": shape.name, "batch": batch, "routine": name}
                exact = layer.exact(x[0])
                error = (routine(x[0]).float() - exact).norm() / exact.norm()

                def calls(routine: Callable = routine, x: torch.Tensor = x) -> None:
                    for one in x:
                        routine(one)

                replay = calls if name == "eager" else as_graph(calls)
                seconds, joules, n = measure(replay, board, options.seconds)
                tokens = n * CALLS * batch
                row |= {
                    "error": float(error),
                    "us_per_call": 1e6 * seconds / (n * CALLS),
                    "us_per_token": 1e6 * seconds / tokens,
                    "uj_per_token": 1e6 * joules / tokens,
                    "watts": joules / seconds,
                }
                rows.append(row)
                print(json.dumps(row), flush=True)
    device = torch.cuda.get_device_name()
    report = {"device": device, "torch": torch.__version__, "idle_w": idle, "rows": rows}
    options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
