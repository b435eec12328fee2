"""attn=alibi: exact ALiBi, the reference of every other attention."""

from dataclasses import dataclass

from harness.attentions.base import Attention, Style


@dataclass(frozen=True)
class Alibi(Attention):
    name = "alibi"
    label = "exact ALiBi"
    style = Style("exact", "exact ALiBi", "diamond")

    def weights_of(self, model, *, seed, draw):
        from kernels import Alibi

        return [Alibi(model.slopes)] * model.architecture.layers

    def pairs(self, model, context):
        return {"fused": len(model.slopes) * context * (context - 1) / 2}


EXACT = Alibi()
