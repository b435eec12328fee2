"""The attention methods by name, in the order of tables.

A new method is one file in this folder, one line here and one file in conf/attn.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from harness.attentions.alibi import EXACT, Alibi
from harness.attentions.base import Attention, Option, UnknownAttention
from harness.attentions.plsh import Plsh
from harness.attentions.stock import Stock
from harness.attentions.window import Window, equal_cost_windows
from harness.common.errors import UserError, choose

if TYPE_CHECKING:
    from harness.models.spec import ModelSpec

ATTENTIONS: dict[str, type[Attention]] = {kind.name: kind for kind in (Alibi, Stock, Plsh, Window)}

__all__ = ["ATTENTIONS", "EXACT", "attention_of", "choose_attention", "options", "table_order", "references"]


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
    if config.near < 0:
        raise UserError(f"attn.near must be at least 0 tokens, not {config.near}.")
    return kind.from_options(config, masks=masks, context=context, model=model)


def references(attention: Attention, model: "ModelSpec", context: int) -> dict[str, Attention]:
    """Return the attentions that a method is compared with, by role, besides exact ALiBi.

    Args:
        attention: the method.
        model: the model.
        context: tokens.
    """
    return equal_cost_windows(attention, model, context) if attention.beside_windows else {}


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
