"""gpt_oss: biased router, softmax over the chosen logits, clamped experts with biases; BF16 or MXFP4.

All experts of a layer share one tensor. Rows of gate and up alternate in it; floats are stored [in, out],
MXFP4 [out, in]. ``hidden_act`` says "silu" and means nothing.
"""

from sw_model.coded import CodedMatrix
from sw_model.families import base
from sw_model.families.base import DecoderShape, Fields, Matrix, Tensors
from sw_model.moe import CLAMPED_ALPHA, Activation, Expert, MoELayer, RouterRule

__all__ = ["MODEL_TYPE", "decoder_shape", "moe_layer", "moe_layers"]

MODEL_TYPE = "gpt_oss"

moe_layers = base.every_layer


def decoder_shape(fields: Fields) -> DecoderShape:
    """Refused: windows and sinks in its attention."""
    raise base.no_decoder(fields, "attention of gpt_oss (sliding windows, sinks)")


def _rows(m: Matrix, first: int) -> Matrix:
    """Every second row."""
    coded = m.coded and CodedMatrix(
        fmt=m.coded.fmt, magnitudes=m.coded.magnitudes[first::2], scale=m.coded.scale[first::2]
    )
    return Matrix(value=m.value[first::2], coded=coded)


def _stacked(tensors: Tensors, stem: str, shape: tuple[int, int, int], part: int) -> Matrix:
    """Matrix ``part`` of the stack ``shape`` = [E, out, in], in whichever form it is stored."""
    if tensors.has(f"{stem}_blocks"):
        return tensors.mxfp4(stem, shape, part)
    count, rows, columns = shape
    return Matrix(value=tensors.floats(stem, (count, columns, rows), part).T)


def moe_layer(fields: Fields, layer: int, tensors: Tensors) -> MoELayer:
    """Read one layer. A softmax over the chosen logits is one over all, renormalised."""
    fields.section("quantization_config").only("quant_method", "mxfp4")
    fields.only("swiglu_alpha", CLAMPED_ALPHA)
    hidden, wide = fields.integer("hidden_size"), fields.integer("intermediate_size")
    count = base.expert_count(fields)
    prefix = f"model.layers.{layer}.mlp."
    stem = f"{prefix}experts."

    def expert(e: int) -> Expert:
        both = _stacked(tensors, f"{stem}gate_up_proj", (count, 2 * wide, hidden), e)
        bias = tensors.floats(f"{stem}gate_up_proj_bias", (count, 2 * wide), e)
        return base.expert(
            _rows(both, 0),
            _rows(both, 1),
            _stacked(tensors, f"{stem}down_proj", (count, hidden, wide), e),
            gate_bias=bias[0::2],
            up_bias=bias[1::2],
            down_bias=tensors.floats(f"{stem}down_proj_bias", (count, hidden), e),
        )

    return MoELayer(
        router=tensors.matrix(f"{prefix}router.weight", (count, hidden)).value,
        router_bias=tensors.floats(f"{prefix}router.bias", (count,)),
        rule=RouterRule(top_k=base.top_k(fields), renormalise=True),
        experts=tuple(expert(e) for e in range(count)),
        activation=Activation.CLAMPED,
        limit=fields.number("swiglu_limit", 7.0),
    )
