"""The attention methods by name, in the order of tables.

A new method is one file in this folder, one line here and one file in conf/attn.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.attentions.alibi import EXACT, Alibi
from harness.attentions.allocated import Allocated
from harness.attentions.base import Attention, Option, UnknownAttention, near_tokens
from harness.attentions.plsh import Plsh
from harness.attentions.sliding import Sliding
from harness.attentions.stock import Stock
from harness.attentions.topk import TopK
from harness.attentions.window import Window
from harness.common.errors import UserError, choose

if TYPE_CHECKING:
    from harness.models.spec import ModelSpec

KINDS: tuple[type[Attention], ...] = (Alibi, Stock, Plsh, Window, Sliding, Allocated, TopK)
ATTENTIONS: dict[str, type[Attention]] = {kind.name: kind for kind in KINDS}


class EqualCost(NamedTuple):
    """A reference that visits as many pairs as a method. match: how these are counted."""

    kind: type[Window] | type[Sliding]
    match: str


# the references of a method by name, besides "exact"
EQUAL_COST = {
    "window": EqualCost(Window, "fused"),
    "sliding": EqualCost(Sliding, "fused"),
    "passes": EqualCost(Window, "passes"),
}
REFERENCES = ("exact", *EQUAL_COST)
DEFAULT_REFERENCES = ("exact", "window", "sliding")

__all__ = [
    "ATTENTIONS",
    "DEFAULT_REFERENCES",
    "EQUAL_COST",
    "EXACT",
    "REFERENCES",
    "attention_of",
    "choose_attention",
    "options",
    "references",
    "table_order",
]


def options() -> list[Option]:
    """Return attn.* of all methods, each once.

    Methods that share the name of an option share its type and default.
    """
    by_name: dict[str, Option] = {}
    for kind in ATTENTIONS.values():
        for option in kind.options():
            first = by_name.setdefault(option.name, option)
            assert first[:3] == option[:3], f"attn.{option.name} is declared in two ways"
    return list(by_name.values())


def choose_attention(config: Any, *, masks: int, context: int, model: "ModelSpec") -> Attention:
    """Return the attention of a configuration.

    Args:
        config: attn.* of the configuration.
        masks: the option masks.
        context: the option context.
        model: the model.

    Raises:
        UserError: for an unknown method or an invalid option.
    """
    kind = ATTENTIONS[choose("attn", config.name, ATTENTIONS)]
    for option in options():
        value = getattr(config, option.name)
        if option.known is not None and value is not None:
            choose(f"attn.{option.name}", value, option.known())
    if not 0 <= config.sinks <= context:
        raise UserError(f"attn.sinks must be from 0 to context={context}, not {config.sinks}.")
    config = replace(config, near=near_tokens(config.near))
    return kind.from_options(config, masks=masks, context=context, model=model)


def references(attention: Attention, model: "ModelSpec", context: int) -> dict[str, Attention]:
    """Return the attentions that a method is compared with, by the names in REFERENCES.

    Windows have its sinks, near field and eviction, and visit as many pairs. An approximation of
    ALiBi should beat them.

    Args:
        attention: the method.
        model: the model.
        context: tokens.
    """
    found: dict[str, Attention] = {"exact": EXACT}
    if attention.beside_windows:
        shared: dict[str, Any] = {"sinks": attention.sinks, "evict": attention.evict, "near": attention.near}
        counts = attention.pairs(model, context)
        for name, (kind, match) in EQUAL_COST.items():
            if match in counts:
                found[name] = kind.of_cost(counts[match], model, context, **shared)
    return found


def attention_of(identity: Mapping) -> Attention:
    """Return the attention of a record, for display, from "attn" of its cell's identity.

    Its values are not checked, and options that this code does not know are left out.
    """
    kind = ATTENTIONS.get(identity["name"])
    if kind is None:
        return UnknownAttention(identity["name"])
    values = {f.name: identity.get(f.name, None if f.default is MISSING else f.default) for f in fields(kind)}
    return kind(**values)


def table_order(attention: Attention) -> int:
    """Return the position of a method in tables; methods that are not registered come last."""
    names = list(ATTENTIONS)
    return names.index(attention.name) if attention.name in names else len(names)
