"""Checkpoint families: one module each, found by ``model_type``; a new one is a module and a line here."""

from sw_model.errors import ExpertileError
from sw_model.families import qwen2_moe
from sw_model.families.base import DecoderShape, Family, Fields, ReadTensor

__all__ = ["FAMILIES", "DecoderShape", "Family", "Fields", "ReadTensor", "family"]

FAMILIES: dict[str, Family] = {module.MODEL_TYPE: module for module in (qwen2_moe,)}


def family(model_type: object, where: str) -> Family:
    """The family of ``model_type``; ``where`` names the file for the message."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ExpertileError(f"{where}: model_type is {str(model_type)[:40]!r}: supported are {known}")
    return FAMILIES[model_type]
