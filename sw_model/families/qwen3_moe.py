"""qwen3_moe: softmax router, top-k, optional renormalisation; no shared expert."""

from sw_model.families import base
from sw_model.families.base import DecoderShape, Fields, Tensors
from sw_model.moe import MoELayer, RouterRule

__all__ = ["MODEL_TYPE", "decoder_shape", "moe_layer", "moe_layers"]

MODEL_TYPE = "qwen3_moe"

moe_layers = base.sparse_step


def decoder_shape(fields: Fields) -> DecoderShape:
    """Refused: its queries and keys are normalised."""
    raise base.no_decoder(fields, "attention of qwen3_moe (normalised queries and keys)")


def moe_layer(fields: Fields, layer: int, tensors: Tensors) -> MoELayer:
    """Read one layer."""
    fields.only("hidden_act", "silu")
    base.only_fp8(fields)
    hidden, wide = fields.integer("hidden_size"), fields.integer("moe_intermediate_size")
    count = base.expert_count(fields)
    prefix = f"model.layers.{layer}.mlp."
    return MoELayer(
        router=tensors.matrix(f"{prefix}gate.weight", (count, hidden)).value,
        rule=RouterRule(top_k=base.top_k(fields), renormalise=fields.flag("norm_topk_prob", False)),
        experts=base.named_experts(tensors, f"{prefix}experts.", count, hidden, wide),
    )
