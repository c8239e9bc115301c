"""Order, and a tiny random checkpoint. Tests run cheapest first: units, simulations, slow ones."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # as sw_model/training does it, which may come after torch

TINY: dict[str, Any] = {
    "model_type": "qwen2_moe",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 64,
    "intermediate_size": 96,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "hidden_act": "silu",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stable sort: within a level the order of files and tests stays."""
    items.sort(key=lambda item: sum(item.get_closest_marker(name) is not None for name in ("sim", "slow")))


def tiny_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of every tensor of a qwen2_moe model with ``config``."""
    h, v = config["hidden_size"], config["vocab_size"]
    d = h // config["num_attention_heads"]
    yield "model.embed_tokens.weight", (v, h)
    yield "model.norm.weight", (h,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (v, h)
    for n in range(config["num_hidden_layers"]):
        p = f"model.layers.{n}."
        yield p + "input_layernorm.weight", (h,)
        yield p + "post_attention_layernorm.weight", (h,)
        for name, heads in (
            ("q", "num_attention_heads"),
            ("k", "num_key_value_heads"),
            ("v", "num_key_value_heads"),
        ):
            yield f"{p}self_attn.{name}_proj.weight", (config[heads] * d, h)
            yield f"{p}self_attn.{name}_proj.bias", (config[heads] * d,)
        yield p + "self_attn.o_proj.weight", (h, config["num_attention_heads"] * d)
        blocks = {"mlp.": config["intermediate_size"]}
        if n not in config.get("mlp_only_layers", []):
            yield p + "mlp.gate.weight", (config["num_experts"], h)
            yield p + "mlp.shared_expert_gate.weight", (1, h)
            blocks = {
                f"mlp.experts.{e}.": config["moe_intermediate_size"] for e in range(config["num_experts"])
            }
            blocks["mlp.shared_expert."] = config["shared_expert_intermediate_size"]
        for block, wide in blocks.items():
            yield f"{p}{block}gate_proj.weight", (wide, h)
            yield f"{p}{block}up_proj.weight", (wide, h)
            yield f"{p}{block}down_proj.weight", (h, wide)


def write_tiny(folder: Path, seed: int = 1, dtype: Any = np.float32, **overrides: Any) -> Path:
    """Write a random qwen2_moe checkpoint whose activations have the size of a trained one's."""
    config = TINY | overrides
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tiny_shapes(config):
        value = rng.standard_normal(shape) * (shape[-1] ** -0.5 if len(shape) == 2 else 0.1)
        tensors[name] = (value + ("norm" in name)).astype(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """``make_checkpoint(seed=1, dtype=float32, **config) -> folder``"""
    return lambda **options: write_tiny(tmp_path / "checkpoint", **options)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One shared random checkpoint; read only."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))
