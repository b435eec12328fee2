"""attn=stock: the attention code of transformers, with its known errors (docs/models.md)."""

from dataclasses import dataclass

from harness.attentions.alibi import EXACT
from harness.attentions.base import Attention, Style


@dataclass(frozen=True)
class Stock(Attention):
    name = "stock"
    native = True
    label = "stock (transformers' own)"
    style = Style("stock", "stock (transformers' own)", "x")

    def weights_of(self, model, *, seed, draw):
        return None

    def pairs(self, model, context):
        return EXACT.pairs(model, context)
