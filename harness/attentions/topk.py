"""attn=topk: exact ALiBi on the keys of the highest biased scores, an oracle by content.

It computes all scores, and bounds what any method can reach with as many keys in every row.
"""

from dataclasses import dataclass

from harness.attentions.base import Attention, Near, Style
from harness.common.errors import UserError


@dataclass
class Options:
    keys: int | None = None
    sinks: int = 0
    near: Near = 0


@dataclass(frozen=True)
class TopK(Attention):
    """The oracle. keys: keys of each row besides sinks and near field, its own included."""

    name = "topk"
    Options = Options
    by_score = True
    style = Style("other", "top-k oracle", "diamond-tall")

    keys: int
    sinks: int = 0
    near: int = 0

    @classmethod
    def from_options(cls, options, *, masks, context, model):
        found = super().from_options(options, masks=masks, context=context, model=model)
        assert isinstance(found, cls)
        if found.keys < 1:
            raise UserError(f"attn.keys must be at least 1, the row's own key, not {found.keys}.")
        return found

    @property
    def label(self):
        return f"top-k oracle k={self.keys}{self.label_suffix}"

    def weights_of(self, model, *, seed, draw):
        from kernels import TopK

        return [TopK(model.slopes, self.keys, self.sinks, self.near)] * model.architecture.layers

    def pairs(self, model, context):
        from kernels import TopK

        return {"fused": float(TopK(model.slopes, self.keys, self.sinks, self.near).pairs(context).sum())}

    def remarks(self, cell):
        return ["an oracle: it computes all scores, and pairs count the keys that it keeps"]
