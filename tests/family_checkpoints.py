"""Tiny random checkpoints of every family, each in the storage layout of its own, written with NumPy alone.

The decoded weights are kept beside the stored ones, in float64 and decoded here (ml_dtypes for FP8, a list of
values for MXFP4), so that a test can compute a layer without the reader under test.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
BASE = {"num_hidden_layers": 2, "hidden_act": "silu", "vocab_size": 32, "num_attention_heads": 4}
EXPERT_NAMES = ("gate_proj", "up_proj", "down_proj")

CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": False},
    "qwen2_moe": {
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "norm_topk_prob": False,
        "shared_expert_intermediate_size": 56,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "qwen3_moe": {"num_local_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": True},
    "deepseek": {
        "n_routed_experts": 6,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "scoring_func": "softmax",
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
    },
    "deepseek_v2": {
        "n_routed_experts": 12,
        "num_experts_per_tok": 3,
        "norm_topk_prob": False,
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 3.5,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
    },
    "deepseek_v3": {
        "n_routed_experts": 12,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
    },
    "gpt_oss": {
        "num_local_experts": 6,
        "num_experts_per_tok": 3,
        "experts_per_token": 3,
        "swiglu_limit": 2.0,  # low, so that it clamps here
    },
}


@dataclass
class Tiny:
    """A checkpoint in the making. ``stored``: tensors of the file; ``exact``: decoded, float64, by name."""

    family: str
    config: dict[str, Any]
    rng: np.random.Generator
    stored: dict[str, np.ndarray] = field(default_factory=dict)
    exact: dict[str, np.ndarray] = field(default_factory=dict)

    def floats(
        self, name: str, *shape: int, gain: float | None = None, dtype: Any = ml_dtypes.bfloat16
    ) -> None:
        """Random floats, of unit gain unless said otherwise."""
        value = self.rng.standard_normal(shape) * (shape[-1] ** -0.5 if gain is None else gain)
        self.stored[name] = value.astype(dtype)
        self.exact[name] = self.stored[name].astype(np.float64)

    def fp8(self, name: str, rows: int, columns: int) -> None:
        """E4M3 with a float32 scale for every 128 x 128 tile, the last ones cut."""
        w = self.rng.standard_normal((rows, columns)) * columns**-0.5
        w *= np.repeat(np.repeat(self.rng.uniform(0.5, 2, (9, 9)), 100, 0), 100, 1)[:rows, :columns]
        codes = np.zeros((rows, columns), ml_dtypes.float8_e4m3fn)
        scale = np.zeros((-(-rows // 128), -(-columns // 128)), np.float32)
        exact = np.zeros((rows, columns))
        for r in range(scale.shape[0]):
            for c in range(scale.shape[1]):
                tile = np.s_[128 * r : 128 * (r + 1), 128 * c : 128 * (c + 1)]
                scale[r, c] = np.abs(w[tile]).max() / 448
                codes[tile] = np.clip(w[tile] / scale[r, c], -448, 448).astype(codes.dtype)
                exact[tile] = codes[tile].astype(np.float64) * scale[r, c].astype(np.float64)
        self.stored[name], self.stored[f"{name}_scale_inv"] = codes, scale
        self.exact[name] = exact

    def mxfp4(self, stem: str, n: int, rows: int, columns: int) -> None:
        """E2M1 pairs and E8M0 scales; decoded as the float form is stored, [n, columns, rows]."""
        nibbles = self.rng.integers(0, 16, (n, rows, columns), dtype=np.uint8)
        scale = self.rng.integers(121, 125, (n, rows, columns // 32), dtype=np.uint8)
        pairs = nibbles[..., 0::2] | nibbles[..., 1::2] << 4
        self.stored[f"{stem}_blocks"] = pairs.reshape(n, rows, columns // 32, 16)
        self.stored[f"{stem}_scales"] = scale
        value = E2M1[nibbles & 7] * np.where(nibbles & 8, -1.0, 1.0)
        value = value * np.repeat(2.0 ** (scale.astype(float) - 127), 32, axis=2)
        self.exact[stem] = value.swapaxes(1, 2)

    def write(self, folder: Path, **changes: Any) -> Path:
        """The folder, with ``changes`` of its config (``...`` takes a key out)."""
        config = {k: v for k, v in (self.config | changes).items() if v is not ...}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        save_file({k: np.ascontiguousarray(v) for k, v in self.stored.items()}, folder / "model.safetensors")
        return folder


def tiny(
    family: str, *, hidden: int = 64, wide: int = 32, seed: int = 1, quantised: bool = False, **changes: Any
) -> Tiny:
    """A checkpoint whose layer 1 is MoE; ``quantised``: gpt_oss in MXFP4, all others in FP8."""
    width = "intermediate_size" if family in ("mixtral", "olmoe", "gpt_oss") else "moe_intermediate_size"
    config = {"model_type": family, "hidden_size": hidden, width: wide, **BASE, **CONFIGS[family], **changes}
    if quantised:
        fp8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
        config["quantization_config"] = {"quant_method": "mxfp4"} if family == "gpt_oss" else fp8
    out = Tiny(family, config, np.random.default_rng(seed))
    count = next(config[k] for k in ("num_experts", "num_local_experts", "n_routed_experts") if k in config)
    p = "model.layers.1.mlp."
    if family == "gpt_oss":
        out.floats(f"{p}router.weight", count, hidden)
        out.floats(f"{p}router.bias", count, gain=0.5)
        for stem, rows, columns in (("gate_up_proj", 2 * wide, hidden), ("down_proj", hidden, wide)):
            if quantised:
                out.mxfp4(f"{p}experts.{stem}", count, rows, columns)
            else:
                out.floats(f"{p}experts.{stem}", count, columns, rows, gain=2 * columns**-0.5)
            out.floats(f"{p}experts.{stem}_bias", count, rows, gain=0.5)
        return out
    p = p.replace("mlp", "block_sparse_moe") if family == "mixtral" else p
    names = ("w1", "w3", "w2") if family == "mixtral" else EXPERT_NAMES
    out.floats(f"{p}gate.weight", count, hidden)
    if family == "deepseek_v3":
        out.floats(f"{p}gate.e_score_correction_bias", count, gain=0.3, dtype=np.float32)
    shared = config.get("shared_expert_intermediate_size", wide * (config.get("n_shared_experts") or 0))
    blocks = {f"{p}experts.{e}.": wide for e in range(count)}
    if shared:
        blocks[f"{p}shared_expert{'' if family == 'qwen2_moe' else 's'}."] = shared
    if family == "qwen2_moe":
        out.floats(f"{p}shared_expert_gate.weight", 1, hidden)
    for block, inner in blocks.items():
        for name, rows, columns in zip(names, (inner, inner, hidden), (hidden, hidden, inner), strict=True):
            (out.fp8 if quantised else out.floats)(f"{block}{name}.weight", rows, columns)
    return out
