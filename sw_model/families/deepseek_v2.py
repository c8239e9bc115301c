"""deepseek_v2: softmax router, top-k among all or among the best groups, scaled; ungated shared experts.

A group counts by its largest score. ``norm_topk_prob`` has no effect, as in the outside implementation that
this reader is tested against.
"""

from sw_model.families import base
from sw_model.families.base import DecoderShape, Fields, Tensors
from sw_model.moe import MoELayer, RouterRule

__all__ = ["MODEL_TYPE", "decoder_shape", "moe_layer", "moe_layers"]

MODEL_TYPE = "deepseek_v2"


def moe_layers(fields: Fields) -> list[int]:
    """From ``first_k_dense_replace`` on."""
    return base.dense_then_moe(fields, 0)


def decoder_shape(fields: Fields) -> DecoderShape:
    """Refused: attention over latent keys and values."""
    raise base.no_decoder(fields, "multi-head latent attention")


def _rule(fields: Fields) -> RouterRule:
    grouped = fields.choice("topk_method", "greedy", "group_limited_greedy") == "group_limited_greedy"
    return RouterRule(
        top_k=base.top_k(fields),
        renormalise=False,
        scale=fields.number("routed_scaling_factor", 1.0),
        groups=fields.integer("n_group") if grouped else 1,
        top_groups=fields.integer("topk_group") if grouped else 1,
    )


def moe_layer(fields: Fields, layer: int, tensors: Tensors) -> MoELayer:
    """Read one layer; the shared experts are stored as one, as wide as all of them."""
    fields.only("hidden_act", "silu")
    fields.only("scoring_func", "softmax")
    fields.only("mlp_bias", False)
    base.only_fp8(fields)
    hidden, wide = fields.integer("hidden_size"), fields.integer("moe_intermediate_size")
    count = base.expert_count(fields)
    prefix = f"model.layers.{layer}.mlp."
    return MoELayer(
        router=tensors.matrix(f"{prefix}gate.weight", (count, hidden)).value,
        rule=_rule(fields),
        experts=base.named_experts(tensors, f"{prefix}experts.", count, hidden, wide),
        shared=base.shared_experts(fields, tensors, f"{prefix}shared_experts.", hidden, wide),
    )
