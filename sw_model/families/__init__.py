"""Checkpoint families: one module each, found by ``model_type``; a new one is a module and a line here."""

from reprlib import repr as short

from sw_model.errors import ExpertileError
from sw_model.families import (
    deepseek,
    deepseek_v2,
    deepseek_v3,
    gpt_oss,
    mixtral,
    olmoe,
    qwen2_moe,
    qwen3_moe,
)
from sw_model.families.base import DecoderShape, Family, Fields, Matrix, Tensors

__all__ = ["FAMILIES", "DecoderShape", "Family", "Fields", "Matrix", "Tensors", "family"]

FAMILIES: dict[str, Family] = {
    module.MODEL_TYPE: module
    for module in (deepseek, deepseek_v2, deepseek_v3, gpt_oss, mixtral, olmoe, qwen2_moe, qwen3_moe)
}


def family(model_type: object, where: str) -> Family:
    """The family of ``model_type``; ``where`` names the file for the message."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ExpertileError(f"{where}: model_type is {short(model_type)}: supported are {known}")
    return FAMILIES[model_type]
