"""Model families by transformers model type. A new family is one file and one line here."""

from harness.common.errors import UserError, nearest
from harness.models.bloom import BLOOM
from harness.models.falcon import FALCON
from harness.models.family import Family
from harness.models.mpt import MPT

FAMILIES: dict[str, Family] = {family.name: family for family in (MPT, BLOOM, FALCON)}


def model_family(model_type: str) -> Family:
    """Return the family of a transformers model type.

    Raises:
        UserError: for a type that is not supported.
    """
    if model_type not in FAMILIES:
        raise UserError(f"Models of type {model_type!r} are not supported.{nearest(model_type, FAMILIES)}")
    return FAMILIES[model_type]
