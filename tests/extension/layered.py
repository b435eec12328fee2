"""A method that the harness lacks, as a user would add it: every second layer exact, a window in
the others."""

from dataclasses import dataclass

from harness.attentions.alibi import EXACT
from harness.attentions.base import Attention, Style
from harness.attentions.window import Window
from harness.common.errors import UserError


@dataclass(frozen=True)
class Layered(Attention):
    """reach: of the window, in units of 1/slope. every: of so many layers the last is exact."""

    name = "layered"
    style = Style("other", "layered", "star")
    beside_windows = True

    reach: float
    every: int = 2

    @classmethod
    def from_options(cls, options, *, masks, context, model):
        layered = super().from_options(options, masks=masks, context=context, model=model)
        if layered.reach < 0 or layered.every < 1:
            raise UserError("attn.reach must be at least 0, and attn.every at least 1.")
        return layered

    @property
    def label(self):
        return f"layered T={self.reach:g}"

    def weights_of(self, model, *, seed, draw):
        exact, window = (a.weights_of(model, seed=seed, draw=draw) for a in (EXACT, Window(self.reach)))
        return [(window if (layer + 1) % self.every else exact)[layer] for layer in range(model.architecture.layers)]

    def pairs(self, model, context):
        layers = model.architecture.layers
        exact, window = (a.pairs(model, context)["fused"] for a in (EXACT, Window(self.reach)))
        share = (layers // self.every) / layers
        return {"fused": share * exact + (1 - share) * window}
