"""qwen2_moe: softmax router, top-k, optional renormalisation, one shared expert behind a sigmoid gate."""

import numpy as np

from sw_model.families.base import DecoderShape, Fields, ReadTensor
from sw_model.moe import Expert, MoELayer

__all__ = ["MODEL_TYPE", "decoder_shape", "moe_layer", "moe_layers"]

MODEL_TYPE = "qwen2_moe"


def decoder_shape(fields: Fields) -> DecoderShape:
    """The decoder around the MoE blocks; variants that would change its arithmetic are refused by name."""
    fields.only("hidden_act", "silu")
    fields.only("use_sliding_window", False)
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
        layers=_layers(fields),
        hidden=hidden,
        vocabulary=vocabulary,
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", heads),
        head_dim=fields.integer("head_dim", max(1, hidden // heads)),
        positions=fields.integer("max_position_embeddings", 32768, most=1 << 24),
        rope_theta=rope.number("rope_theta", 10000.0),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        qkv_bias=fields.flag("qkv_bias", True),
        tied=fields.flag("tie_word_embeddings", False),
        bos=fields.integer("bos_token_id", least=0, most=vocabulary - 1) if has_bos else None,
        dense_intermediate=(
            fields.integer("intermediate_size") if len(moe_layers(fields)) < _layers(fields) else 0
        ),
    )


def moe_layers(fields: Fields) -> list[int]:
    """Layer L is MoE unless it is listed in ``mlp_only_layers`` or off the ``decoder_sparse_step``."""
    dense = set(fields.integers("mlp_only_layers"))
    step = fields.integer("decoder_sparse_step", 1)
    return [n for n in range(_layers(fields)) if n not in dense and (n + 1) % step == 0]


def moe_layer(fields: Fields, layer: int, read: ReadTensor) -> MoELayer:
    """Read one layer; linear weights are stored [out, in], as :class:`MoELayer` holds them."""
    hidden = fields.integer("hidden_size")
    wide = fields.integer("moe_intermediate_size")
    shared_wide = fields.integer("shared_expert_intermediate_size")
    n_experts = fields.integer("num_experts", most=1 << 16)
    prefix = f"model.layers.{layer}.mlp."

    def expert(name: str, width: int) -> Expert:
        return Expert(
            gate=read(f"{prefix}{name}.gate_proj.weight", (width, hidden)),
            up=read(f"{prefix}{name}.up_proj.weight", (width, hidden)),
            down=read(f"{prefix}{name}.down_proj.weight", (hidden, width)),
        )

    return MoELayer(
        router=read(f"{prefix}gate.weight", (n_experts, hidden)),
        experts=tuple(expert(f"experts.{e}", wide) for e in range(n_experts)),
        shared=expert("shared_expert", shared_wide),
        shared_gate=np.ascontiguousarray(read(f"{prefix}shared_expert_gate.weight", (1, hidden))[0]),
        top_k=fields.integer("num_experts_per_tok", most=n_experts),
        renormalise=fields.flag("norm_topk_prob", False),
    )


def _layers(fields: Fields) -> int:
    return fields.integer("num_hidden_layers", most=4096)
