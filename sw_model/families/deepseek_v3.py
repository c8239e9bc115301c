"""deepseek_v3: sigmoid scores, a bias for the choice alone, groups by their two best, scaled; shared experts.

The multi-token-prediction layer behind the last one is no layer of the decoder and is left alone.
"""

from sw_model.families import base
from sw_model.families.base import DecoderShape, Fields, Tensors
from sw_model.moe import MoELayer, RouterRule

__all__ = ["MODEL_TYPE", "decoder_shape", "moe_layer", "moe_layers"]

MODEL_TYPE = "deepseek_v3"


def moe_layers(fields: Fields) -> list[int]:
    """From ``first_k_dense_replace`` on."""
    return base.dense_then_moe(fields, 3)


def decoder_shape(fields: Fields) -> DecoderShape:
    """Refused: attention over latent keys and values."""
    raise base.no_decoder(fields, "multi-head latent attention")


def _rule(fields: Fields) -> RouterRule:
    groups = fields.integer("n_group", 8)
    return RouterRule(
        top_k=base.top_k(fields),
        renormalise=fields.flag("norm_topk_prob", True),
        scoring="sigmoid",
        scale=fields.number("routed_scaling_factor", 2.5),
        groups=groups,
        top_groups=fields.integer("topk_group", 4),
        group_score="top2" if groups > 1 else "max",  # a single group needs no score
    )


def moe_layer(fields: Fields, layer: int, tensors: Tensors) -> MoELayer:
    """Read one layer; the shared experts are stored as one, as wide as all of them."""
    fields.only("hidden_act", "silu")
    fields.only("scoring_func", "sigmoid")
    fields.only("topk_method", "noaux_tc")
    base.only_fp8(fields)
    hidden, wide = fields.integer("hidden_size"), fields.integer("moe_intermediate_size")
    count = base.expert_count(fields)
    prefix = f"model.layers.{layer}.mlp."
    return MoELayer(
        router=tensors.matrix(f"{prefix}gate.weight", (count, hidden)).value,
        selection_bias=tensors.floats(f"{prefix}gate.e_score_correction_bias", (count,)),
        rule=_rule(fields),
        experts=base.named_experts(tensors, f"{prefix}experts.", count, hidden, wide),
        shared=base.shared_experts(fields, tensors, f"{prefix}shared_experts.", hidden, wide),
    )
