"""mixtral: softmax router, top-k, always renormalised; every layer is MoE, no shared expert."""

from sw_model.families import base
from sw_model.families.base import DecoderShape, Fields, Tensors
from sw_model.moe import MoELayer, RouterRule

__all__ = ["MODEL_TYPE", "decoder_shape", "moe_layer", "moe_layers"]

MODEL_TYPE = "mixtral"

moe_layers = base.every_layer


def decoder_shape(fields: Fields) -> DecoderShape:
    """The decoder around the MoE blocks."""
    if fields.has("sliding_window"):
        raise base.no_decoder(fields, "sliding_window")
    return base.llama_like(fields, dense_layers=False, theta=1e6, eps=1e-5)


def moe_layer(fields: Fields, layer: int, tensors: Tensors) -> MoELayer:
    """Read one layer; w1 is the gate, w3 the up and w2 the down projection."""
    fields.only("hidden_act", "silu")
    base.only_fp8(fields)
    hidden, wide = fields.integer("hidden_size"), fields.integer("intermediate_size")
    count = base.expert_count(fields)
    prefix = f"model.layers.{layer}.block_sparse_moe."
    return MoELayer(
        router=tensors.matrix(f"{prefix}gate.weight", (count, hidden)).value,
        rule=RouterRule(top_k=base.top_k(fields), renormalise=True),
        experts=base.named_experts(tensors, f"{prefix}experts.", count, hidden, wide, ("w1", "w3", "w2")),
    )
