"""qwen2_moe: softmax router, top-k, optional renormalisation, one shared expert behind a sigmoid gate."""

from sw_model.families import base
from sw_model.families.base import DecoderShape, Fields, Tensors
from sw_model.moe import MoELayer, RouterRule

__all__ = ["MODEL_TYPE", "decoder_shape", "moe_layer", "moe_layers"]

MODEL_TYPE = "qwen2_moe"

moe_layers = base.sparse_step


def decoder_shape(fields: Fields) -> DecoderShape:
    """The decoder around the MoE blocks."""
    fields.only("use_sliding_window", False)
    dense = len(moe_layers(fields)) < fields.layers
    return base.llama_like(fields, dense_layers=dense, qkv_bias=fields.flag("qkv_bias", True))


def moe_layer(fields: Fields, layer: int, tensors: Tensors) -> MoELayer:
    """Read one layer."""
    fields.only("hidden_act", "silu")
    base.only_fp8(fields)
    hidden, wide = fields.integer("hidden_size"), fields.integer("moe_intermediate_size")
    shared_wide = fields.integer("shared_expert_intermediate_size")
    count = base.expert_count(fields)
    prefix = f"model.layers.{layer}.mlp."
    return MoELayer(
        router=tensors.matrix(f"{prefix}gate.weight", (count, hidden)).value,
        rule=RouterRule(top_k=base.top_k(fields), renormalise=fields.flag("norm_topk_prob", False)),
        experts=base.named_experts(tensors, f"{prefix}experts.", count, hidden, wide),
        shared=base.named_expert(tensors, f"{prefix}shared_expert.", hidden, shared_wide),
        shared_gate=tensors.matrix(f"{prefix}shared_expert_gate.weight", (1, hidden)).value[0],
    )
