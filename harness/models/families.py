"""The families by their transformers model type. A new family is one file and one line here."""

from harness.common.errors import UserError, nearest
from harness.models.bloom import BLOOM
from harness.models.falcon import FALCON
from harness.models.family import Family
from harness.models.mpt import MPT

FAMILIES: dict[str, Family] = {family.name: family for family in (MPT, BLOOM, FALCON)}


def family_of(model_type: str) -> Family:
    if model_type not in FAMILIES:
        raise UserError(f"Models of type {model_type!r} are not supported.{nearest(model_type, FAMILIES)}")
    return FAMILIES[model_type]
