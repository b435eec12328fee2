"""Model families by transformers model type. A new family is one file and one line here."""

from harness.common.errors import UserError, nearest
from harness.models.bloom import BLOOM
from harness.models.falcon import FALCON
from harness.models.family import Family
from harness.models.mistral import MISTRAL
from harness.models.mpt import MPT

FAMILIES: dict[str, Family] = {family.name: family for family in (MPT, BLOOM, FALCON)}
# without ALiBi: their queries, keys and values can be measured under given slopes
ROTARY: dict[str, Family] = {family.name: family for family in (MISTRAL,)}


def model_family(model_type: str, *, rotary: bool = False) -> Family:
    """Return the family of a transformers model type.

    Args:
        model_type: the type.
        rotary: whether families without ALiBi are meant, too.

    Raises:
        UserError: for a type that is not supported.
    """
    if rotary and model_type in ROTARY:
        return ROTARY[model_type]
    if model_type not in FAMILIES:
        raise UserError(f"Models of type {model_type!r} are not supported.{nearest(model_type, FAMILIES)}")
    return FAMILIES[model_type]
