"""deepseek (v1): softmax router, top-k, optional renormalisation, ungated shared experts."""

from sw_model.families import base
from sw_model.families.base import DecoderShape, Fields, Tensors
from sw_model.moe import MoELayer, RouterRule

__all__ = ["MODEL_TYPE", "decoder_shape", "moe_layer", "moe_layers"]

MODEL_TYPE = "deepseek"


def moe_layers(fields: Fields) -> list[int]:
    """From ``first_k_dense_replace`` on."""
    return base.dense_then_moe(fields, 0)


def decoder_shape(fields: Fields) -> DecoderShape:
    """The decoder around the MoE blocks."""
    fields.only("attention_bias", False)
    return base.llama_like(fields, dense_layers=len(moe_layers(fields)) < fields.layers)


def moe_layer(fields: Fields, layer: int, tensors: Tensors) -> MoELayer:
    """Read one layer; the shared experts are stored as one, as wide as all of them."""
    fields.only("hidden_act", "silu")
    fields.only("scoring_func", "softmax")
    base.only_fp8(fields)
    hidden, wide = fields.integer("hidden_size"), fields.integer("moe_intermediate_size")
    count, k = base.expert_count(fields), base.top_k(fields)
    prefix = f"model.layers.{layer}.mlp."
    return MoELayer(
        router=tensors.matrix(f"{prefix}gate.weight", (count, hidden)).value,
        # The published code does not renormalise a single expert to 1.
        rule=RouterRule(top_k=k, renormalise=k > 1 and fields.flag("norm_topk_prob", False)),
        experts=base.named_experts(tensors, f"{prefix}experts.", count, hidden, wide),
        shared=base.shared_experts(fields, tensors, f"{prefix}shared_experts.", hidden, wide),
    )
