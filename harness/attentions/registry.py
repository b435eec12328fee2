"""The attention methods by name, in the order of tables. A new method is one file beside this one,
one line here and one file in conf/attn."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from harness.attentions.alibi import EXACT, Alibi
from harness.attentions.base import Attention, Option, Unknown
from harness.attentions.plsh import Plsh
from harness.attentions.stock import Stock
from harness.attentions.window import Window, windows_beside
from harness.common.errors import UserError, choose

if TYPE_CHECKING:
    from harness.models.spec import ModelSpec

ATTENTIONS: dict[str, type[Attention]] = {kind.name: kind for kind in (Alibi, Stock, Plsh, Window)}

__all__ = ["ATTENTIONS", "EXACT", "attention_of", "choose_attention", "options", "place_of", "references"]


def options() -> list[Option]:
    """attn.* of all methods, each once: options of one name are of one type and have one
    default."""
    found: dict[str, Option] = {}
    for kind in ATTENTIONS.values():
        for own in kind.options():
            first = found.setdefault(own.name, own)
            assert first[:3] == own[:3], f"attn.{own.name} is declared in two ways"
    return list(found.values())


def choose_attention(given: Any, *, masks: int, context: int, model: "ModelSpec") -> Attention:
    """The attention of a configuration, whose attn.* are `given`. Raises UserError."""
    kind = ATTENTIONS[choose("attn", given.name, ATTENTIONS)]
    for option in options():
        value = getattr(given, option.name)
        if option.known is not None and value is not None:
            choose(f"attn.{option.name}", value, option.known())
    if not 0 <= given.sinks <= context:
        raise UserError(f"attn.sinks must be from 0 to context={context}, not {given.sinks}.")
    return kind.chosen(given, masks=masks, context=context, model=model)


def references(attention: Attention, model: "ModelSpec", context: int) -> dict[str, Attention]:
    """What a table shows beside a method, by role. Exact ALiBi ("exact") is always there."""
    return windows_beside(attention, model, context) if attention.beside_windows else {}


def attention_of(identity: Mapping) -> Attention:
    """The attention of a record, from "attn" of its cell's identity: to be shown, whatever its
    values. Options that this code does not know are left out."""
    kind = ATTENTIONS.get(identity["name"])
    if kind is None:
        return Unknown(identity["name"])
    own = {f.name: identity.get(f.name, None if f.default is MISSING else f.default) for f in fields(kind)}
    return kind(**own)


def place_of(attention: Attention) -> int:
    """In the order of tables; methods that are not registered come last."""
    names = list(ATTENTIONS)
    return names.index(attention.name) if attention.name in names else len(names)
